// The page: choose a model, ask, see where the answer came from.

import { ask, getJson, requestFor } from "./api.js";
import { FORMS } from "./copy.js";
import { Dots } from "./dots.js";
import { element, field } from "./form.js";
import { watch } from "./live.js";
import { fromBase64, picture } from "./picture.js";
import { decimal, language, milliseconds, percent, speak, word } from "./words.js";

const $ = (id) => document.getElementById(id);
const SHOWN = 10;
const REPEATS = 100;

const dots = new Dots();
let models = [];
let current = null; // the model that is chosen, with its fields
let last = null; // what was asked last, and its answer
let repeating = false;

async function start() {
  speak(language);
  $("language").textContent = language === "zh" ? "English" : "中文";
  $("language").lang = language === "zh" ? "en" : "zh";
  models = (await getJson("models")).models.filter((model) => model.parameters);
  $("model").replaceChildren(...models.map((model) => element("option", { value: model.name, textContent: model.name })));
  $("model").disabled = models.length < 2;
  const named = decodeURIComponent(location.hash.slice(1));
  choose(models.find((model) => model.name === named) ?? models[0]);
}

function choose(model) {
  if (!model) {
    $("fields").textContent = word.noModel;
    for (const id of ["ask", "example", "repeat"]) $(id).disabled = true;
    return;
  }
  $("model").value = model.name;
  history.replaceState(null, "", `#${encodeURIComponent(model.name)}`);
  const boxed = Boolean(model.cells);
  current = { name: model.name, model, domain: (path) => (boxed ? `${path}${path.includes("?") ? "&" : "?"}domain=true` : path) };
  $("description").textContent = model.description ?? "";
  if (model.image) current.picture = picture(model.image.size, model.image.mode, () => send());
  else current.fields = Object.entries(model.parameters).map(([name, schema]) => field(name, schema, () => send(true)));
  $("fields").replaceChildren(...(current.picture ? [current.picture.element] : current.fields.map((part) => part.element)));
  last = null;
  forget();
}

function forget() {
  $("prediction").textContent = "";
  $("how").textContent = word.empty;
  $("timing").textContent = $("code").textContent = $("fault").textContent = "";
  $("bars").replaceChildren();
  $("more").hidden = true;
}

/** What the form has; null, and a word about it, without an image. */
function input() {
  if (current.picture) {
    const file = current.picture.file();
    if (!file) $("fault").textContent = word.noImage;
    return file && { file };
  }
  const values = {};
  for (const part of current.fields) {
    const value = part.read();
    if (value !== null) values[part.name] = value;
  }
  return { values };
}

/** `moved`: by a field that was let go, which asks nothing where the answer is known to stay. */
async function send(moved = false) {
  const asked = input();
  if (!asked) return;
  if (moved && within(asked)) return void ($("how").textContent = word.sameBox);
  await question(requestFor(current, asked), asked);
}

/** Whether the last answer holds for this input as well. */
function within(asked) {
  const box = last?.answer.body.unchanged_within;
  if (!box || last.name !== current.name) return false;
  const same = Object.entries(asked.values).every(([name, value]) => value === last.asked.values[name]);
  return !same && Object.entries(box).every(([name, [low, high]]) => Number(asked.values[name]) >= (low ?? -Infinity) && Number(asked.values[name]) <= (high ?? Infinity));
}

async function question(request, asked) {
  const model = current;
  let answer;
  try {
    answer = await ask(request);
  } catch {
    $("fault").textContent = word.lost;
    return false;
  }
  if (model !== current) return false;
  complain(answer);
  copyable(request);
  if (!answer.ok) return false;
  last = { asked, answer, request, name: model.name };
  dots.add(answer.source, answer.took);
  show(answer);
  return true;
}

function complain({ ok, body, wait }) {
  const text = ok ? "" : wait ? word.busy(wait) : body.detail;
  const named = current.fields?.find((part) => part.name === body.parameter);
  for (const part of current.fields ?? []) part.complain(part === named ? text : "");
  $("fault").textContent = named ? "" : text;
}

function show({ body, source, ttl, took, timing }) {
  $("prediction").textContent = told(body);
  $("how").textContent = [word.how[source], word.took(milliseconds(took)), ttl && word.ttl(ttl)].filter(Boolean).join(" · ");
  const ms = Object.fromEntries(["cache", "queue", "model"].map((name) => [name, milliseconds(timing[name] ?? 0)]));
  $("timing").textContent = "model" in timing ? word.server(ms) : "";
  bars(Object.entries(body.probabilities ?? {}), SHOWN);
  for (const part of current.fields ?? []) part.box(body.unchanged_within?.[part.name]);
}

function told({ label, prediction }) {
  if (label !== undefined) return label;
  if (Array.isArray(prediction)) return prediction.join(", ") || "–";
  if (prediction !== null && typeof prediction === "object") return Object.entries(prediction).map(([name, value]) => `${name} ${plain(value)}`).join(", ");
  return plain(prediction);
}

const plain = (value) => (typeof value === "number" ? decimal(value) : String(value));

function bars(classes, most) {
  $("more").hidden = classes.length <= most;
  $("more").onclick = () => bars(classes, classes.length);
  $("bars").replaceChildren(
    ...classes.slice(0, most).map(([label, probability]) => {
      const bar = element("div", { className: "bar" });
      bar.style.width = percentOf(probability);
      return element("li", {}, element("span", { textContent: label }), element("div", { className: "track" }, bar), element("span", { className: "value", textContent: percent(probability) }));
    }),
  );
}

const percentOf = (probability) => `${100 * probability}%`;

function copyable(request) {
  const chosen = $("forms").querySelector("[aria-pressed=true]")?.textContent ?? "curl";
  $("forms").replaceChildren(...Object.keys(FORMS).map((name) => element("button", { type: "button", textContent: name, onclick: () => show(name) })));
  function show(name) {
    for (const button of $("forms").children) button.setAttribute("aria-pressed", String(button.textContent === name));
    $("code").textContent = FORMS[name](request);
    navigator.clipboard?.writeText($("code").textContent).then(() => ($("copied").textContent = word.copied), () => {});
  }
  for (const button of $("forms").children) button.setAttribute("aria-pressed", String(button.textContent === chosen));
  $("code").textContent = FORMS[chosen](request);
  $("copied").textContent = "";
}

async function repeat() {
  const asked = input();
  if (!asked) return;
  const request = requestFor(current, asked);
  repeating = true;
  $("repeating").hidden = false;
  for (let i = 1; i <= REPEATS && repeating; i++) {
    if (!(await question(request, asked))) break;
    $("progress").value = i;
  }
  repeating = false;
  $("repeating").hidden = true;
}

function example() {
  const inputs = current.model.example;
  if (current.picture) return current.picture.take(fromBase64(inputs.image));
  const row = inputs.input ?? Object.values(Object.fromEntries(current.fields.map((part) => [part.name, inputs[part.name] ?? null])));
  current.fields.forEach((part, i) => part.write(row[i]));
  return send();
}

$("question").onsubmit = (event) => {
  event.preventDefault();
  send();
};
$("example").onclick = example;
$("repeat").onclick = repeat;
$("stop").onclick = () => (repeating = false);
$("model").onchange = () => choose(models.find((model) => model.name === $("model").value));
$("language").onclick = () => {
  speak(language === "zh" ? "en" : "zh");
  start();
  dots.draw();
};
document.onpaste = (event) => current?.picture?.paste(event);
start().then(watch, watch);
