"""Stand-ins and small tools of these tests: a clock, an observer, workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from service.cache.entry import Entry
from service.cache.redis.client import Trip
from service.cache.redis.l2 import RedisCache, open_redis
from tests.support.process import becomes
from tests.support.redis_server import RedisServer

SECRET = b"of these tests"


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Witness:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.trips: list[tuple[Trip, bool]] = []
        self.corruptions = 0

    def round_trip(self, kind: Trip, seconds: float, ok: bool) -> None:
        self.trips.append((kind, ok))

    def corrupt(self) -> None:
        self.corruptions += 1

    @property
    def commands(self) -> int:
        """How many round trips with commands have succeeded."""
        return self.trips.count(("command", True))


def entry(value: bytes = b"value", ttl: float = 300.0, clock: Callable[[], float] | None = None) -> Entry:
    """One whose lifetime begins now."""

    return Entry(value, ttl, (clock or time.monotonic)() + ttl)


class Workers:
    """L2 as several workers have it: each its own connections, subscriber and breaker."""

    def __init__(self, url: str, witness: Witness, stack: AsyncExitStack) -> None:
        self.url, self.witness, self._stack = url, witness, stack

    async def start(self, **options: Any) -> RedisCache:
        options = {"secret": SECRET, "observer": self.witness, "url": self.url} | options
        cache = await self._stack.enter_async_context(open_redis(**options))
        assert isinstance(cache, RedisCache)
        return cache


async def subscribed(server: RedisServer, channel: str, count: int = 1) -> None:
    await becomes(lambda: server.client.pubsub_numsub(channel)[0][1] == count)
