"""Keeps the workers running: starts them, replaces those that die, and stops them all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from service.config import Settings
from service.errors import ConfigurationError

logger = logging.getLogger(__name__)

READY = b"ready\n"
"""What a worker says on its channel once it serves."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
KILL_SLACK_SECONDS = 3
"""Beyond drain and grace. A worker that hangs ends itself a second earlier."""
SAME_WISH_SECONDS = 0.5
"""`timeout` and some terminals deliver one wish to stop twice; a second wish comes later than that."""
STABLE_SECONDS = 10
"""A worker that served for so long starts afresh in counting failures."""


def restart_delay(failures: int) -> float:
    """Seconds to wait after that many failures in a row before: 0, 0.1, 0.2, 0.4 … 5."""
    return min(5.0, 0.1 * 2 ** min(failures - 1, 10)) if failures else 0.0


class Supervisor:
    """Keeps ``settings.workers`` processes on one listening socket.

    ``environ`` is theirs, ``inherited`` the file descriptors they hold open besides. ``on_ready`` is called once, when
    all of them serve.
    """

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        environ: Mapping[str, str],
        inherited: tuple[int, ...],
        on_ready: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._environ = environ
        self._inherited = inherited
        self._on_ready: Callable[[], None] | None = on_ready
        self._processes: set[asyncio.subprocess.Process] = set()
        self._ready = 0
        self._ever_ready = False
        self._stopping = asyncio.Event()
        self._told_to_stop = math.inf
        self._failure: str | None = None
        self._unclean = False

    async def run(self) -> int:
        """Until a signal: 0 when every worker then ended well, else 1. Raises ConfigurationError for a first start
        that fails: what is wrong before anything ever worked is not cured by trying again."""
        for signum in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(signum, self._on_signal, signum)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.workers):
                    group.create_task(self._keep_worker())
                await self._stopping.wait()
                self._stop()
        finally:
            self._kill()
        if self._failure is not None:
            raise ConfigurationError(self._failure)
        return int(self._unclean)

    def ignore_signals(self) -> None:
        """For the last moments, when nothing is left to stop: by default another signal would spoil the exit code."""
        # Held back meanwhile: asyncio puts the defaults in the place of its own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        for signum in STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(signum)
            signal.signal(signum, signal.SIG_IGN)

    def _on_signal(self, signum: int) -> None:
        now = time.monotonic()
        if not self._stopping.is_set():
            logger.info("Told to stop: the workers drain.", extra={"signal": signal.Signals(signum).name})
            self._told_to_stop = now
            self._stopping.set()
        elif now - self._told_to_stop > SAME_WISH_SECONDS:
            logger.warning("Told to stop again: the workers are killed.", extra={"signal": signal.Signals(signum).name})
            self._kill()

    def _stop(self) -> None:
        # The workers drain their own copies of the socket; the last one to close it makes clients see a refusal.
        self._listener.close()
        for process in self._processes:
            send(process, signal.SIGTERM)
        budget = self._settings.drain_seconds + math.ceil(self._settings.grace_seconds) + KILL_SLACK_SECONDS
        asyncio.get_running_loop().call_later(budget, self._kill)

    def _kill(self) -> None:
        for process in self._processes:
            logger.error("A worker did not stop in time and is killed.", extra={"worker": process.pid})
            send(process, signal.SIGKILL)

    async def _keep_worker(self) -> None:
        """Run one worker after the other: at once when one dies, ever later when they die young."""
        failures = 0
        while not self._stopping.is_set():
            served = await self._run_worker()
            if served >= STABLE_SECONDS:
                failures = 0
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), restart_delay(failures))
            failures += 1

    async def _run_worker(self) -> float:
        """One worker from its start to its end; how long it served, in seconds."""
        try:
            process, channel = await self._start_worker()
        except OSError as error:
            logger.error("No worker can be started: %s", error)
            return 0.0
        reader, writer = await asyncio.open_connection(sock=channel)
        self._processes.add(process)
        if self._stopping.is_set():  # While it was being started.
            send(process, signal.SIGTERM)
        try:
            report = await reader.readline()
            began = time.monotonic()
            if report == READY:
                self._count_ready(process.pid)
            code = await process.wait()
        finally:
            self._processes.discard(process)
            writer.close()
        served = time.monotonic() - began if report == READY else 0.0
        self._count_end(process.pid, code, report)
        return served

    async def _start_worker(self) -> tuple[asyncio.subprocess.Process, socket.socket]:
        ours, theirs = socket.socketpair()
        descriptors = (self._listener.fileno(), theirs.fileno())
        with theirs:
            # A process group of its own: Ctrl-C is for the launcher, which tells the workers.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "service.worker", *map(str, descriptors)),
                env=self._environ,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(*descriptors, *self._inherited),
                process_group=0,
            )
        return process, ours

    def _count_ready(self, pid: int) -> None:
        logger.info("A worker serves.", extra={"worker": pid})
        self._ready += 1
        self._ever_ready = True
        if self._ready == self._settings.workers and self._on_ready is not None:
            self._on_ready()
            self._on_ready = None

    def _count_end(self, pid: int, code: int, report: bytes) -> None:
        was_ready = report == READY
        self._ready -= was_ready
        forget_metrics(Path(self._environ["PROMETHEUS_MULTIPROC_DIR"]), pid, ever_served=was_ready)
        if self._stopping.is_set():
            self._unclean |= code != 0 and was_ready
            return
        reason = report.decode(errors="replace").strip() if not was_ready else ""
        if not self._ever_ready:
            self._failure = reason or f"A worker ended with code {code} while it started."
            self._stopping.set()
            return
        logger.error("A worker ended and is replaced.", extra={"worker": pid, "exit_code": code, "reason": reason})


def forget_metrics(directory: Path, pid: int, *, ever_served: bool) -> None:
    """Remove the gauges of a process that is gone; its counters stay, unless it never served and has none."""
    for path in directory.glob(f"gauge_live*_{pid}.db" if ever_served else f"*_{pid}.db"):
        path.unlink(missing_ok=True)


def send(process: asyncio.subprocess.Process, signum: signal.Signals) -> None:
    """Not by asyncio's own way, which looks first whether it has ended: its exit code would then be lost to its waiter,
    who would be told 255."""
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            os.kill(process.pid, signum)
