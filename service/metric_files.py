"""The files in which several processes keep their metrics, in ``prometheus_client``'s format.

Each process writes to its own files through memory. On a full disk this would kill it (SIGBUS), so the files' space is
taken first. The counters of a dead process must stay in the sums. They are added to one set of files for all the dead,
so that a scrape does not read hundreds. A lock keeps a scrape from seeing counters twice or not at all meanwhile.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

if sys.platform != "win32":
    import fcntl

KINDS = ("counter", "histogram", "gauge_livesum", "gauge_max", "gauge_mostrecent")
"""The names of files before the process id: one for each kind of metric in metrics.py."""
BYTES = 256 * 2**10
BYTES_OF_A_MODEL = 32 * 2**10
"""Generous bounds: for all routes and statuses, and for what one model adds."""
DEAD = 0
"""The process id in the names of the dead's files. No process has it."""


def take_space(directory: Path, pid: int, models: int) -> None:
    """Make the files of a process, filled with zeros; without space it raises OSError and leaves no file."""
    try:
        for kind in KINDS:
            with open(_path(directory, kind, pid), "ab") as file:
                file.write(bytes(max(0, BYTES + models * BYTES_OF_A_MODEL - file.tell())))
    except OSError:
        remove(directory, pid)
        raise


def remove(directory: Path, pid: int) -> None:
    for kind in KINDS:
        _path(directory, kind, pid).unlink(missing_ok=True)


def merge_dead(directory: Path, alive: set[int]) -> None:
    """Add the files of processes that are gone to those of the dead. Live gauges go with their process.

    It does nothing while a scrape reads: a frozen worker must not stop the caller, who will call again.
    """
    with suppress(BlockingIOError), _locked(directory, wait=False):
        for kind in KINDS:
            for path in directory.glob(f"{kind}_*.db"):
                pid = int(path.stem.rpartition("_")[2])
                with suppress(OSError):  # no space: the file stays
                    if pid not in alive and pid != DEAD:
                        _add(kind, path, _path(directory, kind, DEAD))


@contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Keeps ``merge_dead`` out."""
    with _locked(directory, shared=True):
        yield


@contextmanager
def _locked(directory: Path, shared: bool = False, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError where ``wait`` is false and another process has the lock."""
    if sys.platform == "win32":  # there, no process merges
        yield
        return
    with open(directory / "lock", "ab") as file:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        yield


def _path(directory: Path, kind: str, pid: int) -> Path:
    return directory / f"{kind}_{pid}.db"


def _add(kind: str, source: Path, target: Path) -> None:
    if kind != "gauge_livesum":
        values = _read(target) if target.exists() else {}
        for key, (value, time) in _read(source).items():
            old, old_time = values.get(key, (0.0, 0.0))
            if kind == "gauge_mostrecent":
                values[key] = (value, time) if time >= old_time else (old, old_time)
            else:
                values[key] = (max(old, value) if kind == "gauge_max" else old + value), 0.0
        _write(target, values)
    source.unlink()


def _read(path: Path) -> dict[str, tuple[float, float]]:
    entries = MmapedDict.read_all_values_from_file(path)  # type: ignore[no-untyped-call]
    return {key: (value, timestamp) for key, value, timestamp, _ in entries}


def _write(path: Path, values: dict[str, tuple[float, float]]) -> None:
    """Write the file as the library does, but not through memory, and completely or not at all."""
    body = b"".join(_entry(key, *value) for key, value in values.items())
    beside = path.with_suffix(".new")
    beside.write_bytes(struct.pack("ii", 8 + len(body), 0) + body)
    os.replace(beside, path)


def _entry(key: str, value: float, time: float) -> bytes:
    encoded = key.encode()
    padded = encoded + b" " * (8 - (len(encoded) + 4) % 8)
    return struct.pack(f"i{len(padded)}sdd", len(encoded), padded, value, time)
