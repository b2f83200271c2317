// The last answers as dots on a logarithmic axis of milliseconds. Shape and colour say where an answer came from.

import { milliseconds, word } from "./words.js";

const MOST = 200;
const HEIGHT = 90;
const SVG = "http://www.w3.org/2000/svg";
const ROW = { computed: 20, redis: 45, memory: 70 };
const KIND = { l1: "memory", l2: "redis", computed: "computed", collapsed: "computed" };
const SHAPE = {
  computed: (x, y) => `M${x} ${y - 5}L${x + 5} ${y + 4}H${x - 5}Z`,
  redis: (x, y) => `M${x - 4} ${y - 4}h8v8h-8Z`,
  memory: (x, y) => `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z`,
};

export class Dots {
  #answers = [];

  constructor() {
    addEventListener("resize", () => this.draw());
  }

  add(source, ms) {
    this.#answers.push({ kind: KIND[source], ms });
    this.#answers = this.#answers.slice(-MOST);
    this.draw();
  }

  draw() {
    if (!this.#answers.length) return;
    const chart = document.getElementById("dots");
    const { width } = chart.getBoundingClientRect();
    chart.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const all = this.#answers.map(({ ms }) => ms);
    const low = Math.floor(Math.log10(Math.min(...all)));
    const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...all))));
    const x = (ms) => Math.round((width * (Math.log10(ms) - low)) / (high - low));
    const medians = this.#medians();
    chart.replaceChildren(chart.querySelector("title"));
    this.#answers.forEach(({ kind, ms }, i) => chart.append(path(SHAPE[kind](x(ms), ROW[kind] + (i % 5) - 2), `mark ${kind}`)));
    for (const [kind, ms] of Object.entries(medians)) chart.append(path(`M${x(ms)} ${ROW[kind] - 12}V${ROW[kind] + 12}`, `median ${kind}`));
    this.#say(chart, medians);
    scale(low, high);
  }

  #medians() {
    const found = {};
    for (const kind of Object.keys(ROW)) {
      const sorted = this.#answers.filter((answer) => answer.kind === kind).map(({ ms }) => ms).sort((a, b) => a - b);
      if (sorted.length) found[kind] = sorted[Math.floor(sorted.length / 2)];
    }
    return found;
  }

  #say(chart, { computed, redis, memory }) {
    const warm = memory ?? redis;
    const sentence = computed && warm ? word.medians(milliseconds(computed), milliseconds(warm)) : "";
    chart.querySelector("title").textContent = sentence || word.latency;
    const ratio = computed > warm ? word.ratio(Math.round((10 * computed) / warm) / 10) : "";
    document.getElementById("ratio").textContent = [sentence, ratio].filter(Boolean).join(" ");
  }
}

function path(d, className) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("d", d);
  made.setAttribute("class", className);
  return made;
}

function scale(low, high) {
  const axis = document.getElementById("axis");
  axis.replaceChildren();
  for (let power = low; power <= high; power++) {
    const label = document.createElement("span");
    label.textContent = milliseconds(10 ** power);
    label.style.left = `${(100 * (power - low)) / (high - low)}%`;
    axis.append(label);
  }
}
