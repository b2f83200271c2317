"""A temporary directory that goes when the last process of the service is gone, however that came about."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

_LONGEST_PARENT = 70
"""A unix socket's path has 107 bytes at most."""
_TRACKER = 'while read -r pid; do redis=$pid; done; [ -n "$redis" ] && kill -9 "$redis"; rm -rf -- "$1"'


class Scratch:
    """The directory ``path``, and a shell that waits for the end of a pipe, kills Redis, and removes the directory.

    The pipe's other end, ``fd``, is inherited by every worker and never written to there: it ends when the launcher
    and all workers are gone, be it by SIGKILL.
    """

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        self.path = Path(tempfile.mkdtemp(prefix="predict-", dir=parent if len(parent) <= _LONGEST_PARENT else "/tmp"))
        # A session of its own: Ctrl-C in a terminal ends the foreground group.
        self._tracker = subprocess.Popen(
            ["sh", "-c", _TRACKER, "resource_tracker", str(self.path)],
            stdin=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        assert self._tracker.stdin is not None
        self._pipe = self._tracker.stdin
        self.fd = self._pipe.fileno()

    def track(self, pid: int | None) -> None:
        """Which Redis to kill at the end; None: there is none now."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.write(f"{pid or ''}\n".encode())

    def close(self) -> None:
        self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._tracker.wait(5)
