"""One computation at a time per key in this worker. All callers that come meanwhile share its outcome."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, KeysView
from typing import Any, Generic, TypeVar

from service.errors import DeadlineExceeded, NoWaiters

R = TypeVar("R")
T = TypeVar("T")


LATEST_SECONDS = 0.01
"""How late a deadline may be noticed."""


class Deadlines:
    """Of all that wait for a future. One timer serves them: a timer costs ten times as much as an entry here, and
    hardly any deadline is ever reached."""

    def __init__(self) -> None:
        # Kept, because asyncio asks the kernel for the process's id whenever it is asked for the running loop.
        self._loop = asyncio.get_running_loop()
        self._due: dict[asyncio.Future[Any], float] = {}
        self._next = math.inf
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, future: asyncio.Future[T], until: float) -> T:
        """The future's result. When the loop's clock reads ``until``, the future fails with DeadlineExceeded."""
        self._due[future] = until
        if until < self._next:
            self._set_timer(until)
        try:
            return await future
        finally:
            del self._due[future]

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next, self._timer = at, self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._next, now = math.inf, self._loop.time()
        for future in [future for future, until in self._due.items() if until <= now and not future.done()]:
            future.set_exception(DeadlineExceeded())
        first = min((until for until in self._due.values() if until > now), default=math.inf)
        if first < math.inf:
            self._set_timer(max(first, now + LATEST_SECONDS))


class Call(Generic[T]):
    """One flight under way. ``waiters``: how many callers wait for it now."""

    __slots__ = ("_futures", "waiters")

    def __init__(self) -> None:
        self.waiters = 0
        self._futures: list[asyncio.Future[T]] = []

    def join(self, future: asyncio.Future[T]) -> None:
        """One waiter more, whose future gets the outcome. Its end, or its cancellation, ends only this waiting."""
        self._futures.append(future)
        self.waiters += 1

    def land(self, result: T) -> None:
        """Give the outcome to all waiters."""
        for future in self._awaited():
            future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Raise the error in all waiters."""
        for future in self._awaited():
            future.set_exception(error)

    def cancel(self) -> None:
        """End all waiting."""
        for future in self._awaited():
            future.cancel()

    def _awaited(self) -> list[asyncio.Future[T]]:
        """The futures whose waiters were not cancelled."""
        return [future for future in self._futures if not future.done()]


class SingleFlight:
    """The flights of one worker, to be made and used on one event loop. Their tasks belong to the worker: a request
    that leaves ends none of them."""

    def __init__(self) -> None:
        self._calls: dict[Hashable, Call[Any] | None] = {}  # None: of a batch's row, which nobody has joined
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines()
        self._closed = False

    @property
    def under_way(self) -> KeysView[Hashable]:
        return self._calls.keys()

    async def do(
        self,
        key: Hashable,
        fn: Callable[[Call[T]], Coroutine[Any, Any, T]],
        precheck: Callable[[], Awaitable[T | None]] | None = None,
        seconds: float = math.inf,
    ) -> tuple[T, bool]:
        """The outcome of the key's flight, and whether this call started it. All waiters get what ``fn`` raises, and
        this one DeadlineExceeded after so many ``seconds``.

        ``precheck`` runs first, in the task of the caller that starts the flight. Where it finds an outcome, the flight
        costs no task. If that caller is cancelled meanwhile and others wait, the flight's own task prechecks again.

        1. ``fn`` sees ``call.waiters == 0`` and raises NoWaiters.   2. Before its task has ended, a caller joins.
        3. The task ends and the flight is removed. The caller wakes with NoWaiters, finds no flight, and starts one.
        """
        until = self._loop.time() + seconds
        while not self._closed:
            call: Call[T] | None = self._calls.get(key)
            led = call is None and key not in self._calls
            if call is None:
                call = self._calls[key] = Call()
            if led:
                if precheck is not None:
                    found = await self._precheck(key, call, precheck, fn)
                    if found is not None:
                        return found, True
                    if self._closed:
                        break
                self._start(key, call, fn)
            future: asyncio.Future[T] = self._loop.create_future()
            call.join(future)
            try:
                return await self._deadlines.wait(future, until), led
            except NoWaiters:
                continue
            finally:
                call.waiters -= 1
        raise asyncio.CancelledError

    def alone(self, future: asyncio.Future[T], seconds: float) -> Awaitable[T]:
        """The outcome of what is computed for one caller, who leaves by cancelling the future; raises DeadlineExceeded
        after so many ``seconds``."""
        return self._deadlines.wait(future, self._loop.time() + seconds)

    async def do_many(
        self,
        keys: Collection[Hashable],
        flying: Coroutine[Any, Any, R],
        outcome_of: Callable[[R, Any], T | None],
        seconds: float = math.inf,
    ) -> R:
        """The outcome of one flight of all these keys, none of which may be under way; raises what ``flying`` does, and
        DeadlineExceeded after so many ``seconds``.

        Who waits for one key gets what ``outcome_of`` makes of it. If that is None, it starts a flight of its own.
        """
        self._calls |= dict.fromkeys(keys)

        def ended(task: asyncio.Task[R]) -> None:
            self._tasks.discard(task)
            landed = not task.cancelled() and task.exception() is None
            for key in keys:
                if (call := self._calls.pop(key)) is None:
                    continue
                outcome = outcome_of(task.result(), key) if landed else None
                if outcome is None:
                    call.fail(NoWaiters())
                else:
                    call.land(outcome)
            _hand_on(task, own)

        own: Call[R] = Call()
        future: asyncio.Future[R] = self._loop.create_future()
        own.join(future)
        task = self._loop.create_task(flying)
        self._tasks.add(task)
        task.add_done_callback(ended)
        return await self._deadlines.wait(future, self._loop.time() + seconds)

    async def close(self) -> None:
        """Cancel the flights under way and their waiters, and return when they have ended."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        for call in filter(None, self._calls.values()):
            call.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _precheck(
        self,
        key: Hashable,
        call: Call[T],
        precheck: Callable[[], Awaitable[T | None]],
        fn: Callable[[Call[T]], Coroutine[Any, Any, T]],
    ) -> T | None:
        async def again(call: Call[T]) -> T:
            found = await precheck()
            return await fn(call) if found is None else found

        try:
            found = await precheck()
        except asyncio.CancelledError:
            if call.waiters and not self._closed:
                self._start(key, call, again)
            else:
                self._end(key, call)
            raise
        except BaseException as error:
            self._end(key, call)
            call.fail(error)
            raise
        if found is not None:
            self._end(key, call)
            call.land(found)
        return found

    def _start(self, key: Hashable, call: Call[T], fn: Callable[[Call[T]], Coroutine[Any, Any, T]]) -> None:
        def ended(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            self._end(key, call)
            _hand_on(task, call)

        task = self._loop.create_task(fn(call))
        self._tasks.add(task)
        task.add_done_callback(ended)

    def _end(self, key: Hashable, call: Call[Any]) -> None:
        if self._calls.get(key) is call:  # a flight removes only its own entry
            del self._calls[key]


def _hand_on(task: asyncio.Task[T], call: Call[T]) -> None:
    if task.cancelled():
        call.cancel()
    elif (error := task.exception()) is not None:  # read even if nobody waits, or asyncio would log it
        call.fail(error)
    else:
        call.land(task.result())
