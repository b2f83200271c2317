"""Automatic pipelining: what is asked of Redis in one turn of the event loop shares one round trip.

The deadlines of round trips and of requests are here as well, with the clock for them.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from itertools import accumulate, islice, repeat, takewhile
from operator import itemgetter
from typing import Any, Generic, TypeGuard, TypeVar

from service.cache.redis.scripts import PUT, READ, Command, Invocation, Script
from service.errors import StoreUnavailable

GATHER_SECONDS = 0.005
"""The longest that items gather for a round trip while another one is under way."""

ALLOWANCE_SECONDS = 0.15
"""The longest that Redis may keep one request waiting, over all its round trips."""

ROUND_TRIP_SECONDS = 0.1
LONGEST_SECONDS = 0.14
"""Deadlines of one round trip: from its start, and from when its first item was asked for."""

SHORTEST_SECONDS = 0.04
"""The least time for a round trip: its items may have waited because this worker was busy."""


STEP_SECONDS = 0.01
"""How often the clock looks at its deadlines."""
PAUSE_SECONDS = 0.03
"""A step that takes longer is a pause of the event loop."""

MOST_SECONDS = 0.015
"""The most that one step counts, however long it takes."""

JOINED = (READ, PUT)
"""Scripts that run once for all of a round trip's items, with the keys and the arguments of each."""

Item = TypeVar("Item")
Reply = TypeVar("Reply")
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


class PendingReply(asyncio.Future[Reply]):
    """The reply to come. ``spent``: seconds from the round trip's start to its end; None until it has ended."""

    clock: StallTolerantClock
    spent: float | None = None


class DeadlineBudget:
    """How many seconds Redis may still keep one request waiting, who waits for ``seconds`` at most."""

    __slots__ = ("_given", "left")

    def __init__(self, seconds: float = math.inf) -> None:
        self._given = self.left = seconds if seconds < ALLOWANCE_SECONDS else ALLOWANCE_SECONDS

    @property
    def spent(self) -> float:
        """How long Redis has kept the request waiting."""
        return self._given - self.left

    async def wait(self, reply: PendingReply[Reply]) -> Reply:
        """The reply; raises StoreUnavailable past the budget. Only the waiting ends then, never the command.

        The budget pays for the round trip, but not for this worker's delay before it is sent or its reply is read.
        """
        if self.left <= 0 and not reply.done():
            reply.cancel()  # most likely it has not been sent yet, and now never is
            raise StoreUnavailable("Redis may cost this request no more time")
        started = reply.clock.now()
        try:
            return await reply.clock.wait(reply, started + self.left)
        except TimeoutError:
            raise StoreUnavailable("Redis has used up the time it may cost a request") from None
        finally:
            self.left -= reply.clock.now() - started if reply.spent is None else reply.spent


