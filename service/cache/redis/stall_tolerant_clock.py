"""A clock for deadlines of Redis: it counts the time that Redis takes, and not the pauses of this process."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

STEP_SECONDS = 0.01
PAUSE_SECONDS = 0.03
"""A step that takes longer is a pause of the event loop."""

MOST_SECONDS = 0.015
"""The most that one step counts, however long it takes."""

T = TypeVar("T")


class StallTolerantClock:
    """Seconds that the event loop has run while somebody waited. A pause counts as one step. One clock per loop.

    A burst of requests, a busy machine or SIGSTOP keep the loop from noticing a reply that has long arrived. Redis did
    not cause this delay, so it must neither end the waiting nor use up a request's budget.

    One timer serves all waiters, because hardly any deadline is ever reached. Without waiters there is no timer: waking
    the loop a hundred times a second took a core from the threads of an image model.
    """

    def __init__(self) -> None:
        self._counted = self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._due: dict[asyncio.Future[Any], float] = {}
        self._expired: set[asyncio.Future[Any]] = set()

    def now(self) -> float:
        if self._timer is None:
            return self._counted
        # Not the loop's clock: uvloop's stands still within one turn, and counts in milliseconds.
        return self._counted + min(MOST_SECONDS, time.monotonic() - self._since)

    async def wait(self, future: asyncio.Future[T], until: float) -> T:
        """The future's result; raises TimeoutError, a step late at most. Then the future has failed, and a task is
        cancelled. Only one caller may wait for a future."""
        if future.done():
            return future.result()
        self._due[future] = until
        if self._timer is None:
            self._since, self._paused = time.monotonic(), False
            self._set_timer()
        try:
            return await future
        except asyncio.CancelledError:
            if future in self._expired:
                raise TimeoutError from None
            raise
        finally:
            self._due.pop(future, None)
            self._expired.discard(future)
            if not self._due and self._timer is not None:
                self._counted = self.now()
                self._timer.cancel()
                self._timer = None

    def _expire(self, future: asyncio.Future[Any]) -> None:
        if isinstance(future, asyncio.Task):
            self._expired.add(future)
            future.cancel()
        elif not future.done():
            future.set_exception(TimeoutError())

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(STEP_SECONDS, self._step)

    def _step(self) -> None:
        now = time.monotonic()
        took, self._since = now - self._since, now
        self._counted += min(MOST_SECONDS, took)
        self._set_timer()
        spared, self._paused = self._paused, took > PAUSE_SECONDS
        if self._paused and not spared:
            # asyncio runs timers before it reads what has arrived, so the deadlines wait for the next step. Only once:
            # else a loop whose every turn is a pause would wait for ever.
            return
        for future in [future for future, until in self._due.items() if until <= self._counted]:
            del self._due[future]
            self._expire(future)
