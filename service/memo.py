"""Results that are remembered for questions that come again."""

from __future__ import annotations

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """At most ``most`` results. A full memo forgets all of them: those still in use soon come back."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, result: V) -> None:
        if len(self) >= self._most:
            self.clear()
        self[key] = result
