"""The data path: key, L1, flight, L2, lease, batcher. Nothing else.

key ─ L1 ─hit──────────────────────────────────────────────► answer
       └miss─ flight ─follower── waits ────────────────────► answer
                └leader─ L2 ─hit── L1 ─────────────────────► answer
                           └miss─ lease ─ batcher ─ L2 ────► answer
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from service.cache.entry import Entry, new_entry
from service.cache.generations import VALID_SECONDS
from service.cache.keys import cache_key, of_tenant
from service.cache.lease import TooManyClaims
from service.cache.memory import MemoryCache
from service.cache.redis.auto_pipeline import DeadlineBudget
from service.cache.redis.l2 import L2, RedisCache
from service.cache.single_flight import Call, SingleFlight
from service.config import Settings
from service.errors import NotCached, OnlyIfCached, PredictionFailed, StoreUnavailable
from service.inference.predictor import Question
from service.lookup import DEFAULT, Answer, CacheDirectives, Lookup, Model
from service.observer import AnswerObserver, names

logger = logging.getLogger(__name__)

NO_GENERATION = bytes(8)
"""In keys made while the model's generation is not known. They never reach Redis."""

Step: TypeAlias = Callable[[Lookup, Call[Answer]], Coroutine[Any, Any, Answer]]
Precheck: TypeAlias = Callable[[], Awaitable[Answer | None]]