class AutoPipeline(Generic[Item, Reply]):
    """Gathers items, and sends them in a bounded number of round trips, in tasks of its own.

    ``execute(items, seconds)`` returns one reply per item, in order, within so many seconds. A reply may be
    StoreUnavailable; raised, it is the reply to all. The first round trip starts at once. During a round trip items
    gather, because one costs as much CPU as a dozen items. A slow Redis gets several round trips at a time.
    Together the items of one weigh no more than ``size``, unless one alone does.
    """

    def __init__(
        self,
        execute: Callable[[list[Item], float], Coroutine[Any, Any, Sequence[Reply | StoreUnavailable]]],
        max_in_flight: int,
        size: int,
        clock: StallTolerantClock,
        weigh: Callable[[Item], int] = lambda item: 1,
    ) -> None:
        self._execute = execute
        self._loop = asyncio.get_running_loop()
        self._weigh = weigh
        self._clock = clock
        self._max_in_flight = self._free = max_in_flight
        self._size = size
        self._waiting: list[tuple[Item, float, PendingReply[Reply]]] = []
        self._scheduled: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, item: Item) -> PendingReply[Reply]:
        """The future belongs to the caller. Cancelling it does not end the round trip."""
        future: PendingReply[Reply] = PendingReply(loop=self._loop)
        future.clock = self._clock
        self._waiting.append((item, self._clock.now(), future))
        if self._scheduled is None and self._free:
            loop, alone = self._loop, self._free == self._max_in_flight
            self._scheduled = loop.call_soon(self._flush) if alone else loop.call_later(GATHER_SECONDS, self._flush)
        return future

    def tell(self, item: Item, failed: Callable[[], None] = lambda: None) -> None:
        """As ``ask``, for who does not wait. ``failed``: it is not known whether Redis has carried the command out."""
        self.ask(item).add_done_callback(lambda reply: failed() if reply.cancelled() or reply.exception() else None)

    async def close(self) -> None:
        """Wait for all round trips and items. Their deadlines bound the wait."""
        while self._waiting or self._tasks:
            self._flush()
            await asyncio.wait(self._tasks)
            await asyncio.sleep(0)  # for the tasks' callbacks

    def _flush(self) -> None:
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        while self._waiting and self._free:
            weights = accumulate(map(self._weigh, map(itemgetter(0), self._waiting)))
            count = len([*takewhile(self._size.__ge__, weights)]) or 1
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            self._free -= 1
            task = asyncio.create_task(self._round_trip(batch))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free += 1
        self._flush()
        task.result()  # raises only for a defect, for the event loop's exception handler to report

    async def _round_trip(self, batch: list[tuple[Item, float, PendingReply[Reply]]]) -> None:
        wanted = [(item, future) for item, _, future in batch if not future.done()]
        if not wanted:
            return
        started = self._clock.now()
        seconds = min(ROUND_TRIP_SECONDS, max(SHORTEST_SECONDS, LONGEST_SECONDS - (started - batch[0][1])))
        try:
            replies = await self._execute([item for item, _ in wanted], seconds)
            if len(replies) != len(wanted):
                raise StoreUnavailable(f"{len(replies)} replies to {len(wanted)} questions")
        except Exception as error:
            for _, future in wanted:  # whatever the error is, nobody may be left waiting
                _fail(future, StoreUnavailable(str(error)))
            if isinstance(error, StoreUnavailable):
                return
            raise
        spent = self._clock.now() - started
        for (_, future), reply in zip(wanted, replies, strict=True):
            if isinstance(reply, StoreUnavailable):
                _fail(future, reply)
            elif not future.done():
                future.spent = spent
                future.set_result(reply)


def _fail(future: asyncio.Future[Any], error: StoreUnavailable) -> None:
    if not future.done():
        future.set_exception(error)


def weight(item: Command) -> int:
    """How many keys Redis looks up for it."""
    return len(item.keys) if _joins(item) else 1


def join(items: Sequence[Command]) -> list[Command]:
    """All reads become one command, and all writes another. These come first."""
    joined: list[Command] = []
    for script in JOINED:
        if alike := _alike(items, script):
            keys = [key for item in alike for key in item.keys]
            joined.append(Invocation(script, keys, [argument for item in alike for argument in item.arguments]))
    return [*joined, *(item for item in items if not _joins(item))]


def split(items: Sequence[Command], replies: Sequence[Any]) -> list[Any]:
    """Each item's part of the replies to what ``join`` has made of them."""
    rest, parts = iter(replies), dict[Script | None, Iterator[Any]]()
    for script in JOINED:
        if alike := _alike(items, script):
            parts[script] = _parts(next(rest), [len(item.keys) for item in alike])
    return [next(parts.get(item.script if isinstance(item, Invocation) else None, rest)) for item in items]


def _joins(item: Command) -> TypeGuard[Invocation]:
    return isinstance(item, Invocation) and item.script in JOINED


def _alike(items: Sequence[Command], script: Script) -> list[Invocation]:
    return [item for item in items if isinstance(item, Invocation) and item.script is script]


def _parts(reply: list[Any] | StoreUnavailable, sizes: Sequence[int]) -> Iterator[list[Any] | StoreUnavailable]:
    """So many times what was found for a key: value (or None), and milliseconds left of it."""
    if isinstance(reply, list) and len(reply) == 2 * sum(sizes):
        pairs = zip(reply[::2], reply[1::2], strict=True)
        return (list(islice(pairs, size)) for size in sizes)
    return repeat(reply if isinstance(reply, StoreUnavailable) else StoreUnavailable("a reply of another length"))
