"""What holds for L1 and L2 alike."""

from __future__ import annotations

import time
from typing import Protocol

import pytest

from service.cache.entry import MAX_VALUE_BYTES, Entry
from service.cache.keys import RedisKeys
from service.cache.memory import MemoryCache
from service.cache.redis.l2 import RedisCache
from tests.cache.stand_ins import Clock, entry
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio


class Cache(Protocol):
    async def get(self, key: str) -> Entry | None: ...

    async def put(self, key: str, value: Entry) -> None: ...

    def expire(self, key: str) -> None:
        """Let the time pass that the entry under the key has left."""


class L1:
    def __init__(self) -> None:
        self.clock = Clock()
        self.clock.now = entry().expires - 300.0
        self.cache = MemoryCache(2 * MAX_VALUE_BYTES, 100, self.clock)

    async def get(self, key: str) -> Entry | None:
        return self.cache.get(key)

    async def put(self, key: str, value: Entry) -> None:
        self.cache.put(key, value)

    def expire(self, key: str) -> None:
        self.clock.now += 301


class L2:
    def __init__(self, cache: RedisCache, server: RedisServer) -> None:
        self.cache, self.server = cache, server

    async def get(self, key: str) -> Entry | None:
        return await self.cache.get(key)

    async def put(self, key: str, value: Entry) -> None:
        await self.cache.put(key, value)

    def expire(self, key: str) -> None:
        assert self.server.client.pexpire(RedisKeys("p1").entry(key), 0)


@pytest.fixture(params=["L1", "L2"])
def cache(request: pytest.FixtureRequest) -> Cache:
    if request.param == "L1":
        return L1()
    return L2(request.getfixturevalue("l2"), request.getfixturevalue("server"))


async def test_what_was_never_put_is_a_miss(cache: Cache) -> None:
    assert await cache.get("K") is None


async def test_what_was_put_is_a_hit_with_its_value_and_lifetime(cache: Cache) -> None:
    put, started = entry(b"value", 300), time.monotonic()
    await cache.put("K", put)
    got = await cache.get("K")
    took = time.monotonic() - started
    assert got is not None
    assert (got.value, got.ttl) == (b"value", 300)
    assert got.expires == pytest.approx(put.expires, abs=took + 0.01)


async def test_keys_do_not_mix(cache: Cache) -> None:
    await cache.put("K", entry(b"one"))
    await cache.put("L", entry(b"two"))
    one, two = await cache.get("K"), await cache.get("L")
    assert one is not None
    assert two is not None
    assert (one.value, two.value) == (b"one", b"two")


async def test_an_expired_entry_is_a_miss(cache: Cache) -> None:
    await cache.put("K", entry(ttl=300))
    cache.expire("K")
    assert await cache.get("K") is None


async def test_an_entry_that_has_expired_before_it_is_put_is_refused_quietly(cache: Cache) -> None:
    await cache.put("K", entry(ttl=-1))
    assert await cache.get("K") is None


async def test_too_large_an_entry_is_refused_quietly(cache: Cache) -> None:
    await cache.put("K", entry(bytes(2 * MAX_VALUE_BYTES)))
    assert await cache.get("K") is None


async def test_an_empty_value_is_a_value(cache: Cache) -> None:
    await cache.put("K", entry(b""))
    got = await cache.get("K")
    assert got is not None
    assert got.value == b""
