from __future__ import annotations

import asyncio

import pytest

from service.cache.keys import generation_key
from service.cache.redis import RedisCache
from service.errors import StoreUnavailable
from tests.cache.stand_ins import Workers, subscribed
from tests.support.process import becomes
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

NAME = generation_key("iris")


async def test_a_model_that_was_not_registered_has_no_generation(l2: RedisCache) -> None:
    assert l2.generation("iris") is None


async def test_the_first_worker_writes_a_generation_without_a_TTL_and_the_others_take_it(
    workers: Workers, server: RedisServer
) -> None:
    one, two = await workers.start(), await workers.start()
    await asyncio.gather(one.register("iris"), two.register("iris"))
    generation = one.generation("iris")
    assert generation is not None
    assert len(generation) == 8
    assert two.generation("iris") == generation == server.client.get(NAME)
    assert server.client.ttl(NAME) == -1


async def test_models_have_their_own(l2: RedisCache) -> None:
    await l2.register("iris")
    await l2.register("digits")
    assert l2.generation("iris") != l2.generation("digits")


async def test_redis_takes_a_generation_for_the_hottest_key_so_that_a_flood_does_not_evict_it(
    l2: RedisCache, server: RedisServer
) -> None:
    server.configure(maxmemory_policy="allkeys-lfu")
    for _ in range(3):
        await l2.register("iris")
    server.client.set("new", 1)
    assert server.client.object("freq", NAME) >= server.client.object("freq", "new") + 3


@pytest.fixture
def no_rereading(monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as none: a worker that hears nothing learns nothing."""
    monkeypatch.setattr("service.cache.generations.REREAD_SECONDS", 3600)


@pytest.mark.usefixtures("no_rereading")
async def test_a_purge_reaches_every_worker_by_message(workers: Workers, server: RedisServer) -> None:
    changed: list[str] = []
    one, two = await workers.start(), await workers.start(on_generation_change=changed.append)
    for worker in (one, two):
        await worker.register("iris")
    before = two.generation("iris")
    await subscribed(server, "p1:purges", 2)
    await one.purge("iris")
    assert one.generation("iris") != before
    await becomes(lambda: two.generation("iris") == one.generation("iris"), within=30)
    assert changed == ["iris", "iris"]  # when first read, and when purged


async def test_a_purge_that_was_not_heard_of_is_found_by_rereading(
    workers: Workers, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.generations.REREAD_SECONDS", 0.05)
    cache = await workers.start()
    await cache.register("iris")
    server.client.set(NAME, b"another!")
    await becomes(lambda: cache.generation("iris") == b"another!", within=30)


@pytest.mark.parametrize("lose", ["delete", "flush", "damage", "retype"])
async def test_a_lost_generation_is_replaced_by_one_that_never_was(
    workers: Workers, server: RedisServer, lose: str
) -> None:
    cache = await workers.start()
    await cache.register("iris")
    before = cache.generation("iris")
    if lose == "flush":
        server.client.flushall()
    elif lose == "damage":
        server.client.set(NAME, "no generation")
    else:
        server.client.delete(NAME)
        if lose == "retype":
            server.client.rpush(NAME, "x")
    await cache.register("iris")
    assert cache.generation("iris") == server.client.get(NAME) != before


async def test_a_purge_without_Redis_raises_and_changes_nothing(l2: RedisCache, server: RedisServer) -> None:
    await l2.register("iris")
    before = l2.generation("iris")
    server.freeze()
    with pytest.raises(StoreUnavailable):
        await l2.purge("iris")
    assert l2.generation("iris") == before


async def test_a_generation_is_read_under_OOM_and_stays_where_none_can_be_written(
    l2: RedisCache, server: RedisServer
) -> None:
    server.client.set(NAME, b"existing")
    server.configure(maxmemory_policy="noeviction", maxmemory="1")
    await l2.register("iris")
    assert l2.generation("iris") == b"existing"
    server.client.delete(NAME)
    await l2.register("iris")
    assert l2.generation("iris") == b"existing"
    assert l2.state == "up"


@pytest.mark.usefixtures("no_rereading")
async def test_generations_are_read_as_soon_as_Redis_comes_back(workers: Workers, server: RedisServer) -> None:
    server.freeze()
    cache = await workers.start()
    await cache.register("iris")
    assert (cache.state, cache.generation("iris")) == ("down", None)
    server.thaw()
    await becomes(lambda: cache.generation("iris"), within=30)
    assert cache.state == "up"


@pytest.mark.usefixtures("no_rereading")
async def test_a_subscriber_that_reconnects_says_so_and_hears_again(workers: Workers, server: RedisServer) -> None:
    reconnections: list[None] = []
    one = await workers.start(on_reconnect=lambda: reconnections.append(None))
    two = await workers.start()
    for worker in (one, two):
        await worker.register("iris")
    await subscribed(server, "p1:purges", 2)
    assert reconnections == []
    server.client.client_kill_filter(_type="pubsub")
    await becomes(lambda: len(reconnections) == 1)
    await two.purge("iris")
    await becomes(lambda: one.generation("iris") == two.generation("iris"), within=30)