class Pipeline:
    """The data path of one worker, for one question at a time. Hits below ASGI never come here."""

    def __init__(
        self,
        settings: Settings,
        l1: MemoryCache,
        l2: L2,
        observer: AnswerObserver,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.settings, self.l1, self.l2, self.observer = settings, l1, l2, observer
        self._clock, self._random = clock, random
        self._flights = SingleFlight()
        self._last_was_new = set[str]()  # models to whose last leased question Redis gave no answer

    async def aclose(self) -> None:
        await self._flights.close()

    def key(self, model: Model, question: Question) -> str:
        return self._lookup(model, question).key

    def answer(
        self, model: Model, question: Question, directives: CacheDirectives = DEFAULT
    ) -> Coroutine[Any, Any, Answer]:
        """The answer to one question; raises ServiceError."""
        lookup = self._lookup(model, question)
        # A claim looks as well. Where the answer is likely to be a new one, that saves a round trip.
        claims = model.name in self._last_was_new and self.l2.state == "up"
        precheck = None if claims else partial(self._in_l2, lookup)
        return self._observed(lookup, self._answer(lookup, directives, precheck), is_request=True)

    async def _answer(self, lookup: Lookup, directives: CacheDirectives, precheck: Precheck | None = None) -> Answer:
        if directives.reads:
            found = self._in_l1(lookup)
            if found is None and lookup.may_be_computed(directives):
                found = await self._fly(lookup, lookup.key, self._lead, precheck)
            elif found is None:
                found = await self._in_l2(lookup)
            if found is not None and self._suits(found, directives):
                return found
        return await self._recompute(lookup, directives)

    async def _recompute(self, lookup: Lookup, directives: CacheDirectives) -> Answer:
        """Compute the answer, whatever is stored."""
        if not directives.compute:
            raise OnlyIfCached
        if lookup.question.payload is None:
            raise NotCached("Nothing is cached for this digest: POST the image itself.")
        if directives.store:
            return await self._fly(lookup, ("fresh", lookup.key), self._refresh)
        computed = await self._compute(lookup)  # what is not stored is not shared either
        computed.fresh = True
        return computed

    # The steps of a flight.

    async def _lead(self, lookup: Lookup, call: Call[Answer]) -> Answer:
        """Compute, once in the cluster where that is worth a lease, and store."""
        if lookup.l2 is None or not lookup.model.leased:
            return await self._store(lookup, await self._compute(lookup, call))
        computed: Answer | None = None

        async def compute() -> Entry:
            nonlocal computed
            computed = await self._compute(lookup, call)
            return computed.entry

        try:
            resolved = await lookup.l2.compute_once(lookup.key, compute, lookup.budget, lookup.model.is_answer)
        except TooManyClaims:
            raise PredictionFailed("This input has ended three workers; it is not tried again for a minute.") from None
        if resolved.source == "stored":
            self._last_was_new.discard(lookup.model.name)
            return self._found(lookup, resolved.entry)
        self._last_was_new.add(lookup.model.name)
        if computed is None:
            return Answer(lookup.key, resolved.entry, "collapsed", stored=True)
        computed.entry, computed.stored = resolved.entry, resolved.stored
        if resolved.down:
            self._keep_here(computed, lookup.l2)
        return computed

    async def _refresh(self, lookup: Lookup, call: Call[Answer]) -> Answer:
        """Compute without look-up and lease, and overwrite what is stored."""
        computed = await self._compute(lookup, call)
        computed.fresh = True
        return await self._store(lookup, computed, overwrite=True)

    # The parts of these steps.

    def _in_l1(self, lookup: Lookup) -> Answer | None:
        entry = self.l1.get(lookup.key)
        return None if entry is None else Answer(lookup.key, entry, "l1")

    async def _in_l2(self, lookup: Lookup) -> Answer | None:
        if lookup.l2 is None:
            return None
        try:
            entry = await lookup.l2.get(lookup.key, lookup.budget, lookup.model.is_answer)
        except StoreUnavailable:
            return None
        return None if entry is None else self._found(lookup, entry)

    def _found(self, lookup: Lookup, entry: Entry) -> Answer:
        # This is at least the second use of the key. A flood of unique keys never enters L1.
        self.l1.put(lookup.key, entry, self.settings.l1_max_seconds)
        return Answer(lookup.key, entry, "l2")

    async def _fly(self, lookup: Lookup, flight: Hashable, step: Step, precheck: Precheck | None = None) -> Answer:
        """Run the step in this flight, which belongs to the worker: a client that leaves does not end it."""
        started = self._clock()

        async def fly(call: Call[Answer]) -> Answer:
            answer = await step(lookup, call)
            answer.cache_seconds = self._clock() - started - answer.queue_seconds - answer.model_seconds
            return answer

        answer, led = await self._flights.do(flight, fly, precheck, lookup.deadline - started)
        return answer if led or answer.hit else replace(answer, source="collapsed")

    async def _compute(self, lookup: Lookup, call: Call[Answer] | None = None) -> Answer:
        """For one request until its deadline, or for a call: raises NoWaiters when nobody waits for it when its turn
        comes. Who joins a call late may wait for longer than who started it, so a call has no deadline."""
        assert lookup.question.payload is not None
        try:
            submitted = lookup.model.batcher.submit(
                lookup.question.payload,
                wanted=lambda: call is None or call.waiters > 0,
                deadline=math.inf if call else lookup.deadline,
                reservation=lookup.reservation,
            )
            computed = await (submitted if call else self._flights.alone(submitted, lookup.deadline - self._clock()))
            if not lookup.model.is_answer(computed.prediction):
                raise PredictionFailed from ValueError("the model's answer does not look like its example's")
        except PredictionFailed as error:
            logger.error("A prediction failed.", extra=names(lookup), exc_info=error.__cause__ or error)
            raise
        entry = new_entry(computed.prediction, lookup.model.ttl(self.settings), self._clock(), self._random)
        return Answer(
            lookup.key, entry, "computed", queue_seconds=computed.queue_seconds, model_seconds=computed.model_seconds
        )

    async def _store(self, lookup: Lookup, answer: Answer, overwrite: bool = False) -> Answer:
        """Store it in Redis, and answer with what was committed first: batches may move an answer's last bits."""
        with suppress(StoreUnavailable):
            if lookup.l2 is not None:
                answer.entry = await lookup.l2.put(
                    lookup.key, answer.entry, overwrite=overwrite, budget=lookup.budget, accepts=lookup.model.is_answer
                )
                answer.stored = True
        if not answer.stored:
            self._keep_here(answer, lookup.l2)
        elif overwrite and self.l1.get(lookup.key) is not None:
            self.l1.put(lookup.key, answer.entry, self.settings.l1_max_seconds)
        return answer

    def _keep_here(self, answer: Answer, l2: RedisCache | None) -> None:
        taken = answer.queue_seconds + answer.model_seconds
        answer.stored = bool(self._keep_here_many({answer.key: answer.entry}, l2, taken))
        answer.l2_down = self._is_l2_down

    def _keep_here_many(self, entries: Mapping[str, Entry], l2: RedisCache | None, taken: float) -> Set[str]:
        """Without a usable Redis, L1 admits answers at once and for their whole lifetimes; the keys of those it keeps.

        No purge can reach an answer without a generation. Such an answer stays no longer than a purge may take, less
        the seconds that the computation has ``taken``.
        """
        stay = VALID_SECONDS - taken if l2 is None and self._is_l2_down else math.inf
        return self.l1.put_many(entries, stay)

    @property
    def _is_l2_down(self) -> bool:
        """Where an answer is not stored in Redis: whether a Redis is configured."""
        return self.l2.state != "off"

    def _suits(self, answer: Answer, directives: CacheDirectives) -> bool:
        return not answer.hit or directives.accepts(answer.entry, self._clock())

    def _lookup(self, model: Model, question: Question) -> Lookup:
        generation, l2 = self._key_space(model)
        key = cache_key(model.label, model.predictor.fingerprint, generation, question.identity)
        seconds = self.settings.deadline_seconds
        return Lookup(model, question, key, l2, self._clock() + seconds, DeadlineBudget(seconds))

    def _key_space(self, model: Model) -> tuple[bytes, RedisCache | None]:
        """The generation in the model's keys, and the L2 that has them, if any. Decided together: a key without a
        generation must not reach Redis later."""
        generation = self.l2.generation(model.name)
        l2 = None if generation is None or self.l2.state == "off" else self.l2
        return of_tenant(generation or NO_GENERATION), l2

    async def _observed(
        self, lookup: Lookup, answering: Coroutine[Any, Any, Answer], is_request: bool = False
    ) -> Answer:
        """``is_request``: it is no row of a batch, which counts its waiting for Redis as a whole."""
        started = self._clock()
        try:
            answer = await answering
        except BaseException as error:
            self.observer.failed(lookup, error, self._clock() - started)
            raise
        finally:
            if is_request:
                self.observer.waited(lookup.model, lookup.budget.spent)
        self.observer.answered(lookup, answer, self._clock() - started)
        return answer
