"""Time that is Redis's, not this process's own: a timeout that pauses with the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

STEP_SECONDS = 0.01
GRACE_SECONDS = 0.02


@asynccontextmanager
async def deadline(seconds: float) -> AsyncIterator[Callable[[], float]]:
    """As ``asyncio.timeout``, but what a pause of the loop takes counts as one step of 10 ms. Gives the time counted.

    A burst of requests, a busy machine or SIGSTOP keep the loop from noticing a reply that has long arrived. That is
    not Redis's doing, and must neither end the waiting nor use up what Redis may cost a request.
    """
    loop = asyncio.get_running_loop()
    counted, since = 0.0, time.monotonic()  # uvloop's own clock moves in milliseconds
    stride = min(STEP_SECONDS, seconds)
    timer: asyncio.TimerHandle

    def spent() -> float:
        return counted + min(STEP_SECONDS, time.monotonic() - since)

    def step() -> None:
        nonlocal counted, since, stride, timer
        now = time.monotonic()
        late = now - since - stride > GRACE_SECONDS
        counted, since = counted + stride, now
        stride = min(STEP_SECONDS, seconds - counted)
        if stride > 0:
            timer = loop.call_later(stride, step)
        else:
            # asyncio runs a timer that is due before the task that a reply has just woken: look once more.
            scope.reschedule(loop.time() + (GRACE_SECONDS if late else 0))

    async with asyncio.timeout(None) as scope:
        timer = loop.call_later(stride, step)
        try:
            yield spent
        finally:
            timer.cancel()
