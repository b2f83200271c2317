"""How often one client address may do something."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable

from service.errors import TooManyRequests

GUESSES_PER_MINUTE = 10
"""Wrong admin tokens that one client address may try."""
MAX_CLIENTS = 65_536
"""Addresses that are remembered. Beyond these, the one that was idle longest is forgotten: it has all tokens again."""


class RateLimit:
    """A bucket of ``burst`` tokens for each client address, filled with ``per_second`` of them. Of one worker."""

    def __init__(self, per_second: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, max(1.0, burst), clock
        self._full_at: dict[str, float] = {}

    def check(self, client: str) -> None:
        """Raises TooManyRequests while the client has no whole token."""
        missing = (self._full_at.get(client, 0.0) - self._clock()) * self._per_second - (self._burst - 1)
        if missing > 1e-6:
            wait = math.ceil(missing / self._per_second)
            raise TooManyRequests("Too many requests come from this address.", retry_after=wait)

    def take(self, client: str) -> None:
        """Take one token, even if there is none."""
        full_at = max(self._full_at.pop(client, 0.0), self._clock()) + 1 / self._per_second
        self._full_at[client] = min(full_at, self._clock() + self._burst / self._per_second)
        if len(self._full_at) > MAX_CLIENTS:
            del self._full_at[next(iter(self._full_at))]


class ConnectionLimit:
    """How many connections each client address has open, of ``maximum``; 0: any number."""

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum or math.inf
        self._open: Counter[str] = Counter()

    def open(self, client: str) -> TooManyRequests | None:
        """Count one more, also where it is one too many; ``close`` is called for each."""
        self._open[client] += 1
        if self._open[client] <= self._maximum:
            return None
        return TooManyRequests(f"This address has {self._maximum} connections open already.")

    def close(self, client: str) -> None:
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]
