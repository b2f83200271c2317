"""The cache proves itself: a share of the hits is computed again in the background and compared.

An audit computes from the request's own payload, with the estimator's own method where the predictor has an ``audit``
that calls it. So it finds a wrong cell, a wrong fast path and a wrong value in Redis alike. No request waits for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np

from service.cache.memory import MemoryCache
from service.cache.redis.l2 import L2
from service.errors import NoWaiters, StoreUnavailable
from service.inference.model_thread import ModelThreads
from service.inference.predictor import Outcome, compute, unpack
from service.lookup import Answer, Lookup, Model
from service.metrics import Metrics

IMAGE_TOLERANCE = 1e-5
"""How far batches move an image model's answers, unless its ``tolerance`` says more. They never move a table's."""

MAX_WAITING = 64
MAX_WAITING_BYTES = 16 * 2**20
"""Bounds of the backlog. Samples beyond them are dropped."""

IDLE_POLL_SECONDS = 0.02

TIME_SHARE = 0.01
"""Audits take no more of a worker's time than this, or than the audited share of hits if that is more.

At 60,000 hits a second, a thousandth of them is 60 calls of ``predict_proba``: a third of a core.
"""

Find: TypeAlias = Callable[[str], tuple[bytes | None, bytes]]
"""Finds a batch's hit by its key: the payload of the question, and the value."""

logger = logging.getLogger(__name__)


class Countdown:
    """Picks a share of the hits. One random number draws the gap to the next; the first comes after ``1 / share``."""

    def __init__(self, share: float, random: Callable[[], float] = random.random) -> None:
        self.share = share
        self._mean = 1 / share if share else math.inf
        self._left = self._mean
        self._random = random
        self._forced: set[str] = set()

    def gap(self) -> float:
        """Hits from one that is picked to the next. Random, so no pattern in the traffic keeps in step with it."""
        return 1 + 2 * (self._mean - 1) * self._random() if self.share else math.inf

    def picked(self, keys: Sequence[str]) -> list[int]:
        """Count these hits; the places of those to audit."""
        if self._forced:
            return [place for place, key in enumerate(keys) if self.picks(key)]
        places: list[int] = []
        uncounted = len(keys)
        while self._left - uncounted < 1:
            step = max(1, int(self._left))
            self._left += self.gap() - step
            uncounted -= step
            places.append(len(keys) - uncounted - 1)
        self._left -= uncounted
        return places

    def force_sample(self, key: str) -> None:
        """Pick the next hit of this key. The hit path, which counts for itself, has found it due."""
        if len(self._forced) < MAX_WAITING:
            self._forced.add(key)

    def picks(self, key: str) -> bool:
        """Count this hit; whether it is one to audit."""
        if key in self._forced:
            self._forced.discard(key)
            return True
        self._left -= 1
        if self._left >= 1:
            return False
        self._left += self.gap()
        return True


class Sample(NamedTuple):
    """A hit to be audited. ``value``: the packed array that the cache gave."""

    model: Model
    key: str
    payload: bytes
    value: bytes


class Auditor:
    """Audits one sample after the other, each when its model has nothing else to do."""

    def __init__(
        self,
        countdown: Countdown,
        l1: MemoryCache,
        l2: L2,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.countdown = countdown
        self._rest = 1 / max(TIME_SHARE, countdown.share) - 1
        self._clock = clock
        self._l1, self._l2, self._metrics, self._sleep = l1, l2, metrics, sleep
        self._waiting: list[Sample] = []
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()

    @property
    def has_room(self) -> bool:
        """Whether the backlog takes another sample."""
        return len(self._waiting) < MAX_WAITING and self._waiting_bytes < MAX_WAITING_BYTES

    def observe(self, lookup: Lookup, answer: Answer) -> None:
        """Of a hit. A question without a payload cannot be computed, so it cannot be audited."""
        if self.countdown.picks(answer.key) and lookup.question.payload is not None:
            self._offer(Sample(lookup.model, answer.key, lookup.question.payload, answer.entry.value))

    def observe_hits(self, model: Model, keys: Sequence[str], find: Find) -> None:
        """As ``observe``, of many hits."""
        for place in self.countdown.picked(keys):
            payload, value = find(keys[place]) if self.has_room else (None, b"")
            if payload is not None:
                self._offer(Sample(model, keys[place], payload, value))

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            # No await lies between the look into the backlog and clear(), so no sample can arrive between them.
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            ready = next((i for i, sample in enumerate(self._waiting) if sample.model.batcher.idle), None)
            if ready is None:
                await self._sleep(IDLE_POLL_SECONDS)
                continue
            sample = self._waiting.pop(ready)
            self._waiting_bytes -= len(sample.payload)
            began = self._clock()
            await self._audit(sample)
            await self._sleep(self._rest * (self._clock() - began))

    def _offer(self, sample: Sample) -> None:
        if self.has_room and self._waiting_bytes + len(sample.payload) <= MAX_WAITING_BYTES:
            self._waiting.append(sample)
            self._waiting_bytes += len(sample.payload)
            self._arrived.set()

    async def _audit(self, sample: Sample) -> None:
        name = sample.model.name
        try:
            computed = await _computed(sample)
        except NoWaiters:
            return
        except Exception as error:  # says nothing about the answer, and must not end the audits
            logger.warning("An audit of the model %s failed.", name, extra={"key": sample.key}, exc_info=error)
            return
        self._metrics.cache_audits.labels(name).inc()
        if not _agree(sample, computed):
            self._metrics.cache_mismatch.labels(name).inc()
            logger.error("A cached answer is not what the model says.", extra={"model": name, "key": sample.key})
            await self._evict(sample.key)

    async def _evict(self, key: str) -> None:
        self._l1.delete(key)
        with suppress(StoreUnavailable):
            await self._l2.delete(key)
        # A request that read it from Redis meanwhile has put it into L1 again.
        self._l1.delete(key)


async def _computed(sample: Sample) -> bytes:
    """What the model says now. Raises what the model raises, or NoWaiters when it is no longer idle."""
    model, payload = sample.model, sample.payload
    audit: Callable[[bytes], Outcome] | None = getattr(model.predictor, "audit", None)
    if audit is None:  # only the model's own thread may call it
        batcher = model.batcher
        submitted = batcher.submit(payload, wanted=lambda: not batcher.queued, deadline=math.inf)
        return (await submitted).prediction
    # A thread of its own: the model stays free, and the process may end in the middle of an audit.
    thread = ModelThreads(partial(compute, lambda batch: [audit(batch[0])]), "audit")
    try:
        (outcome,) = await thread.run([payload])
    finally:
        thread.stop()
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _agree(sample: Sample, computed: bytes) -> bool:
    if sample.value == computed or sample.model.manifest.image is None:
        return sample.value == computed
    try:
        cached, now = unpack(sample.value), unpack(computed)
    except ValueError:
        return False
    tolerance: float = getattr(sample.model.predictor, "tolerance", IMAGE_TOLERANCE)
    return cached.shape == now.shape and bool(np.allclose(cached, now, rtol=0, atol=tolerance))
