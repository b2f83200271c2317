"""The L2 of a service without Redis."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Literal

from service.cache.entry import Entry
from service.cache.generations import Purged, new_generation
from service.cache.lease import Compute, Resolved


class NoRedis:
    """An L2 that stores nothing. A generation lasts as long as this process."""

    state: Literal["off"] = "off"
    valid_until = math.inf

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._generations: dict[str, bytes] = {}
        self._on_change = on_change

    def generation(self, model: str) -> bytes:
        generation = self._generations.get(model)
        if generation is None:
            generation = self._generations[model] = new_generation()
        return generation

    async def register(self, model: str) -> None:
        self.generation(model)

    async def purge(self, model: str) -> Purged:
        self._generations[model] = new_generation()
        self._on_change()
        return Purged(workers=1, acknowledged=1, seconds=0.0)

    async def get(self, *_: object) -> None:
        return None

    async def put(self, key: str, entry: Entry, **_: object) -> Entry:
        return entry

    async def delete(self, key: str) -> None:
        """Nothing is stored."""

    async def touch(self, keys: Collection[str]) -> None:
        """Nothing is evicted."""

    async def count(self, model: str, keys: Collection[str], asked: int, hits: int) -> None:
        """Distinct questions are not counted without Redis."""

    async def compute_once(self, key: str, compute: Compute, *_: object) -> Resolved:
        return Resolved(await compute(), "computed", stored=False)
