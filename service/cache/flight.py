"""One computation at a time per key in this worker; everybody who asks meanwhile shares its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Abandoned(Exception):
    """Raised by the function of a flight that dropped its work because nobody was waiting for it any more."""


class Call(Generic[T]):
    """One flight under way. ``waiters``: how many are waiting for it now."""

    __slots__ = ("_futures", "waiters")

    def __init__(self) -> None:
        self.waiters = 0
        self._futures: list[asyncio.Future[T]] = []

    async def join(self) -> T:
        """Wait for the outcome. Cancelling this ends only this waiting: the future is the waiter's own."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._futures.append(future)
        self.waiters += 1
        try:
            return await future
        finally:
            self.waiters -= 1

    def land(self, task: asyncio.Task[T]) -> None:
        """Hand the task's outcome to all who wait; reads its exception in any case, or asyncio would log it."""
        error = None if task.cancelled() else task.exception()
        for future in self._futures:
            if future.done():  # its waiter was cancelled
                continue
            if task.cancelled():
                future.cancel()
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(task.result())


class Flights:
    """The flights of one worker. Their tasks belong to it: a request that leaves ends none of them."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def do(self, key: Hashable, fn: Callable[[Call[T]], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The outcome of the key's flight, and whether this call started it. Raises what ``fn`` raises, for all alike.

        1. fn sees ``call.waiters == 0`` and raises Abandoned.   2. Before its task has ended, somebody joins.
        3. The task ends: the flight is removed, then the joiner is woken with Abandoned, finds none, and starts anew.
        """
        while True:
            call: Call[T] | None = self._calls.get(key)
            led = call is None
            if call is None:
                call = self._start(key, fn)
            try:
                return await call.join(), led
            except Abandoned:
                continue

    async def close(self) -> None:
        """Cancel the flights under way, and whoever still waits for them, and see them end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, key: Hashable, fn: Callable[[Call[T]], Coroutine[Any, Any, T]]) -> Call[T]:
        call: Call[T] = Call()

        def land(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            if self._calls.get(key) is call:  # a flight removes only its own entry
                del self._calls[key]
            call.land(task)

        task = asyncio.create_task(fn(call))
        self._tasks.add(task)
        self._calls[key] = call
        task.add_done_callback(land)
        return call
