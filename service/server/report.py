"""What a worker tells the arbiter about itself, in a page of memory that both share since the fork."""

from __future__ import annotations

import mmap

STARTING, SERVING, ENDED, FAILED = range(4)
"""ENDED: because it was told to. FAILED: it could not start, or can compute no more, for the reason that it gives."""

_PAGE = 4096


class Report:
    """Made by the arbiter before it forks; only the worker writes to it. A worker that is killed leaves it as it was.

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
