"""A child process that a test owns: frozen, thawed, killed and reaped by its pid."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SLACK = 5
"""Tests may share the machine: a promised time is asserted at five times its figure. Counts have no slack."""

PATIENCE = 60.0
"""Seconds that a test waits for what is bound to happen: only a defect takes as long, however busy the machine is."""

_ports: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody listens on; each is given to one caller, whichever of pytest-xdist's processes asks.

    Not one of those that the kernel gives to connections: between two servers at the same port one might take it.
    """
    own, processes = os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:], os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    lowest, highest = 10_000 + int(own), _first_given_by_the_kernel()
    for _ in range(1000):
        port = random.SystemRandom().randrange(lowest, highest, int(processes))
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            if port not in _ports:
                _ports.add(port)
                return port
    raise AssertionError(f"no free port from {lowest} to {highest}")


def _first_given_by_the_kernel() -> int:
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        return 32_768
    return first if first >= 15_000 else 32_768


async def becomes(condition: Callable[[], object], within: float = PATIENCE) -> None:
    """Wait, with the event loop running on, until ``condition()`` is true."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - what it looks at is in another process
            await asyncio.sleep(0.01)


def eventually(condition: Callable[[], object], within: float = PATIENCE, every: float = 0.02) -> float:
    """Seconds until ``condition()`` was true; fails when that takes longer than ``within``."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < within, f"still not true after {waited:.2f} s"
        time.sleep(every)
    return time.monotonic() - start


class Process:
    """One running program. Its standard error goes to ``log``, its output beside it: pipes would have to be read."""

    def __init__(
        self, argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ):
        self.log = log
        with log.with_suffix(".out").open("ab") as out, log.open("ab") as err:
            self._child = subprocess.Popen(argv, stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=env, cwd=cwd)
        self.pid = self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; -N when signal N ended it."""
        return self._child.poll()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        return self._child.wait(timeout)

    def kill(self) -> None:
        """End it at once, frozen or not; nothing happens when it is gone already."""
        self._child.kill()
        self._child.wait(10)

    def errors(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")


def children(pid: int) -> list[int]:
    """The pids of the direct children, over all threads."""
    found: list[int] = []
    with suppress(OSError):  # the process has ended meanwhile
        for task in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):  # or only the thread
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Children, their children, and so on."""
    found: list[int] = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def command_line(pid: int) -> str:
    """Empty when the process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie."""
    return command_line(pid) != ""


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid: int) -> int:
    """How many file descriptors it has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
