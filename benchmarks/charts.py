"""The charts of the README: logarithmic axes, values written beside the marks, no legend to look up."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter
from PIL import Image

from benchmarks.figures import milliseconds, rate

COLOURS = {"cold": "#c2410c", "warm": "#0f766e", "ours": "#0f766e", "peer": "#94a3b8", "limit": "#475569"}
COLOURS_KEPT = 64
"""A palette that still shows smooth letters makes a file a third of the size."""
INK, FAINT = "#1e293b", "#64748b"


@dataclass(frozen=True, slots=True)
class Span:
    """A latency: a dot at ``p50``, a line to ``p99``, both in seconds."""

    name: str
    p50: float
    p99: float
    kind: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds without and with the cache."""

    name: str
    without: float
    with_cache: float


@dataclass(frozen=True, slots=True)
class Dot:
    """A rate per second; ``low`` and ``high`` are the slowest and fastest round."""

    name: str
    value: float
    low: float
    high: float
    kind: str


def cold_warm(path: Path, spans: Sequence[Span], pairs: Sequence[Pair], repeats: int) -> None:
    """Latency by outcome above, ``repeats`` identical requests below."""
    heights = [len(spans) + 1, len(pairs) + 1]
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 0.44 * sum(heights) + 0.9), height_ratios=heights, sharex=True, layout="constrained"
    )
    _prepare(above, "Latency of one request: median, and line to the 99th percentile", [span.name for span in spans])
    for row, span in enumerate(spans):
        _line(above, span.p50, span.p99, row, COLOURS[span.kind])
        _dot(above, span.p50, row, COLOURS[span.kind])
        _write(above, span.p99, row, f"{milliseconds(span.p50)}  (p99 {milliseconds(span.p99)})")
    title = f"{repeats} identical requests in all: with the cache, and without"
    _prepare(below, title, [pair.name for pair in pairs])
    for row, pair in enumerate(pairs):
        _line(below, pair.with_cache, pair.without, row, FAINT)
        _dot(below, pair.with_cache, row, COLOURS["warm"])
        _dot(below, pair.without, row, COLOURS["cold"])
        _write(below, pair.with_cache, row, milliseconds(pair.with_cache), left=True)
        _write(below, pair.without, row, f"{milliseconds(pair.without)}  ({pair.without / pair.with_cache:.1f} ×)")
    slowest = max([span.p99 for span in spans] + [pair.without for pair in pairs])
    below.set_xlim(min(span.p50 for span in spans) / 2, slowest * 10)
    below.xaxis.set_major_formatter(lambda value, _: milliseconds(value) if value < 1 else f"{value:,.0f} s")
    _save(figure, path)


def peers(path: Path, panels: Sequence[tuple[str, Sequence[Dot]]]) -> None:
    """Requests per second, one panel per kind of traffic, fastest first."""
    heights = [len(dots) + 1 for _, dots in panels]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(8, 0.34 * sum(heights) + 0.8),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, dots) in zip(axes[:, 0], panels, strict=True):
        ordered = sorted(dots, key=lambda dot: -dot.value)
        _prepare(axis, title, [dot.name for dot in ordered])
        for row, dot in enumerate(ordered):
            _line(axis, dot.low, dot.high, row, COLOURS[dot.kind])
            _dot(axis, dot.value, row, COLOURS[dot.kind])
            _write(axis, max(dot.value, dot.high), row, f"{rate(dot.value)}/s", bold=dot.kind == "ours")
        values = [dot.value for dot in dots]
        axis.set_xlim(min(values) / 2, max(values) * 4)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _save(figure, path)


def _prepare(axis: Any, title: str, names: Sequence[str]) -> None:
    """Rows from top to bottom, a logarithmic axis with a faint grid, and no frame."""
    axis.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_yticks(range(len(names)), names, fontsize=9.5, color=INK)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(length=0, labelcolor=FAINT, which="both")
    axis.tick_params(axis="y", labelcolor=INK)
    axis.grid(axis="x", color="#e2e8f0", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)


def _dot(axis: Any, x: float, row: int, colour: str) -> None:
    axis.plot(x, row, "o", color=colour, markersize=8)


def _line(axis: Any, start: float, end: float, row: int, colour: str) -> None:
    axis.plot([start, end], [row, row], color=colour, linewidth=3, alpha=0.35, solid_capstyle="round")


def _write(axis: Any, x: float, row: int, text: str, *, bold: bool = False, left: bool = False) -> None:
    offset, side = ((-7, 0), "right") if left else ((7, 0), "left")
    weight = "bold" if bold else "normal"
    axis.annotate(
        text,
        (x, row),
        offset,
        textcoords="offset points",
        va="center",
        ha=side,
        fontsize=9,
        color=INK,
        fontweight=weight,
    )


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=110)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(COLOURS_KEPT).save(path, optimize=True)
