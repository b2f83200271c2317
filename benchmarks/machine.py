"""What the numbers were measured on, and which core runs what."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

OUR_PACKAGES = (
    "fastapi",
    "uvicorn",
    "uvloop",
    "httptools",
    "redis",
    "scikit-learn",
    "numpy",
    "orjson",
    "torch",
    "torchvision",
)


def available_cores() -> list[int]:
    """The CPU numbers this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


ALL_CORES = tuple(available_cores())
SERVER_CORE = ALL_CORES[:1]
"""Where a pinned server runs."""
CLIENT_CORE = ALL_CORES[-1:]
"""Where the client runs: another core than the server's, when there are two."""
OTHER_CORES = ALL_CORES[:-1] or ALL_CORES
"""All but the client's."""


def pin(cores: tuple[int, ...]) -> None:
    """Confine this process, and what it starts from now on, to ``cores``; does nothing where the system cannot."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def facts() -> dict[str, object]:
    """Machine and versions, as they go into every results file."""
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(ALL_CORES),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in OUR_PACKAGES if (found := _version(name))},
    }


def summary(found: dict[str, object]) -> str:
    """One line about the day and the machine for the foot of a table."""
    machine = f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB"
    return f"{str(found['taken'])[:10]}: {machine}, {found['system']}, Python {found['python']}"


def descendants(pid: int) -> list[int]:
    """All processes that ``pid`` started, and those that they started (Linux only)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended while we looked
            children.setdefault(int(_stat(entry)[1]), []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        started = children.get(todo.pop(), [])
        found += started
        todo += started
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time that those of ``pids`` that still run have taken so far, in seconds."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = _stat(Path(f"/proc/{pid}/stat"))
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> dict[int, float]:
    """Resident memory of ``pid`` and all its descendants, in MiB by process id."""
    return {each: _resident(each) for each in [pid, *descendants(pid)]}


def _stat(path: Path) -> list[str]:
    """The fields after the name, which may itself contain spaces."""
    return path.read_text().rpartition(")")[2].split()


def _resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
