"""One computation at a time per key in this worker; everybody who asks meanwhile shares its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Abandoned(Exception):
    """The flight was dropped: nobody was waiting for it any more, or who glanced for all has left."""


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

    def land(self, result: T) -> None:
        """Hand the outcome to all who wait."""
        for future in self._awaited():
            future.set_result(result)

    def fail(self, error: BaseException) -> None:
        for future in self._awaited():
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)

    def _awaited(self) -> list[asyncio.Future[T]]:
        """Without those whose waiter was cancelled."""
        return [future for future in self._futures if not future.done()]


class Flights:
    """The flights of one worker. Their tasks belong to it: a request that leaves ends none of them."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def do(
        self,
        key: Hashable,
        fn: Callable[[Call[T]], Coroutine[Any, Any, T]],
        glance: Callable[[], Awaitable[T | None]] | None = None,
    ) -> tuple[T, bool]:
        """The outcome of the key's flight, and whether this call started it. Raises what ``fn`` raises, for all alike.

        ``glance`` comes first, in this call's own task, which is all that a flight costs where it finds something.

        1. fn sees ``call.waiters == 0`` and raises Abandoned.   2. Before its task has ended, somebody joins.
        3. The task ends: the flight is removed, then the joiner is woken with Abandoned, finds none, and starts anew.
        """
        while True:
            call: Call[T] | None = self._calls.get(key)
            led = call is None
            if call is None:
                call = self._calls[key] = Call()
                if glance is not None:
                    found = await self._glance(key, call, glance)
                    if found is not None:
                        return found, True
                self._start(key, call, fn)
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

    async def _glance(self, key: Hashable, call: Call[T], glance: Callable[[], Awaitable[T | None]]) -> T | None:
        try:
            found = await glance()
        except BaseException:
            self._end(key, call)
            call.fail(Abandoned())
            raise
        if found is not None:
            self._end(key, call)
            call.land(found)
        return found

    def _start(self, key: Hashable, call: Call[T], fn: Callable[[Call[T]], Coroutine[Any, Any, T]]) -> None:
        def land(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            self._end(key, call)
            # Its exception is read in any case, or asyncio would log it.
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            if error is not None:
                call.fail(error)
            else:
                call.land(task.result())

        task = asyncio.create_task(fn(call))
        self._tasks.add(task)
        task.add_done_callback(land)

    def _end(self, key: Hashable, call: Call[Any]) -> None:
        if self._calls.get(key) is call:  # a flight removes only its own entry
            del self._calls[key]
