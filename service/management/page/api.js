// The service's public routes, as this page asks them.

// The browser's own cache would answer in the service's place. Told to stay out ("no-store"), it would ask for a fresh
// answer, unless the request has a Cache-Control of its own: this one asks for nothing.
const OURS = { "Cache-Control": "max-stale" };

export async function getJson(path) {
  const response = await fetch(path, { cache: "no-store" });
  return response.json();
}

/** What a question is in HTTP: also what "copy as" shows. */
export function requestFor(model, input) {
  const path = `models/${encodeURIComponent(model.name)}/predict`;
  if (input.file) return { method: "POST", path: model.domain(path), file: input.file };
  const query = Object.entries(input.values).map(([name, value]) => `${encode(name)}=${encode(value)}`);
  return { method: "GET", path: model.domain(`${path}?${query.join("&")}`) };
}

const encode = (text) => encodeURIComponent(text).replace(/%20/g, "+");

/** Asks, and measures from the request to the last byte of its answer. */
export async function ask(request) {
  const headers = request.file ? { ...OURS, "Content-Type": request.file.type } : OURS;
  const started = performance.now();
  const response = await fetch(request.path, { method: request.method, headers, body: request.file, cache: "no-store" });
  const text = await response.text();
  const took = performance.now() - started;
  const body = text ? JSON.parse(text) : {};
  return { ok: response.ok, status: response.status, took, body, wait: response.headers.get("Retry-After"), ...how(response.headers) };
}

function how(headers) {
  const status = headers.get("Cache-Status") ?? "";
  const source = /;\s*hit/.test(status) ? (status.includes("detail=L2") ? "l2" : "l1") : status.includes("collapsed") ? "collapsed" : "computed";
  const timing = [...(headers.get("Server-Timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g)];
  return { source, ttl: /ttl=(\d+)/.exec(status)?.[1], timing: Object.fromEntries(timing.map(([, name, ms]) => [name, Number(ms)])) };
}

/** Sums of the samples of /metrics by name, and of those with a `result` by that; null where a proxy keeps them back. */
export async function metrics() {
  const response = await fetch("metrics", { cache: "no-store" });
  if (!response.ok) return null;
  const sums = {};
  for (const line of (await response.text()).split("\n")) {
    const match = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!match) continue;
    const result = /result="(\w+)"/.exec(match[2] ?? "")?.[1];
    for (const name of result ? [match[1], `${match[1]}/${result}`] : [match[1]]) sums[name] = (sums[name] ?? 0) + Number(match[3]);
  }
  return sums;
}
