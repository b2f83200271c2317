"""What the arbiter and the workers tell each other, in memory that they share since the fork."""

from __future__ import annotations

import mmap
from ctypes import Structure, c_bool, c_char, c_int, c_uint, sizeof
from typing import Self

STARTING, SERVING, ENDED, FAILED = range(4)
"""ENDED: the worker was told to end. FAILED: it could not start or can compute no more; it gives the reason."""

_REASON_BYTES = 4000
_MOST = 2**16
"""More workers than ever live at once."""


class _Shared(Structure):
    @classmethod
    def shared(cls) -> Self:
        return cls.from_buffer(mmap.mmap(-1, sizeof(cls)))


class Report(_Shared):
    """What a worker tells the arbiter about itself. The arbiter makes it before the fork, and only the worker writes.

    ``served``: whether the worker ever was ready for requests.
    """

    _fields_ = (("state", c_int), ("served", c_bool), ("_reason", c_char * _REASON_BYTES))

    @property
    def reason(self) -> str:
        return bytes(self._reason).decode(errors="replace")

    def fail(self, reason: str) -> None:
        self._reason = reason.encode(errors="replace")[:_REASON_BYTES]
        self.state = FAILED


class Succession(_Shared):
    """Lets SIGHUP replace workers without a gap. Gunicorn starts new workers and at once tells the old ones to end. The
    old ones stay until the new ones serve, and for good when the new ones cannot start.

    The arbiter makes it once. A worker's age, the number of workers before it, identifies the worker. The next
    ``count`` workers replace all up to the age ``youngest``. While ``stopping``, no worker waits for another.
    """

    _fields_ = (("stopping", c_bool), ("youngest", c_uint), ("count", c_uint), ("_ready", c_bool * _MOST))

    def set_ready(self, age: int, is_ready: bool) -> None:
        """A worker of this age serves, or else is to be started."""
        self._ready[age % _MOST] = is_ready

    def may_end(self, age: int) -> bool:
        """Whether a worker that was told to end may end now."""
        successors = range(self.youngest + 1, self.youngest + 1 + self.count)
        return self.stopping or age > self.youngest or all(self._ready[other % _MOST] for other in successors)
