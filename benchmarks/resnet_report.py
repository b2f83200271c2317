"""The table of a run of ``make bench-resnet``: our targets, and every runtime beside us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from benchmarks.figures import markdown, milliseconds, rate
from benchmarks.peers.results import Results, Sample

TITLES = {
    "torch-eager": "torch eager",
    "torch-channels-last": "torch, channels-last",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO, fp32",
}
CONNECTIONS = 32
HITS = {"a hit of a JPEG of 135 kB, by POST": 11_100, "a hit of a PNG of 8 × 8 pixels, by POST": 40_000}
"""What is asked again and again -> the answers per second that are the target."""
FOOT = (
    "One at a time: the median of the times; 32 at once: images per second; the ratios are of measurements in turns. "
    "Hits: one worker on one core, asked by wrk on another.\n"
    "The runtimes are called with inputs that are ready, for 32 at once with the faster of batches of 8 and 32.\n"
    "Decoding and resizing a picture, which only ours does, takes {decoding} of a core.\n"
    "Medians of rounds taken in turns; the spread is the fastest and the slowest."
)


@dataclass(frozen=True, slots=True)
class Load:
    """So many ``connections`` ask us. ``batches``: what a runtime is called with, of which the fastest counts."""

    title: str
    connections: int
    batches: tuple[int, ...]
    target: float
    speed: Callable[[Sample], float]
    text: Callable[[float], str]


LOADS = (
    Load("one at a time", 1, (1,), 0.85, lambda sample: 1 / sample.p50, lambda speed: milliseconds(1 / speed)),
    Load(
        f"{CONNECTIONS} at once",
        CONNECTIONS,
        (8, CONNECTIONS),
        0.9,
        lambda sample: sample.rate,
        lambda speed: f"{rate(speed)}/s",
    ),
)


def report(results: Results) -> str:
    """Our targets, and every runtime beside us."""
    targets = []
    for load in LOADS:
        ours, best = _fastest(results, ["ours"], load), _fastest(results, list(TITLES), load)
        title = f"{load.title} ÷ {TITLES[best.rpartition('-')[0]]}, the fastest"
        targets.append([title, f"≥ {load.target}", f"{results.ratio(ours, best, load.speed):.3g}"])
    for title, target in HITS.items():
        if samples := results.samples[title]:
            targets.append([title, f"≥ {rate(target)}/s", f"{rate(median(sample.rate for sample in samples))}/s"])
    header = ["", *(cell for load in LOADS for cell in (load.title, "spread", "ours ÷ it"))]
    table = []
    for name, title in {"ours": "**ours**, JPEGs by HTTP, all misses", **TITLES}.items():
        reason = results.reasons.get(name)
        cells = [cell for load in LOADS for cell in _cells(results, name, load)]
        table.append([title + (f" (not run: {reason})" if reason else ""), *cells])
    foot = FOOT.format(decoding=milliseconds(median(sample.p50 for sample in results.samples["decoding"])))
    parts = [markdown(["speed", "target", "measured"], targets), markdown(header, table), foot]
    return "\n\n".join(parts)


def _fastest(results: Results, names: list[str], load: Load) -> str:
    """The name and batch that were the fastest under that load; an empty string when none ran."""
    ran = [row for name in names for batch in load.batches if results.samples[row := f"{name}-{batch}"]]
    return max(ran, key=lambda row: median(map(load.speed, results.samples[row])), default="")


def _cells(results: Results, name: str, load: Load) -> list[str]:
    """The median, its spread, and our speed as a multiple of it."""
    row = _fastest(results, [name], load)
    if not row:
        return ["–"] * 3
    speeds = [load.speed(sample) for sample in results.samples[row]]
    ratio = results.ratio(_fastest(results, ["ours"], load), row, load.speed)
    spread = f"{load.text(max(speeds))}–{load.text(min(speeds))}"
    return [load.text(median(speeds)), spread, "–" if name == "ours" else f"{ratio:.3g} ×"]
