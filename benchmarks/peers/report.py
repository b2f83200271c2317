"""Tables and chart of a run among peers, and our targets beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import charts
from benchmarks.figures import markdown, milliseconds, rate, replace_block
from benchmarks.ours import RESULTS, TABLES
from benchmarks.peers.contestant import Row
from benchmarks.peers.results import Results, Sample
from benchmarks.peers.roster import BEST_SERVER, LIMIT

LIBRARIES = ("cashews-client", "cashews", "fastapi-cache2", "fastapi-redis-sdk")
CAPTION = "Requests per second of this service and its peers, hits and misses"
REFERENCE = {"warm": "ours-l1", "cold": "ours-computed"}
"""The row of ours that "ours ÷ it" divides by the others, where a row names no other."""
SAME = "Triton and MLServer are compared with ours on their own request, by `/v2`; the others with our GET."


@dataclass(frozen=True, slots=True)
class Target:
    """``row`` by ``other`` must be at least ``bound``, or at most where ``at_most``."""

    title: str
    row: str
    other: str
    bound: float
    at_most: bool = False
    of: Callable[[Sample], float] = lambda sample: sample.rate


def targets(results: Results) -> list[Target]:
    """Those of performance.md that this run can tell; the best library is the fastest one measured."""
    measured = [name for name in LIBRARIES if results.samples[name]]
    best_library = max(measured, key=results.rate, default=LIBRARIES[0])
    return [
        Target("hit in memory ÷ nginx `return 200`", "ours-l1", LIMIT, 1.0),
        Target("hit in memory by `/v2` ÷ Triton's cache, the same request", "ours-v2", "triton-cache", 3),
        Target(f"hit in memory ÷ the best library ({best_library})", "ours-l1", best_library, 15),
        Target("hit in memory ÷ the textbook", "ours-l1", "textbook", 40),
        Target("hit in memory, p50 of one connection ÷ nginx", "ours-l1", LIMIT, 1.2, True, lambda sample: sample.p50),
        Target("hit with its own X-Request-ID ÷ nginx", "ours-id", LIMIT, 0.4),
        Target("hit in Redis ÷ cashews on Redis", "ours-l2", "cashews", 4),
        Target("computed ÷ mosec", "ours-computed", BEST_SERVER, 1.5),
        Target("computed by two workers ÷ mosec", "ours-computed-2", BEST_SERVER, 1.5),
        Target("unique inputs, memory cache alone ÷ caches off", "ours-unique-l1", "ours-off", 0.95),
        Target("unique inputs, stored in Redis one by one ÷ caches off", "ours-unique-redis", "ours-off", 0.95),
    ]


def write(results: Results, rows: Sequence[Row], extras: dict[str, Any], where: str) -> str:
    """The whole report in Markdown; also put into docs/performance.md, and the chart beside the results."""
    parts = [_targets_table(results, extras)]
    for kind, title in (("warm", "Warm: one hot key, one server core"), ("cold", "Cold: unique inputs, all cores")):
        chosen = [row for row in rows if row.kind == kind]
        if chosen:
            parts += [f"**{title}**", _table(results, chosen, REFERENCE[kind])]
    parts.append(f"Medians of rounds taken in turns; the spread is the slowest and the fastest round. {SAME}\n{where}.")
    text = "\n\n".join(part for part in parts if part)
    _draw(results, rows)
    replace_block(TABLES, "bench-peers", f"![{CAPTION}](../benchmarks/results/peers.png)\n\n{text}")
    return text


def _table(results: Results, rows: Sequence[Row], reference: str) -> str:
    """Fastest first; what did not run comes last, with its reason."""
    ran = sorted((row for row in rows if results.samples[row.name]), key=lambda row: -results.rate(row.name))
    lines = [_line(results, row, reference) for row in ran]
    lines += [[f"{row.title} (not run: {results.reasons[row.name]})", *"––––––"] for row in rows if row not in ran]
    header = [
        "",
        "requests/s, 32 connections",
        "spread",
        "ours ÷ it",
        "p50, one connection",
        "CPU per answer",
        "computed",
    ]
    return markdown(header, lines)


def _line(results: Results, row: Row, reference: str) -> list[str]:
    samples = results.samples[row.name]
    rates = [sample.rate for sample in samples]
    ratio = results.ratio(row.beside or reference, row.name)
    shares = [sample.computed for sample in samples if sample.computed is not None]
    failures = sum(sample.failures for sample in samples)
    stopped = results.reasons.get(row.name)
    return [
        row.title + (f" ({failures:,} failures)" if failures else "") + (f" (stopped: {stopped})" if stopped else ""),
        rate(results.rate(row.name)),
        f"{rate(min(rates))}–{rate(max(rates))}",
        f"{ratio:.3g} ×" if ratio and row.name != reference else "–",
        milliseconds(results.p50(row.name)),
        milliseconds(results.cpu(row.name)),
        f"{max(shares):.0%}" if shares else "–",
    ]


def _targets_table(results: Results, extras: dict[str, Any]) -> str:
    lines = []
    for target in targets(results):
        ratio = results.ratio(target.row, target.other, target.of)
        if ratio is not None:
            lines.append([target.title, f"{'≤' if target.at_most else '≥'} {target.bound:g}", f"{ratio:.3g}"])
    if results.samples["ours-computed"]:
        lines.append(["computed, p50 of one connection", "≤ 1 ms", milliseconds(results.p50("ours-computed"))])
    if found := extras.get("identical"):
        lines.append(
            [f"computations for {found['requests']:,} identical requests", "1", f"{found['computations']:.0f}"]
        )
    if found := extras.get("start"):
        times = f"{found['ratio']:.2f} ({found['ready_seconds']:.2f} s ÷ {found['bare_imports_seconds']:.2f} s)"
        lines.append(["start to ready ÷ the bare imports", "≤ 1.3", times])
        lines.append(
            [
                "resident memory of a worker, tables only",
                "≤ 200 MB",
                f"{found['worker_resident_mib'] * 1.048576:.0f} MB",
            ]
        )
    if reason := extras.get("not_run"):
        lines.append(["identical requests, start", "", f"not run: {reason}"])
    return markdown(["ratio within one round", "target", "measured"], lines) if lines else ""


def _draw(results: Results, rows: Sequence[Row]) -> None:
    panels = []
    for kind, title in (
        ("warm", "Warm hit, requests/s, one server core"),
        ("cold", "Unique inputs, requests/s, all cores"),
    ):
        ran = [row for row in rows if row.kind == kind and results.samples[row.name]]
        if ran:
            panels.append((title, [_dot(results, row) for row in ran]))
    if panels:
        charts.peers(RESULTS / "peers.png", panels)


def _dot(results: Results, row: Row) -> charts.Dot:
    rates = [sample.rate for sample in results.samples[row.name]]
    kind = "ours" if row.name.startswith("ours") else "limit" if row.name.startswith("nginx") else "peer"
    name = row.title.replace("*", "").replace("`", "")
    return charts.Dot(name, results.rate(row.name), min(rates), max(rates), kind)
