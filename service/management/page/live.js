// The panel of figures, once a second while somebody looks.

import { getJson, metrics } from "./api.js";
import { element } from "./form.js";
import { count, duration, percent, word } from "./words.js";

const SECOND = 1000;
const KEPT = 60;
const RESULTS = "predict_cache_results_total";

export function watch() {
  let before = null;
  let rates = [];
  async function look() {
    if (!document.hidden) {
      try {
        const [now, ready] = await Promise.all([metrics(), getJson("readyz")]);
        const at = performance.now();
        tell(ready);
        document.getElementById("live").hidden = !now;
        if (now && before) rates = [...rates, share(now, before.sums)].slice(-KEPT);
        if (now) show(now, before && { sums: before.sums, seconds: (at - before.at) / SECOND }, rates);
        before = now && { sums: now, at };
      } catch {
        before = null;
        document.getElementById("figures").replaceChildren(element("dd", { textContent: word.lost }));
        document.getElementById("state").textContent = word.lost;
      }
    }
    setTimeout(look, SECOND);
  }
  look();
}

const hits = (sums) => (sums[`${RESULTS}/l1`] ?? 0) + (sums[`${RESULTS}/l2`] ?? 0);

/** The hit rate since the last look; as it was at the time when nobody asked. */
function share(now, before) {
  const asked = (now[RESULTS] ?? 0) - (before[RESULTS] ?? 0);
  return asked > 0 ? (hits(now) - hits(before)) / asked : null;
}

function show(now, last, rates) {
  const asked = now[RESULTS] ?? 0;
  const requests = last ? ((now.predict_requests_total ?? 0) - (last.sums.predict_requests_total ?? 0)) / last.seconds : 0;
  const known = rates.filter((rate) => rate !== null);
  const figures = [
    [word.hitRate, asked ? percent(hits(now) / asked) : "–", known.length > 1 ? spark(known) : ""],
    [word.memory, asked ? percent((now[`${RESULTS}/l1`] ?? 0) / asked) : "–"],
    [word.redis, asked ? percent((now[`${RESULTS}/l2`] ?? 0) / asked) : "–"],
    [word.rate, count(Math.max(0, requests))],
    [word.saved, duration(now.predict_cache_saved_seconds_total ?? 0)],
    [word.waiting, count(now.predict_queue_size ?? 0)],
    [word.workers, count(now.predict_workers ?? 0)],
    [word.questions, count(now.predict_l1_entries ?? 0)],
  ];
  document.getElementById("figures").replaceChildren(
    ...figures.map(([name, value, chart = ""]) => element("div", {}, element("dt", { textContent: name }), element("dd", {}, value, chart))),
  );
}

function spark(values) {
  const chart = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  chart.setAttribute("class", "spark");
  chart.setAttribute("viewBox", "0 0 100 20");
  chart.setAttribute("preserveAspectRatio", "none");
  chart.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", values.map((value, i) => `${(100 * i) / (values.length - 1)},${19 - 18 * value}`).join(" "));
  chart.append(line);
  return chart;
}

function tell(ready) {
  document.getElementById("state").textContent = word[ready.cache];
  const banner = document.getElementById("banner");
  const text = ready.status === "draining" ? word.draining : ready.cache === "down" ? word.away : "";
  if (banner.textContent !== text) banner.textContent = text;
  banner.hidden = !text;
}
