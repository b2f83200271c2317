"""Who is told of every answer: metrics, the audit, traces, and the accounts of whether the cache pays.

A request only adds to sums. Twice a second the sums go to the metrics, and once a second to Redis.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from service.audit import Auditor, Find
from service.cache.redis.l2 import L2
from service.errors import NotCached, PredictionFailed, StoreUnavailable
from service.lookup import Answer, Lookup, Model
from service.metrics import Metrics

TICK_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Account:
    """What the cache saves and costs for one model, in this worker. ``manifest_cost``: seconds of one computation, used
    until one has been measured. ``has_redis``: which is told of keys.

    ``asked``, ``hits`` and ``keys``: questions, hits and cache keys that Redis has not been told of. ``new_hits`` and
    ``new_spent`` (seconds that requests waited for Redis): not yet in the metrics.
    """

    manifest_cost: float
    has_redis: bool = True
    computed: int = 0
    model_seconds: float = 0.0
    asked: int = 0
    hits: int = 0
    keys: set[str] = field(default_factory=set)
    new_hits: int = 0
    new_spent: float = 0.0

    @property
    def cost(self) -> float:
        """Seconds of one computation: the mean of all that this worker has measured."""
        return self.model_seconds / self.computed if self.computed else self.manifest_cost

    def add_batch(self, size: int, seconds: float) -> None:
        self.computed += size
        self.model_seconds += seconds

    def add_hits(self, count: int) -> None:
        self.asked += count
        self.hits += count
        self.new_hits += count

    def add_many(self, source: str, keys: Collection[str]) -> None:
        """Answers that came in the same way."""
        if source in ("l1", "l2"):
            self.add_hits(len(keys))
        else:
            self.asked += len(keys)
        if self.has_redis and source in ("l2", "computed"):  # a key in L1, or of a follower, was one of these before
            self.keys.update(keys)


class DistinctQuestions(NamedTuple):
    """Questions, the hits among them, and how many distinct ones they were: an estimate, within 2 %."""

    asked: int
    hits: int
    distinct: int

    @property
    def hit_rate(self) -> float | None:
        return self.hits / self.asked if self.asked else None

    @property
    def best_hit_rate(self) -> float | None:
        """That of a cache that never forgets: each distinct question is a miss once."""
        return max(0, self.asked - self.distinct) / self.asked if self.asked else None


class Economics:
    """The accounts of all models in this worker, and the cluster's count of distinct questions."""

    def __init__(self, accounts: Mapping[str, Account], l2: L2, metrics: Metrics) -> None:
        self.accounts, self._l2, self._metrics = accounts, l2, metrics

    def update_metrics(self) -> None:
        for model, account in self.accounts.items():
            self._metrics.saved_seconds.labels(model).inc(account.new_hits * account.cost)
            self._metrics.spent_seconds.labels(model).inc(account.new_spent)
            account.new_hits, account.new_spent = 0, 0.0

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            for model in self.accounts:
                await self.distinct_questions(model)
            await asyncio.sleep(TICK_SECONDS)

    async def distinct_questions(self, model: str) -> DistinctQuestions | None:
        """The cluster's, with what this worker has counted since the last call; None without a usable Redis."""
        account = self.accounts[model]
        keys, asked, hits = account.keys, account.asked, account.hits
        # Taken before the round trip: what is counted meanwhile goes with the next one. If Redis fails, all three are
        # lost, so the counts in Redis always belong together.
        account.keys, account.asked, account.hits = set(), 0, 0
        with suppress(StoreUnavailable):
            counts = await self._l2.count(model, keys, asked, hits)
            counted = None if counts is None else DistinctQuestions(*counts)
            if counted is not None and counted.best_hit_rate is not None:
                self._metrics.distinct_questions.labels(model).set(counted.distinct)
                self._metrics.best_hit_ratio.labels(model).set(counted.best_hit_rate)
            return counted
        return None

    async def report(self, model: str, samples: Mapping[tuple[str, str], float]) -> dict[str, Any]:
        """``samples``: the model's metrics. Seconds are those of all workers of this service, ``cost_seconds`` is this
        worker's. Questions are counted in the whole cluster; without a usable Redis in this service since its start."""
        counted = await self.distinct_questions(model)
        estimates = {}
        if counted is not None:
            estimates = {"distinct": counted.distinct, "best_hit_rate": counted.best_hit_rate}
        else:
            results = {result: int(n) for (name, result), n in samples.items() if name == "predict_cache_results_total"}
            hits = results.get("l1", 0) + results.get("l2", 0)
            counted = DistinctQuestions(hits + results.get("computed", 0) + results.get("collapsed", 0), hits, 0)
        return {
            "asked": counted.asked,
            "hits": counted.hits,
            "hit_rate": counted.hit_rate,
            **estimates,
            "cost_seconds": self.accounts[model].cost,
            "saved_seconds": samples.get(("predict_cache_saved_seconds_total", ""), 0.0),
            "spent_seconds": samples.get(("predict_cache_spent_seconds_total", ""), 0.0),
        }


