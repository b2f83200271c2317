"""The tables of a run of ``make bench-gpu``: verdicts, every configuration, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.figures import markdown, milliseconds, rate

LOADS = {"c1": 1, "c32": 32, "c256": 256}
AS_IT_IS = "as it is"
MECHANISMS = {"without CUDA graphs": "CUDA graphs", "one batch at a time": "two batches under way"}
"""The configuration that lacks it -> the mechanism."""
LEAST_GAIN = 1.05
"""A mechanism earns its place if it brings so much with 32 or with 256 connections."""
FOOT = (
    "Every request is a JPEG never sent before. c1, c32, c256: so many connections, always busy; open: a fixed number\n"
    "of requests per second, timed from when each was due. The bare model has its inputs on the device and is the\n"
    "fastest of: {ways}. Medians over rounds: {rounds}."
)

Row = dict[str, Any]
Value = Callable[[Row, Row], float]
"""Of a round, and of one service in it."""


def report(rows: list[Row]) -> str:
    """``rows``: one for each round, as benchmarks/gpu.py makes them; the last may lack services."""
    foot = FOOT.format(ways=", ".join(rows[0]["bare"]["rates"]), rounds=len(rows))
    return "\n\n".join([_verdicts(rows), _speeds(rows), _stages(rows), foot])


def _verdicts(rows: list[Row]) -> str:
    """Of the best configuration for each target, and of each mechanism by what its absence costs."""
    targets: list[tuple[str, Value, Callable[[list[float]], float], float, Callable[[float], str]]] = [
        ("c256 ÷ bare model", _share, max, 0.8, "{:.3g}".format),
        ("open, p99", lambda row, service: float(service["loads"]["open"]["p99"]), min, 0.020, milliseconds),
        ("open, mean", lambda row, service: float(service["loads"]["open"]["mean"]), min, 0.100, milliseconds),
    ]
    table = []
    for title, value, best, target, text in targets:
        found = best([median(values) for name in rows[0]["services"] if (values := _values(rows, name, value))] or [-1])
        met = found >= target if best is max else 0 <= found < target
        wanted = f"{'≥' if best is max else '<'} {text(target)}"
        table.append([f"{title}, the best configuration", wanted, text(found), "met" if met else "**not met**"])
    for without, mechanism in MECHANISMS.items():
        gains = {load: _gain(rows, without, load) for load in LOADS}
        earned = max(gains["c32"], gains["c256"]) >= LEAST_GAIN
        measured = ", ".join(f"{load} {gain:.3g} ×" for load, gain in gains.items())
        verdict = "not measured" if gains["c1"] != gains["c1"] else "earns its place" if earned else "**goes**"
        table.append([mechanism, f"≥ {LEAST_GAIN} × at c32 or c256", measured, verdict])
    return markdown(["", "wanted", "measured", "verdict"], table)


def _share(row: Row, service: Row) -> float:
    return float(service["loads"]["c256"]["rate"] / max(row["bare"]["rates"].values()))


def _gain(rows: list[Row], without: str, load: str) -> float:
    """The speed with a mechanism as a multiple of that without it; nan where one of them did not run."""
    speeds = [
        row["services"][AS_IT_IS]["loads"][load]["rate"] / row["services"][without]["loads"][load]["rate"]
        for row in rows
        if all("loads" in row["services"].get(name, ()) for name in (AS_IT_IS, without))
    ]
    return median(speeds) if speeds else float("nan")


def _values(rows: list[Row], name: str, value: Value) -> list[float]:
    services = [(row, row["services"][name]) for row in rows if "loads" in row["services"].get(name, ())]
    return [value(row, service) for row, service in services]


def _speeds(rows: list[Row]) -> str:
    header = ["", *(f"{name}: images/s, p50, p99" for name in LOADS), "open: p50, p99", "c256 ÷ bare"]
    speed = median(max(row["bare"]["rates"].values()) for row in rows)
    table = [[f"bare model, batches of {rows[0]['bare']['batch']}", *["–"] * (len(header) - 2), f"{rate(speed)}/s"]]
    for name, first in rows[0]["services"].items():
        if "not_run" in first:
            table.append([f"{name} (not run: {first['not_run']})", *["–"] * (len(header) - 1)])
            continue
        cells = [_cell(rows, name, load) for load in first["loads"]]
        table.append([name, *cells, f"{median(_values(rows, name, _share)):.3g}"])
    return markdown(header, table)


def _cell(rows: list[Row], name: str, load: str) -> str:
    def middle(key: str) -> float:
        return median(_values(rows, name, lambda row, service: float(service["loads"][load][key])))

    times = f"{milliseconds(middle('p50'))}, {milliseconds(middle('p99'))}"
    return times if load == "open" else f"{rate(middle('rate'))}, {times}"


def _stages(rows: list[Row]) -> str:
    """Each stage by itself, and what the service says of its requests: what is left is HTTP and Python."""
    alone = {stage: median(row["bare"]["seconds"][stage] for row in rows) for stage in rows[0]["bare"]["seconds"]}
    table = [[stage, milliseconds(seconds)] for stage, seconds in alone.items()]
    for name, first in rows[0]["services"].items():
        for load in ("c1", "c256") if "loads" in first else ():
            found = first["loads"][load]
            rest = max(0.0, found["mean"] - found["queue"] - found["model"])
            queue, batch = milliseconds(found["queue"]), milliseconds(found["model"])
            parts = f"queue {queue}, batch of {found['batch']:.3g} images {batch}, HTTP and the rest"
            table.append([f"{name}, {load}: {parts}", milliseconds(rest)])
    return markdown(["where the time goes (services: the first round)", "time"], table)
