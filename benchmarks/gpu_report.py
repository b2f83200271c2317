"""The tables of a run of ``make bench-gpu``: our targets, every configuration, and where the time goes."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.figures import markdown, milliseconds, rate

LOADS = {"c1": 1, "c32": 32, "c256": 256}
THROUGHPUT_TARGET = 0.8
LATENCY_TARGET = 0.020
FOOT = (
    "Every request is a JPEG never sent before. c1, c32, c256: so many connections, always busy; open: a fixed number\n"
    "of requests per second, timed from when each was due. The bare model has its inputs on the device and is the\n"
    "fastest of: {ways}. Medians over rounds: {rounds}."
)

Row = dict[str, Any]


def report(rows: list[Row]) -> str:
    """``rows``: one for each model and round, as benchmarks/gpu.py makes them."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    parts = [_targets(rows, models[0])]
    for model in models:
        own = [row for row in rows if row["model"] == model]
        parts += [f"{model}:", _speeds(own), _stages(own)]
    ways = ", ".join(rows[0]["bare"]["rates"])
    rounds = len({row["round"] for row in rows})
    return "\n\n".join([*parts, FOOT.format(ways=ways, rounds=rounds)])


def _targets(rows: list[Row], model: str) -> str:
    own = [row for row in rows if row["model"] == model]
    share = _best(own, lambda row, service: service["loads"]["c256"]["rate"] / max(row["bare"]["rates"].values()), max)
    late = _best(own, lambda row, service: service["loads"]["open"]["p99"], min)
    table = [
        [f"{model}, c256 ÷ bare model", f"≥ {THROUGHPUT_TARGET}", f"{share:.3g}"],
        [f"{model}, open loop, p99", f"< {milliseconds(LATENCY_TARGET)}", milliseconds(late)],
    ]
    return markdown(["the best configuration", "target", "measured"], table)


def _best(rows: list[Row], value: Any, better: Any) -> float:
    """The best configuration's median over the rounds."""
    names = rows[0]["services"]
    found = [
        median(value(row, row["services"][name]) for row in rows)
        for name in names
        if all("loads" in row["services"][name] for row in rows)
    ]
    return float(better(found)) if found else float("nan")


def _speeds(rows: list[Row]) -> str:
    header = ["", *(f"{name}: images/s, p50, p99" for name in LOADS), "open: p50, p99", "c256 ÷ bare"]
    speed = median(max(row["bare"]["rates"].values()) for row in rows)
    table = [[f"bare model, batches of {rows[0]['bare']['batch']}", *["–"] * (len(header) - 2), f"{rate(speed)}/s"]]
    for name, first in rows[0]["services"].items():
        services = [row["services"][name] for row in rows]
        failed = next((service["not_run"] for service in services if "not_run" in service), "")
        if failed:
            table.append([f"{name} (not run: {failed})", *["–"] * (len(header) - 1)])
            continue
        cells = [_cell(services, load) for load in first["loads"]]
        share = median(
            service["loads"]["c256"]["rate"] / max(row["bare"]["rates"].values())
            for row, service in zip(rows, services, strict=True)
        )
        table.append([name, *cells, f"{share:.3g}"])
    return markdown(header, table)


def _cell(services: list[Row], load: str) -> str:
    def middle(key: str) -> float:
        return float(median(service["loads"][load][key] for service in services))

    times = f"{milliseconds(middle('p50'))}, {milliseconds(middle('p99'))}"
    return times if load == "open" else f"{rate(middle('rate'))}, {times}"


def _stages(rows: list[Row]) -> str:
    """Each stage by itself, and what the service says of its requests: what is left is HTTP and Python."""
    alone = {stage: median(row["bare"]["seconds"][stage] for row in rows) for stage in rows[0]["bare"]["seconds"]}
    table = [[stage, milliseconds(seconds)] for stage, seconds in alone.items()]
    for name in rows[0]["services"]:
        services = [row["services"][name] for row in rows if "loads" in row["services"][name]]
        for load in ("c1", "c256") if services else ():
            found = {key: median(service["loads"][load][key] for service in services) for key in _PARTS}
            rest = max(0.0, found["mean"] - found["queue"] - found["model"])
            queue, batch = milliseconds(found["queue"]), milliseconds(found["model"])
            parts = f"queue {queue}, batch of {found['batch']:.3g} images {batch}, HTTP and the rest"
            table.append([f"{name}, {load}: {parts}", milliseconds(rest)])
    return markdown(["where the time goes", "time"], table)


_PARTS = ("mean", "queue", "model", "batch")
