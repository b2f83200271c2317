"""The tables of docs/reliability.md, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.figures import markdown, milliseconds
from tests.reliability.faults import CAP_SECONDS, HEALTHY

Figures = Mapping[str, Any]
Row = tuple[str, str, str]
"""What is measured, what is promised, what was found."""

FILE_NAME = "`benchmarks/results/reliability.json`"
BUSY = 0.5
"""A machine whose load average per core is above this was not ours alone."""
ALLOWANCE_SECONDS = 0.3
"""What a fault of Redis may add to a miss."""


def page(content: Mapping[str, Any], machine: str) -> str:
    """Both tables with their caption. ``content``: as in reliability.json."""
    figures: Mapping[str, Figures] = content["figures"]
    rows = [
        (*row, _command(name)) for name, rows_of in ROWS.items() if name in figures for row in rows_of(figures[name])
    ]
    parts = [markdown(["", "promised", "measured", "again with"], rows)]
    if "faults" in figures:
        header = ["Redis fault", "worst, ours", "worst, redis-py's defaults", "its errors"]
        header += ["hits of hot requests", "not 200", "wrong bodies", "Redis used again after"]
        parts.append(markdown(header, [_fault(name, found) for name, found in figures["faults"].items()]))
    surprises = {name: len(found) for name, found in content["surprises"].items() if found}
    if surprises:
        counts = ", ".join(f"{count} during `{name}`" for name, count in surprises.items())
        parts.append(f"Unexpected exit codes and tracebacks in the logs ({FILE_NAME} has them): {counts}.")
    return "\n\n".join([*parts, _caption(content, machine)])


def _command(name: str) -> str:
    return f"`make figures ONLY={name}`"


def _caption(content: Mapping[str, Any], machine: str) -> str:
    load, cores = content["load_average"], content["cores"]
    text = f"{machine}."
    if load / cores > BUSY:
        text += (
            f" The machine was shared: other programs kept its {cores} cores busy (load average {load:.1f} when the run"
            " began), so the times are upper bounds."
        )
    return text


def _computations(found: Figures) -> list[Row]:
    rounds = found["rounds"]
    counts = ", ".join(str(each["computations"]) for each in rounds)
    right = sum(each["right"] for each in rounds)
    asked = found["requests"] * len(rounds)
    slowest = milliseconds(max(each["slowest_seconds"] for each in rounds))
    what = f"computations for {found['requests']:,} identical requests, {found['workers']} workers × "
    return [
        (
            f"{what}{found['replicas']} replicas",
            "1",
            f"{counts} in {len(rounds)} rounds of a model of 0.5 s; {right:,} of {asked:,} right, slowest {slowest}",
        )
    ]


def _lag(found: Figures) -> list[Row]:
    nginx = found["nginx"]
    theirs = f"not run: {nginx}" if isinstance(nginx, str) else _behind(nginx)
    return [
        ("waiters behind the leader, same process", "≤ 1 ms", _behind(found["same"])),
        ("waiters behind the leader, another process", "≤ 2 ms", _behind(found["other"])),
        ("the same with nginx's `proxy_cache_lock`", "–", theirs),
    ]


def _behind(found: Figures) -> str:
    median, worst = found["median_seconds"], found["worst_seconds"]
    return f"median {_signed(median)}, worst of {found['rounds']} {_signed(worst)}"


def _signed(seconds: float) -> str:
    return milliseconds(seconds) if seconds >= 0 else f"−{milliseconds(-seconds)}"


def _faults(found: Figures) -> list[Row]:
    faulty = {name: each for name, each in found.items() if name != HEALTHY}
    worst = max(faulty, key=lambda name: float(faulty[name]["worst"]))
    healthy = found[HEALTHY]["misses"]
    asked, non_200, wrong = (sum(each[key] for each in faulty.values()) for key in ("requests", "non_200", "wrong"))
    return [
        (
            f"worst answer during {len(faulty)} faults of Redis",
            f"≤ {milliseconds(healthy + ALLOWANCE_SECONDS)} (healthy miss + 300 ms)",
            f"{milliseconds(faulty[worst]['worst'])} ({worst})",
        ),
        ("answers not 200, or wrong, during them", "0", f"{non_200} and {wrong} of {asked:,}"),
    ]


def _fault(name: str, found: Figures) -> list[str]:
    theirs = found["redis_py"]
    capped = theirs["worst"] >= CAP_SECONDS
    return [
        name,
        milliseconds(found["worst"]),
        f"> {CAP_SECONDS:.0f} s" if capped else milliseconds(theirs["worst"]),
        f"{theirs['errors']} of {theirs['calls']}",
        f"{found['hits']} of {found['hot']}",
        str(found["non_200"]),
        str(found["wrong"]),
        f"{found['hits_back_seconds']:.1f} s",
    ]


def _entries(found: Figures) -> list[Row]:
    total, wrong, served, again, hits = (
        sum(each[key] for each in found.values())
        for key in ("entries", "wrong", "served", "computed_again", "hits_right_after")
    )
    return [
        (
            f"corrupted entries served, {len(found)} kinds of damage",
            "0",
            f"{served} of {total}; {wrong} wrong answers, {again} computed again, {hits} hits right after",
        )
    ]


def _kills(found: Figures) -> list[Row]:
    rounds = found["rounds"]
    answered, mine, others = (
        sum(each[key] for each in rounds) for key in ("answered", "failed_in_flight", "failed_elsewhere")
    )
    flight = found["connections"] * len(rounds)
    computed = ", ".join(sorted({str(each["computations"]) for each in rounds}))
    slowest = milliseconds(max(each["slowest_seconds"] for each in rounds))
    return [
        (
            f"failed requests over {len(rounds)} kills of one of {found['workers']} workers",
            f"≤ {flight} in flight at the victims, 0 others",
            f"{mine} in flight, {others} others; {answered:,} answered, slowest {slowest}",
        ),
        ("computations of what the killed worker was computing", "≤ 2", computed),
        (
            "from a kill to full strength",
            "< 5 s",
            f"{max(each['full_strength_seconds'] for each in rounds):.1f} s at worst",
        ),
    ]


def _sigterm(found: Figures) -> list[Row]:
    measured = f"{found['failed']}; {found['answered']:,} answered, exit code {found['exit_code']}"
    return [("failed requests over a SIGTERM under keep-alive load", "0, exit code 0", measured)]


ROWS: dict[str, Callable[[Figures], list[Row]]] = {
    "computations": _computations,
    "lag": _lag,
    "faults": _faults,
    "entries": _entries,
    "kills": _kills,
    "sigterm": _sigterm,
}
"""By the name of a figure, in the order of the table."""
