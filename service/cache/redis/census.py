"""How many different questions a model is asked, in the whole cluster: a HyperLogLog, and counts over the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from service.cache.keys import census_keys
from service.cache.redis.auto_pipeline import DeadlineBudget, PendingReply
from service.cache.redis.scripts import CENSUS, Command

KEPT_SECONDS = 86_400
"""A census ends so long after it began, and another one begins: traffic of long ago says little."""

KEYS_PER_COMMAND = 500


class Census(NamedTuple):
    """Questions, the hits among them, and how many different ones they were: an estimate, within 2 %."""

    asked: int
    hits: int
    distinct: int

    @property
    def hit_rate(self) -> float | None:
        return self.hits / self.asked if self.asked else None

    @property
    def best_hit_rate(self) -> float | None:
        """Of a cache that never forgets: each different question is a miss once."""
        return max(0, self.asked - self.distinct) / self.asked if self.asked else None


async def count(
    ask: Callable[[Command], PendingReply[Any]], model: str, keys: Collection[str], asked: int, hits: int
) -> Census:
    """Add the cache keys of questions to the model's census, and return it; raises StoreUnavailable."""
    listed = list(keys)
    parts = [listed[start : start + KEYS_PER_COMMAND] for start in range(0, len(listed), KEYS_PER_COMMAND)] or [[]]
    counts = [(0, 0)] * (len(parts) - 1) + [(asked, hits)]  # with the last keys, whose reply is the one returned
    # Together, and in this order: they travel in as few round trips as there can be.
    replies = await asyncio.gather(
        *(
            DeadlineBudget().wait(ask(CENSUS(census_keys(model), (KEPT_SECONDS, *count, *part))))
            for part, count in zip(parts, counts, strict=True)
        )
    )
    return Census(*replies[-1])
