"""Entries to and from Redis. Whatever Redis returns is checked before it is used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from service.cache.entry import Entry, seal, unseal
from service.cache.observer import Observer
from service.logs import FloodLog

logger = logging.getLogger(__name__)

CORRUPT_SECONDS = 60.0

Accepts: TypeAlias = Callable[[bytes], bool]
"""Whether a value could be an answer. The reader knows what answers look like, and the cache does not."""


def anything(value: bytes) -> bool:
    return True


class Codec:
    """Seals entries and opens what Redis returns, with one secret. The observer hears of every corrupt value."""

    def __init__(self, secret: bytes, observer: Observer, clock: Callable[[], float]) -> None:
        self._secret = secret
        self._observer = observer
        self._corrupt = FloodLog(logger, "A value in Redis is not what was stored there: a miss.", CORRUPT_SECONDS)
        self.clock = clock

    def close(self) -> None:
        self._corrupt.close()

    def seal(self, key: str, entry: Entry) -> tuple[bytes, int]:
        """The sealed entry and the milliseconds it has left; raises ValueError when it is too large or has expired."""
        left_ms = int(entry.left(self.clock()) * 1000)
        if left_ms <= 0:
            raise ValueError("expired")
        return seal(key, entry.value, round(entry.ttl * 1000), self._secret), left_ms

    def open(self, key: str, blob: bytes, left_ms: int, asked: float, accepts: Accepts) -> Entry | None:
        """The entry, or None when it has just expired; raises ValueError when it is corrupt, or not accepted.

        ``left_ms``: Redis's PTTL. ``asked``: the clock's reading before Redis was asked. The time left is counted from
        ``asked``, so the entry may seem older than it is, but never younger.
        """
        try:
            if not (isinstance(blob, bytes) and isinstance(left_ms, int)):
                raise ValueError("not a reply about an entry")
            value, ttl_ms = unseal(key, blob, self._secret)
            if left_ms == -1:
                raise ValueError("without a TTL")
            if not accepts(value):
                raise ValueError("its seal is right, but its model gives no such answers")
        except ValueError as error:
            self._observer.corrupt()
            self._corrupt.add(key=key, reason=str(error))
            raise
        left = min(left_ms, ttl_ms) / 1000
        return Entry(value, ttl_ms / 1000, asked + left) if left > 0 else None
