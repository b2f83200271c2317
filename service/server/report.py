"""What arbiter and workers tell each other, in memory that they share since the fork."""

from __future__ import annotations

import mmap
import struct

STARTING, SERVING, ENDED, FAILED = range(4)
"""ENDED: because it was told to. FAILED: it could not start, or can compute no more, for the reason that it gives."""

_PAGE = 4096


class Report:
    """What a worker tells the arbiter about itself.

    Made by the arbiter before it forks; only the worker writes to it. A worker that is killed leaves it as it was.

    ``served``: whether it ever answered a request.
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
    """So that SIGHUP leaves no gap: gunicorn starts the new workers and tells the old ones to end at once, and these
    stay until the new ones serve. When those cannot, the old ones stay for good.

    Made once by the arbiter. A worker is known by its age, the number of workers before it.
    """

    _HEAD = struct.Struct("?xxxII")
    _MOST = 2**16
    """More than ever live at once."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, self._HEAD.size + self._MOST)

    def expect(self, age: int) -> None:
        """A worker of that age starts."""
        self._shared[self._place(age)] = 0

    def tell_ready(self, age: int) -> None:
        self._shared[self._place(age)] = 1

    def replace(self, youngest: int, count: int) -> None:
        """Everybody up to the youngest is to be replaced, by so many that come next."""
        self._HEAD.pack_into(self._shared, 0, False, youngest, count)

    def stop(self) -> None:
        """The service ends: nobody waits for anybody."""
        self._shared[0] = 1

    def may_end(self, age: int) -> bool:
        """Whether a worker that was told to end need not wait."""
        stopping, youngest, count = self._HEAD.unpack_from(self._shared, 0)
        successors = range(youngest + 1, youngest + 1 + count)
        return stopping or age > youngest or all(self._shared[self._place(other)] for other in successors)

    def _place(self, age: int) -> int:
        return self._HEAD.size + age % self._MOST
