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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from service.errors import DeadlineExceeded, DeviceLost, NoWaiters, Overloaded, PredictionFailed, ServiceError
from service.inference.model_thread import ModelThreads
from service.inference.predictor import Outcome, Prediction, Predictor, compute
from service.logs import FloodLog

Wanted: TypeAlias = Callable[[], bool]

LONGEST_RETRY_SECONDS = 60
FLOOD_SECONDS = 60.0

NEARLY = 0.75
"""The least size of a second batch, as a share of what is under way. Clients that come back in turns form two groups of
different sizes. At 1.0 the smaller group would always wait for the larger one."""

logger = logging.getLogger(__name__)


class Computed(NamedTuple):
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


@dataclass(slots=True, eq=False)
class _Batch:
    items: list[_Item]
    started: float


@dataclass(slots=True, eq=False)
class Reservation:
    """``places``: those that are not taken yet."""

    places: int


class Batcher:
    """Owns a thread for each of the predictor's slots, and only these threads call ``predict``; where the predictor
    has ``rows_on_loop``, the event loop does, one batch in a turn. Create, use and close a batcher on one event loop.

    ``max_queue_size``: most items that wait while a batch is computed. ``clock``: in seconds; deadlines are readings of
    it. ``observe``: is told the size and the seconds of each batch. ``lost``: is called when the predictor's device is.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_batch_size: int,
        max_queue_size: int,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
        lost: Callable[[], None] = lambda: None,
        name: str = "model",
    ) -> None:
        self.max_batch_size: int = min(max_batch_size, getattr(predictor, "chunk", max_batch_size))
        self._max_queue_size = max_queue_size
        self._clock = clock
        self._observe = observe
        self._lost = lost
        self._name = name
        self._compute = partial(compute, predictor.predict, told=self._told)
        self._flood = FloodLog(logger, "A call of a model failed, though no input fails alone.", FLOOD_SECONDS)
        self._loop = asyncio.get_running_loop()
        self._slots: int = getattr(predictor, "slots", 1)
        self.rows_on_loop: int = getattr(predictor, "rows_on_loop", 0)
        self._threads = ModelThreads(self._compute, name, 0 if self.rows_on_loop else self._slots)
        self._single: deque[_Item] = deque()
        self._bulk: deque[_Item] = deque()
        self._reservations: set[Reservation] = set()
        self._computing: set[_Batch] = set()
        self._will_dispatch = False
        self._batch_seconds = 0.0
        self._closing = False
        self._at_rest = asyncio.Event()

    @property
    def queued(self) -> int:
        """How many items wait to be dispatched."""
        return len(self._single) + len(self._bulk)

    @property
    def idle(self) -> bool:
        """Whether nothing is computed and nothing waits."""
        return not (self._computing or self.queued)

    def submit(
        self, payload: bytes, *, wanted: Wanted, deadline: float, reservation: Reservation | None = None
    ) -> asyncio.Future[Computed]:
        """Queue one item; raises Overloaded. The future has DeadlineExceeded or NoWaiters at dispatch, or its error.

        ``wanted`` is called once, at dispatch. An item that nobody wants is dropped; a dispatched item is finished.
        """
        # After close no place counts: what is queued then would never be answered.
        if reservation is not None and reservation.places and not self._closing:
            reservation.places -= 1
            lane = self._bulk
        else:
            self._admit(1)
            lane = self._single
        item = _Item(payload, wanted, deadline, self._clock(), self._loop.create_future())
        lane.append(item)
        self._dispatch_soon()
        return item.done

    def compute_at_once(self, payloads: Sequence[bytes]) -> list[Outcome]:
        """The outcomes of one batch, of a predictor that runs on the loop.

        Nobody waits for what is over in this turn of the loop, so it needs no place in the queue.
        """
        if not payloads:
            return []
        started = self._clock()
        outcomes = self._compute(payloads)
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
        self._fail([], Overloaded("The service is shutting down."))
        # No item can arrive while this waits: _admit refuses from here on.
        try:
            if self._computing:
                await self._at_rest.wait()
        finally:
            self._threads.stop()
            self._flood.close()

    def give_up(self, longest: float) -> bool:
        """Whether a call takes longer than ``longest`` seconds. Then it counts as hanging: all waiting items fail, and
        new ones are refused."""
        now = self._clock()
        if all(now - batch.started <= longest for batch in self._computing):
            return False
        self._closing = True
        hanging = [item for batch in self._computing for item in batch.items]
        self._fail(hanging, Overloaded("A call of the model hangs; its worker is being replaced."))
        self._computing.clear()
        self._at_rest.set()
        return True

    def _admit(self, count: int) -> None:
        if count and self._closing:
            raise Overloaded("The service is shutting down.")
        # While nothing is computed, a batch of items is dispatched in the next turn, so it does not count as waiting.
        room = self._max_queue_size + (0 if self._computing else self.max_batch_size)
        reserved = sum(map(attrgetter("places"), self._reservations))
        if count and self.queued + reserved + count > room:
            batches = 1 + math.ceil(self.queued / self.max_batch_size)
            seconds = max(1, min(LONGEST_RETRY_SECONDS, math.ceil(batches * self._batch_seconds)))
            raise Overloaded("Too many predictions wait already.", retry_after=seconds)

    def _dispatch_soon(self) -> None:
        """In the next turn of the loop, so that what this turn brings travels together."""
        if self.queued and not self._will_dispatch:
            self._will_dispatch = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Compute a batch, if a slot is free and enough waits. If not, an arrival or the end of a batch calls again."""
        self._will_dispatch = False
        under_way = sum(len(batch.items) for batch in self._computing)
        if len(self._computing) == self._slots or self.queued < NEARLY * under_way:
            return
        batch = _Batch([], self._clock())
        try:
            self._take(batch)
        except Exception:
            logger.exception("Dispatching to %s failed.", self._name)
            self._fail(batch.items, PredictionFailed())
            return
        if batch.items:
            self._start(batch)
            self._dispatch_soon()  # there may be another slot

    def _take(self, batch: _Batch) -> None:
        """Take up to ``max_batch_size`` items that are still worth computing, singles and bulk in turn."""
        lane, other, items = self._single, self._bulk, batch.items
        while len(items) < self.max_batch_size and (lane or other):
            if lane:
                # On the list before anything can raise, because an item on no list is never answered.
                items.append(lane.popleft())
                if not self._still_worth(items[-1], batch.started):
                    items.pop()
            lane, other = other, lane

    def _still_worth(self, item: _Item, now: float) -> bool:
        if item.done.done():
            return False
        if now >= item.deadline:
            item.done.set_exception(DeadlineExceeded("The model was busy until the deadline."))
        elif not item.wanted():
            item.done.set_exception(NoWaiters())
        return not item.done.done()

    def _start(self, batch: _Batch) -> None:
        """Dispatched work is finished, even if nobody waits any more."""
        payloads = [item.payload for item in batch.items]
        self._computing.add(batch)
        if self.rows_on_loop:
            self._end(batch, self._compute(payloads))
        else:
            self._threads.run(payloads).add_done_callback(lambda done: self._end(batch, done.result()))

    def _end(self, batch: _Batch, outcomes: list[Outcome]) -> None:
        if batch not in self._computing:  # it was given up
            return
        self._computing.discard(batch)
        self._dispatch_soon()
        seconds = self._clock() - batch.started
        self._batch_seconds = seconds if not self._batch_seconds else 0.8 * self._batch_seconds + 0.2 * seconds
        for item, outcome in zip(batch.items, outcomes, strict=True):
            if item.done.done():
                continue
            if isinstance(outcome, bytes):
                item.done.set_result(Computed(outcome, batch.started - item.queued_at, seconds))
            else:
                item.done.set_exception(outcome)
                if isinstance(outcome, DeviceLost):
                    self._lost()
        if self._closing and not self._computing:
            self._at_rest.set()
        self._observe(len(batch.items), seconds)

    def _told(self, error: BaseException) -> None:
        """Called in the model's thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(lambda: self._flood.add(model=self._name, error=f"{error!r:.200}"))

    def _fail(self, taken: Sequence[_Item], error: ServiceError) -> None:
        """Answer these items and all that wait with an error."""
        for item in (*taken, *self._single, *self._bulk):
            if not item.done.done():
                item.done.set_exception(error)
        self._single.clear()
        self._bulk.clear()
