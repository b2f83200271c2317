"""What was worked out once, for what comes again."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """At most so many results. Full, it forgets them all: what is still asked for is soon back."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, result: V) -> None:
        if len(self) >= self._most:
            self.clear()
        self[key] = result
