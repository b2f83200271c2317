"""The data path: key, L1, flight, L2, lease, batcher. Nothing else.

key ─ L1 ─hit──────────────────────────────────────────────► answer
       └miss─ flight ─follower── waits ────────────────────► answer
                └leader─ L2 ─hit── L1 ─────────────────────► answer
                           └miss─ lease ─ batcher ─ L2 ────► answer
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from service.asking import PLAIN, Answer, Ask, Model, Wants
from service.cache.entry import born
from service.cache.flight import Abandoned, Call, Flights
from service.cache.generations import VALID_SECONDS
from service.cache.joined import Allowance
from service.cache.keys import cache_key
from service.cache.lease import TooManyClaims
from service.cache.memory import MemoryCache
from service.cache.redis import L2
from service.config import Settings
from service.deadlines import Deadlines
from service.errors import (
    NotCached,
    OnlyIfCached,
    Overloaded,
    PredictionFailed,
    ServiceError,
    StoreUnavailable,
)
from service.inference.batcher import Unwanted
from service.inference.predictor import Question
from service.metrics import Metrics

logger = logging.getLogger(__name__)

LEASE_COST_SECONDS = 0.001
"""What a lease costs: two round trips to Redis and a little waiting. Models cheaper than that do without one."""

NO_GENERATION = bytes(8)

Step: TypeAlias = Callable[[Ask, Call[Answer]], Coroutine[Any, Any, Answer]]
Glance: TypeAlias = Callable[[], Awaitable[Answer | None]]


class Pipeline:
    """``observe`` is told of every answer."""

    def __init__(
        self,
        settings: Settings,
        l1: MemoryCache,
        l2: L2,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
        observe: Callable[[Ask, Answer], None] = lambda ask, answer: None,
    ) -> None:
        self.settings, self.l1, self.l2, self.metrics = settings, l1, l2, metrics
        self._clock, self._random = clock, random
        self._observe = observe
        self._flights, self._fresh_flights = Flights(), Flights()
        self._deadlines = Deadlines(settings.deadline_seconds)

    async def aclose(self) -> None:
        await self._flights.close()
        await self._fresh_flights.close()

    def key(self, model: Model, question: Question) -> str:
        return self._ask(model, question).key

    def answer(self, model: Model, question: Question, wants: Wants = PLAIN) -> Coroutine[Any, Any, Answer]:
        """The answer to one question; raises ServiceError."""
        ask = self._ask(model, question)
        return self._counted(ask, self._answer(ask, wants, partial(self._in_l2, ask)))

    async def answer_many(
        self, model: Model, questions: Sequence[Question | ServiceError], wants: Wants = PLAIN
    ) -> list[Answer | ServiceError]:
        """An answer, or the row's own error, for each question in order; duplicates are folded into one.

        All rows that must be computed are admitted to the queue or none: raises Overloaded.
        """
        asks: dict[bytes, Ask] = {}
        for question in questions:
            # Of duplicates one that has a payload: the other may be a digest alone.
            if isinstance(question, Question) and (question.payload is not None or question.identity not in asks):
                asks[question.identity] = self._ask(model, question)
        found = await self._found(list(asks.values()), wants)
        missing = [ask for ask in asks.values() if ask.key not in found and ask.may_be_computed(wants)]
        with model.batcher.reserve(len(missing)) as reservation:
            for ask in missing:
                ask.reservation = reservation
            answered = await asyncio.gather(
                *(self._counted(ask, self._row(ask, wants, found.get(ask.key))) for ask in asks.values()),
                return_exceptions=True,
            )
        by_identity = dict(zip(asks, answered, strict=True))
        return [_own(by_identity[q.identity] if isinstance(q, Question) else q) for q in questions]

    async def _answer(self, ask: Ask, wants: Wants, glance: Glance | None = None) -> Answer:
        if wants.reads:
            found = self._in_l1(ask)
            if found is None:
                found = await (self._fly(ask, self._lead, glance) if ask.may_be_computed(wants) else self._in_l2(ask))
            if found is not None and self._suits(found, wants):
                return found
        return await self._anew(ask, wants)

    async def _anew(self, ask: Ask, wants: Wants) -> Answer:
        """Nothing stored will do."""
        if not ask.may_be_computed(wants):
            if not wants.compute:
                raise OnlyIfCached
            raise NotCached("Nothing is cached for this digest: POST the image itself.")
        if not wants.store:
            return replace(await self._deadlines.within(self._compute(ask)), fresh=True)
        return await self._fly(ask, self._refresh, fresh=True)

    # The steps of a flight.

    async def _lead(self, ask: Ask, call: Call[Answer]) -> Answer:
        """Compute, once in the cluster where that is worth a lease, and store."""
        if not (ask.model.leased and ask.shared):
            return await self._store(ask, await self._compute(ask, call))
        computed: Answer | None = None

        async def compute() -> tuple[bytes, float]:
            nonlocal computed
            computed = await self._compute(ask, call)
            return computed.entry.value, self.settings.ttl_seconds

        try:
            resolved = await self.l2.once(ask.key, compute, ask.allowance, ask.model.is_answer)
        except TooManyClaims:
            raise PredictionFailed("This input has ended three workers; it is not tried again for a minute.") from None
        if computed is None:
            return Answer(ask.key, resolved.entry, "l2" if resolved.source == "stored" else "collapsed", stored=True)
        computed.entry, computed.stored = resolved.entry, resolved.stored
        return self._keep_here(ask, computed) if resolved.down else computed

    async def _refresh(self, ask: Ask, call: Call[Answer]) -> Answer:
        """No look-up and no lease, and what is stored is overwritten."""
        return await self._store(ask, replace(await self._compute(ask, call), fresh=True), overwrite=True)

    # What the steps are made of.

    def _in_l1(self, ask: Ask) -> Answer | None:
        entry = self.l1.get(ask.key)
        return None if entry is None else Answer(ask.key, entry, "l1")

    async def _in_l2(self, ask: Ask) -> Answer | None:
        if not ask.shared:
            return None
        try:
            entry = await self.l2.get(ask.key, ask.allowance, ask.model.is_answer)
        except StoreUnavailable:
            return None
        if entry is None:
            return None
        # Its second use at least: only now does it enter L1, so that a flood of unique keys never does.
        self.l1.put(ask.key, entry, self.settings.l1_max_seconds)
        return Answer(ask.key, entry, "l2")

    async def _fly(self, ask: Ask, step: Step, glance: Glance | None = None, fresh: bool = False) -> Answer:
        """Once at a time per key in this worker, whose flight it is: a client that leaves ends it for nobody else."""
        started = self._clock()

        async def fly(call: Call[Answer]) -> Answer:
            try:
                answer = await step(ask, call)
            except Unwanted:
                raise Abandoned from None
            answer.cache_seconds = self._clock() - started - answer.queue_seconds - answer.model_seconds
            return answer

        flights = self._fresh_flights if fresh else self._flights
        answer, led = await self._deadlines.within(flights.do(ask.key, fly, glance))
        return answer if led or answer.hit else replace(answer, source="collapsed")

    async def _compute(self, ask: Ask, call: Call[Answer] | None = None) -> Answer:
        """Raises Unwanted when everybody had left before its turn came."""
        assert ask.question.payload is not None
        try:
            computed = await ask.model.batcher.submit(
                ask.question.payload,
                wanted=lambda: call is None or call.waiters > 0,
                deadline=ask.deadline,
                reservation=ask.reservation,
            )
            if not ask.model.is_answer(computed.prediction):
                raise PredictionFailed from ValueError("the model's answer is not like that to its example")
        except PredictionFailed as error:
            logger.error("A prediction failed.", extra=_names(ask), exc_info=error.__cause__ or error)
            raise
        self.metrics.queued(ask.model.name, computed.queue_seconds)
        entry = born(computed.prediction, self.settings.ttl_seconds, self._clock(), self._random)
        return Answer(
            ask.key, entry, "computed", queue_seconds=computed.queue_seconds, model_seconds=computed.model_seconds
        )

    async def _store(self, ask: Ask, answer: Answer, overwrite: bool = False) -> Answer:
        """In Redis; the answer is then the one that was committed first, whatever a batch did to the last bits."""
        if not ask.shared:
            return self._keep_here(ask, answer)
        try:
            answer.entry = await self.l2.put(
                ask.key, answer.entry, overwrite=overwrite, allowance=ask.allowance, accepts=ask.model.is_answer
            )
        except StoreUnavailable:
            return self._keep_here(ask, answer)
        answer.stored = True
        if overwrite and self.l1.get(ask.key) is not None:
            self.l1.put(ask.key, answer.entry, self.settings.l1_max_seconds)
        return answer

    def _keep_here(self, ask: Ask, answer: Answer) -> Answer:
        """Without a usable Redis L1 is all there is: it admits at once, and for the whole lifetime.

        What has no generation no purge can reach: it stays for no longer than any other answer after a purge.
        """
        stay = math.inf
        if not ask.shared and self.l2.state != "off":
            stay = VALID_SECONDS - answer.queue_seconds - answer.model_seconds
        self.l1.put(ask.key, answer.entry, stay)
        answer.stored = self.l1.get(ask.key) is not None
        answer.bypassed = self.l2.state != "off"
        return answer

    async def _found(self, asks: list[Ask], wants: Wants) -> dict[str, Answer]:
        """What the caches have of a batch. The reads start in one turn of the loop, so they travel together."""
        if not wants.reads:
            return {}
        local = [self._in_l1(ask) for ask in asks]
        shared = await asyncio.gather(*(self._in_l2(a) for a, hit in zip(asks, local, strict=True) if hit is None))
        return {answer.key: answer for answer in (*local, *shared) if answer is not None}

    async def _row(self, ask: Ask, wants: Wants, found: Answer | None) -> Answer:
        if found is None:
            return await self._answer(ask, wants)
        return found if self._suits(found, wants) else await self._anew(ask, wants)

    def _suits(self, answer: Answer, wants: Wants) -> bool:
        return not answer.hit or wants.accepts(answer.entry, self._clock())

    def _ask(self, model: Model, question: Question) -> Ask:
        generation = self.l2.generation(model.name)
        key = cache_key(model.predictor.fingerprint, generation or NO_GENERATION, question.identity)
        # Now, with the key: one made before the generation was read must not reach Redis after it was.
        shared = generation is not None and self.l2.state != "off"
        return Ask(model, question, key, shared, self._clock() + self.settings.deadline_seconds, Allowance())

    async def _counted(self, ask: Ask, answering: Coroutine[Any, Any, Answer]) -> Answer:
        result, started = "failed", self._clock()
        try:
            answer = await answering
            result = answer.source
        except NotCached:
            result = "not_cached"
            raise
        except PredictionFailed:  # of each who waited for it, and in his own task: the line has his request's id
            logger.warning("A question has no answer: its prediction failed.", extra=_names(ask))
            raise
        except asyncio.CancelledError:  # its client has left: nothing has failed
            result = "cancelled"
            raise
        finally:
            self.metrics.resolved(ask.model.name, result, self._clock() - started)
        self._observe(ask, answer)
        return answer


def _names(ask: Ask) -> dict[str, str]:
    return {"model": ask.model.name, "key": ask.key}


def _own(outcome: Answer | BaseException) -> Answer | ServiceError:
    """A row's own error stays in its row; anything else is the request's."""
    if isinstance(outcome, Overloaded) or not isinstance(outcome, Answer | ServiceError):
        raise outcome
    return outcome
