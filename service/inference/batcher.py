"""The queue in front of one predictor: dispatch at once while it is idle, gather while it is busy.

There is no timer: a lone request never waits, and under load the next batch is what came while the last was computed.
A predictor with several slots gets another batch when that is nearly as large as what is under way. Smaller batches
would use the device badly.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

from service.errors import DeadlineExceeded, DeviceLost, NoWaiters, Overloaded, PredictionFailed, ServiceError
from service.inference.model_thread import ModelThreads, Outcome
from service.inference.predictor import Prediction

Wanted: TypeAlias = Callable[[], bool]

LONGEST_RETRY_SECONDS = 60

NEARLY = 0.75
"""The least size of a second batch, as a share of what is under way. Clients that come back in turns form two groups of
different sizes. At 1.0 the smaller group would always wait for the larger one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Computed:
    """``model_seconds``: the time of the whole batch that this prediction was part of."""

    prediction: Prediction
    queue_seconds: float
    model_seconds: float


@dataclass(slots=True, eq=False)
class _Item:
    payload: bytes
    wanted: Wanted
    deadline: float
    queued_at: float
    done: asyncio.Future[Computed]


class Computes(Protocol):
    """The part of a Predictor that a batcher uses; it may have ``slots`` and ``runs_on_loop``, too."""

    def predict(self, batch: Sequence[bytes]) -> Sequence[Prediction | Exception]: ...


@dataclass(slots=True, eq=False)
class Reservation:
    """``places``: those that are not taken yet."""

    places: int


