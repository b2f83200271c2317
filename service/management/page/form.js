// A form from a model's parameters: JSON schemas by name, as /models shows them.

import { decimal, word } from "./words.js";

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** One field. `read` is the value as text, or null for a missing one. */
export function field(name, schema, asked) {
  const id = `field-${name}`;
  const control = controlFor(id, schema, asked);
  const fault = element("p", { className: "fault", id: `${id}-fault` });
  control.input.setAttribute("aria-describedby", fault.id);
  const whole = element("div", { className: "field" }, element("label", { htmlFor: id, textContent: title(name) }), control.element, fault);
  const missing = takesNull(schema) ? unknown(control, asked) : null;
  if (missing) control.element.append(missing.element);
  const write = (value) => {
    if (missing) missing.set(value === null);
    if (value !== null && value !== undefined) control.write(value);
  };
  write(schema.example ?? schema.default);
  return {
    name,
    element: whole,
    read: () => (missing?.on() ? null : control.read()),
    write,
    box: (interval) => control.box?.(interval),
    complain: (text) => {
      fault.textContent = text;
      control.input.setAttribute("aria-invalid", String(Boolean(text)));
    },
  };
}

const title = (name) => name.replaceAll("_", " ");
const types = (schema) => [schema.type ?? (schema.anyOf ?? []).map((way) => way.type)].flat();
const takesNull = (schema) => types(schema).includes("null") || Boolean(schema.enum?.includes(null));

function controlFor(id, schema, asked) {
  const values = schema.enum?.filter((value) => value !== null);
  if (values) return choice(id, values, asked);
  if (types(schema).includes("boolean")) return check(id, asked);
  return types(schema).some((type) => type === "number" || type === "integer") ? number(id, schema, asked) : text(id);
}

function choice(id, values, asked) {
  const input = element("select", { id, onchange: asked }, ...values.map((value) => element("option", { value, textContent: value })));
  return { input, element: element("div", {}, input), read: () => input.value, write: (value) => (input.value = value) };
}

function check(id, asked) {
  const input = element("input", { id, type: "checkbox", onchange: asked });
  return { input, element: element("div", {}, input), read: () => String(input.checked), write: (value) => (input.checked = String(value) === "true") };
}

function text(id) {
  const input = element("textarea", { id });
  return { input, element: element("div", {}, input), read: () => input.value, write: (value) => (input.value = value) };
}

function number(id, schema, asked) {
  const whole = types(schema).includes("integer");
  const input = element("input", { id, type: "number", step: whole ? 1 : "any", required: true, inputMode: "decimal" });
  const [low, high] = range(schema);
  if (!(high > low)) return { input, element: element("div", { className: "number" }, input), read: () => input.value, write: (value) => (input.value = value) };
  const slider = element("input", { type: "range", min: low, max: high, step: whole ? 1 : step(high - low) });
  slider.setAttribute("aria-label", id.slice("field-".length));
  const holds = element("span", { className: "box", hidden: true });
  slider.oninput = () => (input.value = slider.value);
  slider.onchange = asked;
  input.oninput = () => (slider.value = input.value);
  return {
    input,
    element: element("div", { className: "number" }, element("span", { className: "slider" }, slider, element("span", { className: "track" }, holds)), input),
    read: () => input.value,
    write: (value) => (slider.value = input.value = value),
    box: (interval) => draw(holds, interval, low, high),
  };
}

/** What may be asked, or else what was seen in the data that the model was made of. */
const range = (schema) => [schema.minimum ?? schema["x-seen"]?.[0], schema.maximum ?? schema["x-seen"]?.[1]];
const step = (span) => 10 ** Math.floor(Math.log10(span) - 2);

function draw(holds, interval, low, high) {
  holds.hidden = !interval;
  if (!interval) return;
  const [from, to] = [interval[0] ?? low, interval[1] ?? high].map((x) => (100 * (Math.min(Math.max(x, low), high) - low)) / (high - low));
  holds.style.left = `${from}%`;
  holds.style.width = `${to - from}%`;
  holds.title = word.box(decimal(interval[0] ?? low), decimal(interval[1] ?? high));
}

function unknown(control, asked) {
  const box = element("input", { type: "checkbox" });
  const set = (on) => {
    box.checked = on;
    for (const input of control.element.querySelectorAll("input, select, textarea")) if (input !== box) input.disabled = on;
  };
  box.onchange = () => {
    set(box.checked);
    asked();
  };
  return { element: element("label", {}, box, ` ${word.unknown}`), on: () => box.checked, set };
}
