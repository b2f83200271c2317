"""Does the cache pay? What it saves and what it costs, per model.

On the request path only sums are added to; everything else happens once a second, beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from service.cache.redis.census import Census
from service.cache.redis.l2 import L2
from service.errors import StoreUnavailable
from service.lookup import Answer, Lookup
from service.metrics import Metrics

TICK_SECONDS = 1.0


@dataclass(slots=True)
class Account:
    """One model in this worker. ``manifest_cost``: seconds of one computation, in force until one has been measured.

    ``asked`` questions, ``hits`` among them and their ``keys`` are not yet in the census; ``new_hits``, and the seconds
    that questions waited for Redis (``new_spent``), not yet in the metrics.
    """

    manifest_cost: float
    computed: int = 0
    model_seconds: float = 0.0
    asked: int = 0
    hits: int = 0
    keys: set[str] = field(default_factory=set)
    new_hits: int = 0
    new_spent: float = 0.0

    @property
    def cost(self) -> float:
        """Seconds of one computation: the mean of all that were measured here."""
        return self.model_seconds / self.computed if self.computed else self.manifest_cost

    def add_batch(self, size: int, seconds: float) -> None:
        """So many inputs have been computed."""
        self.computed += size
        self.model_seconds += seconds

    def add_hits(self, count: int) -> None:
        """Hits that the pipeline did not see."""
        self.asked += count
        self.hits += count
        self.new_hits += count

    def add(self, lookup: Lookup, answer: Answer) -> None:
        spent = lookup.budget.spent
        self.asked += 1
        self.new_spent += spent
        if answer.hit:
            self.hits += 1
            self.new_hits += 1
        if answer.source in ("l2", "computed"):  # what L1 has, or somebody else waits for, was one of these before
            self.keys.add(answer.key)


class Economics:
    """The accounts of all models in this worker, and the census of the cluster."""

    def __init__(
        self,
        accounts: Mapping[str, Account],
        l2: L2,
        metrics: Metrics,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._accounts = accounts
        self._l2, self._metrics, self._sleep = l2, metrics, sleep

    def observe(self, lookup: Lookup, answer: Answer) -> None:
        """The pipeline's observer."""
        self._accounts[lookup.model.name].add(lookup, answer)

    def add_hits(self, model: str, count: int) -> None:
        self._accounts[model].add_hits(count)

    def update_metrics(self) -> None:
        for model, account in self._accounts.items():
            self._metrics.saved_seconds.labels(model).inc(account.new_hits * account.cost)
            self._metrics.spent_seconds.labels(model).inc(account.new_spent)
            account.new_hits, account.new_spent = 0, 0.0

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            for model in self._accounts:
                await self.census(model)
            await self._sleep(TICK_SECONDS)

    async def census(self, model: str) -> Census | None:
        """The cluster's, with what this worker has counted since; None without a usable Redis."""
        account = self._accounts[model]
        keys, asked, hits = account.keys, account.asked, account.hits
        # Taken before the round trip: what is counted meanwhile goes with the next. If Redis fails all three are lost,
        # so that what the census has always belongs together.
        account.keys, account.asked, account.hits = set(), 0, 0
        with suppress(StoreUnavailable):
            census = await self._l2.count(model, keys, asked, hits)
            if census is not None:
                self._metrics.census(model, census.distinct, census.best_hit_rate)
            return census
        return None

    async def report(self, model: str, samples: Mapping[tuple[str, str], float]) -> dict[str, Any]:
        """``samples``: the model's metrics. Seconds are those of all workers here, the census is the whole cluster's.

        Without a usable Redis questions and hits are those of all workers here since they started. ``cost_seconds`` is
        this worker's.
        """
        census = await self.census(model)
        if census is None:
            results = {result: n for (name, result), n in samples.items() if name == "predict_cache_results_total"}
            answered = {result: int(results.get(result, 0)) for result in ("l1", "l2", "computed", "collapsed")}
            census = Census(sum(answered.values()), answered["l1"] + answered["l2"], 0)
            estimates = {}
        else:
            estimates = {"distinct": census.distinct, "best_hit_rate": census.best_hit_rate}
        return {
            "asked": census.asked,
            "hits": census.hits,
            "hit_rate": census.hit_rate,
            **estimates,
            "cost_seconds": self._accounts[model].cost,
            "saved_seconds": samples.get(("predict_cache_saved_seconds_total", ""), 0.0),
            "spent_seconds": samples.get(("predict_cache_spent_seconds_total", ""), 0.0),
        }
