"""What a worker holds of request bodies: bounded in bytes, and a thread of its own for work on large ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.errors import Overloaded

T = TypeVar("T")
SMALL_BODY_BYTES = 64 * 2**10
"""Up to here, work on a body takes less than a change of threads is worth."""


class Bodies:
    """``held``: bytes of all bodies that are arriving or being answered, as far as they have arrived."""

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        # One: two would fight for the interpreter with the loop, and hold the objects of two bodies.
        self._thread = ThreadPoolExecutor(1, "bodies")

    def take(self, size: int) -> None:
        """Room for so many bytes more, to be released by who takes it; raises Overloaded."""
        if self.held + size > self._max_bytes:
            raise Overloaded("The bodies of other requests take all the room there is for them.")
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size

    async def work(self, work: Callable[[], T], size: int) -> T:
        """What ``work`` makes of a body of ``size`` bytes, without stopping the loop."""
        if size <= SMALL_BODY_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
