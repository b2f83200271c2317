"""The circuit breaker: after three failures in a row Redis is left alone until it answers a PING."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from service.errors import StoreUnavailable

FAILURES = 3
PING_SECONDS = 1.0
WRITE_PAUSE_SECONDS = 5.0


class Breaker:
    """Open from the start, until ``probe`` has heard the first PONG: nobody has seen this Redis yet."""

    def __init__(
        self,
        ping: Callable[[], Awaitable[None]],
        on_change: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ping = ping
        self._on_change = on_change
        self._clock = clock
        self._sleep = sleep
        self._failures = 0
        self._opened = asyncio.Event()
        self._opened.set()
        self._writes_from = clock()

    @property
    def closed(self) -> bool:
        """Whether Redis may be asked."""
        return not self._opened.is_set()

    @property
    def writable(self) -> bool:
        return self.closed and self._clock() >= self._writes_from

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= FAILURES and self.closed:
            self._opened.set()
            self._on_change(False)

    def succeeded(self) -> None:
        """While open this changes nothing: a reply that was still under way says less than a PONG."""
        self._failures = 0

    def pause_writes(self) -> None:
        """Redis is full or read-only: no writes for a while, reads go on."""
        self._writes_from = self._clock() + WRITE_PAUSE_SECONDS

    async def probe(self) -> None:
        """One PING; closes the breaker when Redis answers it."""
        try:
            await self._ping()
        except StoreUnavailable:
            return
        # Whoever failed while the PING was under way counts from here on anew.
        self._failures = 0
        if not self.closed:
            self._opened.clear()
            self._on_change(True)

    async def watch(self) -> None:
        """Probe once a second for as long as the breaker is open. Runs until cancelled."""
        while True:
            await self._opened.wait()
            await self._sleep(PING_SECONDS)
            await self.probe()
