"""Request bodies in one worker: a bound for their bytes, and a thread for work on large ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import TypeVar

from service.errors import Overloaded

T = TypeVar("T")
SMALL_BODY_BYTES = 64 * 2**10
"""Work on a smaller body takes less time than a change of threads."""
FILES_WORTH = 1 / 8
"""What a byte is worth here that is only copied or hashed, at a gigabyte a second, and not parsed."""


class HashedFile(bytes):
    """A file whose SHA-256 was made while it arrived. Nothing that takes only plain bytes, as orjson, may get one."""

    digest: bytes


def digest_of(file: bytes) -> bytes:
    """Its SHA-256."""
    return file.digest if isinstance(file, HashedFile) else sha256(file).digest()


class Bodies:
    """``held``: the bytes that have arrived of all bodies whose requests are not answered yet."""

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes
        # One thread: two would fight for the interpreter with the loop, and hold the objects of two bodies.
        self._thread = ThreadPoolExecutor(1, "bodies")

    def take(self, size: int) -> None:
        """Take room for so many bytes; raises Overloaded. The caller must release them."""
        if self.held + size > self._max_bytes:
            raise Overloaded("The bodies of other requests use all the memory that there is for bodies.")
        self.held += size

    def release(self, size: int) -> None:
        self.held -= size

    async def work(self, work: Callable[[], T], size: float) -> T:
        """The result of ``work`` on a body of ``size`` bytes. A large body does not stop the loop."""
        if size <= SMALL_BODY_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
