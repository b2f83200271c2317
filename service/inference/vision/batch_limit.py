"""How large a batch may be on a device whose memory other programs use as well."""

from __future__ import annotations

from collections.abc import Callable

RECOVERY_SECONDS = 30.0
"""After so long without a lack of memory, the next larger batch is tried again."""


class BatchLimit:
    """How many images fit into the device's memory at once: fewer after a lack of memory, later more again.

    Threads need no lock. In any order of their steps the index names a size; one that is too large only fails again.
    """

    def __init__(self, sizes: list[int], clock: Callable[[], float]) -> None:
        self.sizes = sizes
        self._clock = clock
        self._index = len(sizes) - 1
        self._changed = 0.0

    def now(self) -> int:
        if self._index < len(self.sizes) - 1 and self._clock() - self._changed >= RECOVERY_SECONDS:
            self._index = min(self._index + 1, len(self.sizes) - 1)  # another thread may have raised it meanwhile
            self._changed = self._clock()
        return self.sizes[self._index]

    def shrink(self, count: int) -> bool:
        """To the size below the one that ``count`` images took; False when there is none."""
        failed = self.sizes.index(self.bucket(count))
        self._index = max(0, min(self._index, failed - 1))
        self._changed = self._clock()
        return failed > 0

    def bucket(self, count: int) -> int:
        """The size that so many images are padded to."""
        return next(size for size in self.sizes if size >= count)


def buckets(largest: int) -> list[int]:
    """The sizes that batches are padded to: powers of two, and the largest itself."""
    return [*(1 << exponent for exponent in range((largest - 1).bit_length())), largest]