class Batcher:
    """Owns a thread for each of the predictor's slots, and only these threads call ``predict``; where the predictor
    says ``runs_on_loop``, the event loop does. Create, use and close a batcher on one event loop.

    ``max_queue_size``: most items that wait while a batch is computed. ``clock``: in seconds; deadlines are readings of
    it. ``observe``: is told the size and the seconds of each batch. ``lost``: is called when the predictor's device is.
    """

    def __init__(
        self,
        predictor: Computes,
        *,
        max_batch_size: int,
        max_queue_size: int,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
        lost: Callable[[], None] = lambda: None,
        name: str = "model",
    ) -> None:
        self.max_batch_size = max_batch_size
        self._max_queue_size = max_queue_size
        self._clock = clock
        self._observe = observe
        self._lost = lost
        self._name = name
        self._loop = asyncio.get_running_loop()
        slots: int = getattr(predictor, "slots", 1)
        self.runs_on_loop: bool = getattr(predictor, "runs_on_loop", False)
        self._threads = ModelThreads(predictor.predict, name, 0 if self.runs_on_loop else slots)
        self._single: deque[_Item] = deque()
        self._bulk: deque[_Item] = deque()
        self._reservations: set[Reservation] = set()
        self._computing: dict[int, list[_Item]] = {}
        """Slot -> the batch in it. Empty slots are left out."""
        self._began: dict[int, float] = {}
        """Slot -> when its call began."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._arrived = asyncio.Event()
        self._batch_seconds = 0.0
        self._closing = False
        for slot in range(slots):
            self._start(slot)

    @property
    def queued(self) -> int:
        """How many items wait to be dispatched."""
        return len(self._single) + len(self._bulk)

    @property
    def idle(self) -> bool:
        """Whether nothing is computed and nothing waits."""
        return not (self._computing or self.queued)

    async def submit(
        self, payload: bytes, *, wanted: Wanted, deadline: float, reservation: Reservation | None = None
    ) -> Computed:
        """Queue one item and wait; raises Overloaded at once, DeadlineExceeded or NoWaiters at dispatch, or its error.

        ``wanted`` is called once, at dispatch. An item that nobody wants is dropped; a dispatched item is finished.
        """
        # After close no place counts: what is queued then would never be answered.
        if reservation is not None and reservation.places and not self._closing:
            reservation.places -= 1
            return await self._enqueue(self._bulk, payload, wanted, deadline)
        self._admit(1)
        return await self._enqueue(self._single, payload, wanted, deadline)

    def compute_at_once(self, payloads: Sequence[bytes]) -> list[Outcome]:
        """The outcomes of one batch, of a predictor that runs on the loop.

        Nobody waits for what is over in this turn of the loop, so it needs no place in the queue.
        """
        if not payloads:
            return []
        started = self._clock()
        outcomes = self._threads.compute(list(payloads))
        self._observe(len(outcomes), self._clock() - started)
        return outcomes

    @contextmanager
    def reserve(self, count: int) -> Iterator[Reservation]:
        """Places in the queue for all items of a batch request, or none: raises Overloaded.

        A dispatch takes single items and items of batch requests in turn, so a large request delays nobody by more than
        one batch.
        """
        self._admit(count)
        reservation = Reservation(count)
        self._reservations.add(reservation)
        try:
            yield reservation
        finally:
            self._reservations.discard(reservation)
            reservation.places = 0  # a task may still hold it

    async def close(self) -> None:
        """Refuse new items, fail the waiting ones, and return when the dispatched ones are answered."""
        self._closing = True
        self._fail(self._take_all(), Overloaded("The service is shutting down."))
        self._arrived.set()
        # No item can arrive while this waits: _admit refuses from here on.
        try:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        finally:
            self._threads.stop()

    def give_up(self, longest: float) -> bool:
        """Whether a call takes longer than ``longest`` seconds. Then it counts as hanging: all waiting items fail, and
        new ones are refused."""
        now = self._clock()
        if all(now - began <= longest for began in self._began.values()):
            return False
        self._closing = True
        hanging = [item for batch in self._computing.values() for item in batch]
        self._fail(
            [*hanging, *self._take_all()], Overloaded("A call of the model hangs; its worker is being replaced.")
        )
        for task in self._tasks.values():
            task.cancel()
        self._computing.clear()
        self._began.clear()
        return True

    def _admit(self, count: int) -> None:
        if count and self._closing:
            raise Overloaded("The service is shutting down.")
        # While nothing is computed, a batch of items is dispatched in the next turn, so it does not count as waiting.
        room = self._max_queue_size + (0 if self._computing else self.max_batch_size)
        reserved = sum(reservation.places for reservation in self._reservations)
        if count and self.queued + reserved + count > room:
            raise Overloaded("Too many predictions wait already.", retry_after=self._retry_after())

    def _retry_after(self) -> int:
        batches = 1 + math.ceil(self.queued / self.max_batch_size)
        return max(1, min(LONGEST_RETRY_SECONDS, math.ceil(batches * self._batch_seconds)))

    def _enqueue(self, lane: deque[_Item], payload: bytes, wanted: Wanted, deadline: float) -> asyncio.Future[Computed]:
        done: asyncio.Future[Computed] = self._loop.create_future()
        lane.append(_Item(payload, wanted, deadline, self._clock(), done))
        self._arrived.set()
        return done

    def _start(self, slot: int) -> None:
        self._tasks[slot] = self._loop.create_task(self._dispatch(slot), name=f"batcher-{self._name}")
        self._tasks[slot].add_done_callback(partial(self._supervise, slot))

    def _supervise(self, slot: int, task: asyncio.Task[None]) -> None:
        """Dispatching should end only with ``close``. If it ends otherwise, fail all items, and start it again."""
        error = None if task.cancelled() else task.exception()
        if error is None and self._closing:
            return
        logger.error("dispatching to %s ended and is started again", self._name, exc_info=error)
        self._began.pop(slot, None)
        self._fail([*self._computing.pop(slot, ()), *self._take_all()], PredictionFailed())
        if not self._closing and not self._loop.is_closed():
            self._start(slot)

    async def _dispatch(self, slot: int) -> None:
        while not self._closing:
            # When this becomes true later, a dispatcher wakes: an arrival wakes all, the end of a batch its own.
            if self.queued >= NEARLY * sum(map(len, self._computing.values())) and self._take_batch(slot):
                await self._compute(slot)
                continue
            self._arrived.clear()
            # No await lies between the look into the queue and clear(), so no item can arrive between them.
            await self._arrived.wait()

    def _take_batch(self, slot: int) -> bool:
        """Take up to ``max_batch_size`` items that are still worth computing, singles and bulk in turn."""
        lane, other, now = self._single, self._bulk, self._clock()
        batch = self._computing[slot] = []
        while len(batch) < self.max_batch_size and (lane or other):
            if lane:
                # On the list before anything can raise, because an item on no list is never answered.
                batch.append(lane.popleft())
                if not self._still_worth(batch[-1], now):
                    batch.pop()
            lane, other = other, lane
        if not batch:
            del self._computing[slot]
        return bool(batch)

    def _still_worth(self, item: _Item, now: float) -> bool:
        if item.done.done():
            return False
        if now >= item.deadline:
            item.done.set_exception(DeadlineExceeded("The model was busy until the deadline."))
        elif not item.wanted():
            item.done.set_exception(NoWaiters())
        return not item.done.done()

    async def _compute(self, slot: int) -> None:
        items, started = self._computing[slot], self._clock()
        self._began[slot] = started
        # Dispatched work is finished, even if nobody waits any more.
        outcomes = await self._threads.run([item.payload for item in items])
        seconds = self._clock() - started
        self._batch_seconds = seconds if not self._batch_seconds else 0.8 * self._batch_seconds + 0.2 * seconds
        for item, outcome in zip(items, outcomes, strict=True):
            if item.done.done():
                continue
            if isinstance(outcome, bytes):
                item.done.set_result(Computed(outcome, started - item.queued_at, seconds))
            else:
                item.done.set_exception(outcome)
                if isinstance(outcome, DeviceLost):
                    self._lost()
        del self._computing[slot], self._began[slot]
        self._observe(len(items), seconds)

    def _take_all(self) -> list[_Item]:
        items = [*self._single, *self._bulk]
        self._single.clear()
        self._bulk.clear()
        return items

    def _fail(self, items: Sequence[_Item], error: ServiceError) -> None:
        for item in items:
            if not item.done.done():
                item.done.set_exception(error)
