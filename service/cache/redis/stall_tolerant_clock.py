"""Time that is Redis's, not this process's own: a clock that pauses with the event loop, and deadlines by it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, TypeVar

STEP_SECONDS = 0.01
PAUSE_SECONDS = 0.03
"""A step that took longer than this was a pause of the loop."""

MOST_SECONDS = 0.015
"""What one step counts at most, however long it took."""

T = TypeVar("T")


class StallTolerantClock:
    """Reads how long the event loop has been turning while somebody waited, in seconds; a pause counts as a step.

    One per event loop. A burst of requests, a busy machine or SIGSTOP keep the loop from noticing a reply that has long
    arrived. That is not Redis's doing, and must neither end the waiting nor use up what Redis may cost a request.

    One timer for all who wait: their deadlines are some steps away, and hardly any of them is ever reached. With nobody
    waiting there is none: waking the loop would take a core from the threads of a network.
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
        # Not the loop's own clock: uvloop's stands still within one turn, and moves in milliseconds.
        return self._counted + min(MOST_SECONDS, time.monotonic() - self._since)

    async def wait(self, future: asyncio.Future[T], until: float) -> T:
        """The result of the future, which nobody else may be waiting for; raises TimeoutError, a step late at most.

        A future has then failed, and a task is cancelled.
        """
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
            # asyncio runs its timers before it reads what has arrived meanwhile: look at the next step. Once: a loop
            # whose every turn is a pause must not wait for ever.
            return
        for future in [future for future, until in self._due.items() if until <= self._counted]:
            del self._due[future]
            self._expire(future)