@dataclass(frozen=True)
class AnswerObserver:
    """The one that the pipelines and the hit path tell. ``trace``: what draws the spans of a question, if anything."""

    metrics: Metrics
    auditor: Auditor
    economics: Economics
    trace: Callable[[Lookup, Answer], None] | None = None

    def answered(self, lookup: Lookup, answer: Answer, seconds: float) -> None:
        self.metrics.resolved(lookup.model.name, answer.source, seconds)
        if answer.source == "computed":
            self.metrics.queued(lookup.model.name, answer.queue_seconds)
        if answer.hit:
            self.auditor.observe(lookup, answer)
        self.economics.accounts[lookup.model.name].add_many(answer.source, (answer.key,))
        if self.trace is not None:
            self.trace(lookup, answer)

    def failed(self, lookup: Lookup, error: BaseException, seconds: float) -> None:
        """Call it in the task of each request that waited, so that the log line has that request's id."""
        if isinstance(error, PredictionFailed):
            logger.warning("A question has no answer: its prediction failed.", extra=names(lookup))
        result = "cancelled" if isinstance(error, asyncio.CancelledError) else "failed"
        result = "not_cached" if isinstance(error, NotCached) else result
        self.metrics.resolved(lookup.model.name, result, seconds)

    def many(self, model: Model, source: str, keys: Sequence[str], seconds: float, find: Find) -> None:
        """Hits of a batch that came in the same way, and have no spans. Equal rows count once."""
        if distinct := set(keys):
            self.metrics.resolved(model.name, source, seconds, len(distinct))
            self.auditor.observe_hits(model, keys if len(distinct) == len(keys) else list(distinct), find)
            self.economics.accounts[model.name].add_many(source, distinct)

    def computed(self, model: Model, keys: Collection[str], seconds: float) -> None:
        """As ``many``, of what was computed."""
        if keys:
            self.metrics.resolved(model.name, "computed", seconds, len(keys))
            self.economics.accounts[model.name].add_many("computed", keys)

    def left(self, model: Model, count: int) -> None:
        """The client of a batch has left; so many of its rows were under way."""
        self.metrics.resolved(model.name, "cancelled", 0.0, count)

    def waited(self, model: Model, seconds: float) -> None:
        """A request, be it a question or a batch, has waited so long for Redis."""
        self.economics.accounts[model.name].new_spent += seconds

    def hits_below_asgi(self, route: str, model: str, status: int, body_size: int, count: int) -> None:
        """So many answers of the hit path. They have no latencies, being too short to measure."""
        self.metrics.requests.labels(route, status).inc(count)
        self.metrics.body_bytes.inc(count * body_size)
        if status == 200:  # a 304 looks nothing up
            self.metrics.cache_results.labels(model, "l1").inc(count)
            self.economics.accounts[model].add_hits(count)

    def batch(self, model: str, size: int, seconds: float) -> None:
        """One call of a model has ended."""
        self.metrics.batch(model, size, seconds)
        self.economics.accounts[model].add_batch(size, seconds)

    def audit_gap(self) -> float:
        """Hits of the hit path from one audit to the next."""
        return self.auditor.countdown.gap()

    def takes_audit(self, key: str) -> bool:
        """Whether the next hit of this key on the ordinary path will be audited. Not while the backlog is full."""
        if self.auditor.has_room:
            self.auditor.countdown.force_sample(key)
            return True
        return False


def names(lookup: Lookup) -> dict[str, str]:
    """What a log line about a question says of it."""
    return {"model": lookup.model.name, "key": lookup.key}
