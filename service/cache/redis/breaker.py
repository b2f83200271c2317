"""The circuit breaker: after three failures in a row Redis gets no requests until it answers a PING."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

from service.errors import ConfigurationError, StoreUnavailable

State: TypeAlias = Literal["up", "read-only", "down"]
"""``read-only``: Redis answers, and refuses to write."""

FAILURES = 3
PING_SECONDS = 1.0
WRITE_PAUSE_SECONDS = 5.0
SAME_STATE_SECONDS = 60.0
"""The shortest time between two reports of the same state with different reasons."""


class Breaker:
    """Open (``down``) from the start, until ``probe`` gets the first PONG.

    ``ping`` returns why Redis refuses to write, or an empty text. It raises StoreUnavailable, or ConfigurationError for
    an unsupported Redis. ``on_change`` is called with each state and its reason, also for the first failure to connect.
    ``closed``: Redis may be asked. ``failures``: in a row.
    """

    def __init__(
        self,
        ping: Callable[[], Awaitable[str]],
        on_change: Callable[[State, str], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.state: State = "down"
        self.closed = self.writable = False
        self.failures = 0
        self._ping = ping
        self._on_change = on_change
        self._clock = clock
        self._sleep = sleep
        self._reason: str | None = None
        self._told_at = -math.inf
        self._not_up = asyncio.Event()
        self._not_up.set()
        self._writes_from = clock()

    def failed(self, reason: str) -> None:
        self.failures += 1
        if self.failures >= FAILURES and self.closed:
            self._become("down", reason)

    def pause_writes(self, reason: str, seconds: float = WRITE_PAUSE_SECONDS) -> None:
        """Redis is full or read-only: no writes for so long, and until a PING finds that it takes them. Reads go on."""
        self._writes_from = self._clock() + seconds
        if self.closed:
            self._become("read-only", reason)

    async def probe(self) -> None:
        """Send one PING and take the state from its answer. Raises ConfigurationError."""
        try:
            refusal = await self._ping()
        except StoreUnavailable as error:
            if not self.closed:
                self._become("down", str(error))
            return
        self.failures = 0  # those from before this PONG no longer count
        self._become("read-only" if refusal else "up", refusal)

    async def watch(self) -> None:
        """Probe once a second for as long as Redis is not up. Runs until cancelled."""
        while True:
            await self._not_up.wait()
            await self._sleep(PING_SECONDS)
            if self.closed and self._clock() < self._writes_from:
                continue
            try:
                await self.probe()
            except ConfigurationError as error:
                self._become("down", str(error))

    def _become(self, state: State, reason: str) -> None:
        """Report a new state, and at times another reason for the same state: a server that starts may refuse, say."""
        now = self._clock()
        is_news = reason != self._reason and now - self._told_at >= SAME_STATE_SECONDS
        if state == self.state and not is_news and self._reason is not None:
            return
        self.state, self._reason, self._told_at = state, reason, now
        self.closed, self.writable = state != "down", state == "up"
        if state == "up":
            self._not_up.clear()
        else:
            self._not_up.set()
        self._on_change(state, reason)
