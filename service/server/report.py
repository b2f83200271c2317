"""What the arbiter and the workers tell each other, in memory that they share since the fork."""

from __future__ import annotations

import mmap
import struct

STARTING, SERVING, ENDED, FAILED = range(4)
"""ENDED: the worker was told to end. FAILED: it could not start or can compute no more; it gives the reason."""

_PAGE = 4096


class Report:
    """What a worker tells the arbiter about itself. The arbiter makes it before the fork, and only the worker writes.

    ``served``: whether the worker ever was ready for requests.
    """

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, _PAGE)

    @property
    def state(self) -> int:
        return self._page[0]

    @state.setter
    def state(self, state: int) -> None:
        self._page[0] = state
        if state == SERVING:
            self._page[1] = 1

    @property
    def served(self) -> bool:
        return bool(self._page[1])

    @property
    def reason(self) -> str:
        return self._page[2:].rstrip(b"\0").decode(errors="replace")

    def fail(self, reason: str) -> None:
        encoded = reason.encode(errors="replace")[: _PAGE - 2]
        self._page[2 : 2 + len(encoded)] = encoded
        self._page[0] = FAILED


class Succession:
    """Lets SIGHUP replace workers without a gap. Gunicorn starts new workers and at once tells the old ones to end. The
    old ones stay until the new ones serve, and for good when the new ones cannot start.

    The arbiter makes it once. A worker's age, the number of workers before it, identifies the worker.
    """

    _HEAD = struct.Struct("?xxxII")
    _MOST = 2**16
    """More workers than ever live at once."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, self._HEAD.size + self._MOST)

    def expect(self, age: int) -> None:
        """A worker of this age starts."""
        self._shared[self._place(age)] = 0

    def tell_ready(self, age: int) -> None:
        self._shared[self._place(age)] = 1

    def replace(self, youngest: int, count: int) -> None:
        """The next ``count`` workers replace all workers up to the youngest."""
        self._HEAD.pack_into(self._shared, 0, False, youngest, count)

    def stop(self) -> None:
        """The service ends: no worker waits for another."""
        self._shared[0] = 1

    def may_end(self, age: int) -> bool:
        """Whether a worker that was told to end may end now."""
        stopping, youngest, count = self._HEAD.unpack_from(self._shared, 0)
        successors = range(youngest + 1, youngest + 1 + count)
        return stopping or age > youngest or all(self._shared[self._place(other)] for other in successors)

    def _place(self, age: int) -> int:
        return self._HEAD.size + age % self._MOST
