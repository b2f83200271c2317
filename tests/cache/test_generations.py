from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.cache.entry import Entry
from service.cache.generations import VALID_SECONDS, Generation
from service.cache.keys import RedisKeys
from service.cache.redis.l2 import RedisCache
from service.errors import StoreRefused, StoreUnavailable
from tests.cache.stand_ins import SECRET, Clock, Witness, Workers, entry, subscribed
from tests.support.process import becomes
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

NAME = RedisKeys("p1").generation("iris")


def store(server: RedisServer, generation: bytes) -> None:
    server.client.set(NAME, Generation(2**50, generation).seal(NAME, SECRET))


def stored(server: RedisServer) -> bytes:
    return Generation.unseal(NAME, server.value(NAME), SECRET).value


async def registered(workers: Workers, count: int, **options: Any) -> list[RedisCache]:
    """So many workers that serve iris."""
    started = [await workers.start(**options) for _ in range(count)]
    for worker in started:
        await worker.register("iris")
    return started


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
    assert two.generation("iris") == generation == stored(server)
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
async def long_up(server: RedisServer) -> None:
    """A Redis that has been up, and has known the readers, for long enough to know all."""
    await becomes(lambda: server.client.info("server")["uptime_in_seconds"] > VALID_SECONDS)  # type: ignore[index]
    server.client.zadd("p1:w:iris", {b"": -1})


@pytest.fixture
def no_rereading(monkeypatch: pytest.MonkeyPatch) -> None:
    """As good as none: a worker that hears nothing learns nothing."""
    monkeypatch.setattr("service.cache.generations.REREAD_SECONDS", 3600)


@pytest.mark.usefixtures("no_rereading")
async def test_a_purge_reaches_every_worker_by_message(workers: Workers, server: RedisServer) -> None:
    changed: list[None] = []
    one, two = await workers.start(), await workers.start(on_change=lambda: changed.append(None))
    for worker in (one, two):
        await worker.register("iris")
    before = two.generation("iris")
    await subscribed(server, "p1:purges", 2)
    await one.purge("iris")
    assert one.generation("iris") != before
    await becomes(lambda: two.generation("iris") == one.generation("iris"), within=30)
    assert len(changed) == 2  # when first read, and when purged


async def test_a_purge_that_was_not_heard_of_is_found_by_rereading(
    workers: Workers, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.generations.REREAD_SECONDS", 0.05)
    cache = await workers.start()
    await cache.register("iris")
    store(server, b"another!")
    await becomes(lambda: cache.generation("iris") == b"another!", within=30)


@pytest.mark.parametrize("lose", ["delete", "flush", "damage", "retype", "copy another model's"])
async def test_a_lost_generation_is_replaced_by_one_that_never_was(
    workers: Workers, server: RedisServer, lose: str
) -> None:
    cache = await workers.start()
    await cache.register("iris")
    before = cache.generation("iris")
    if lose == "flush":
        server.client.flushall()
    elif lose == "damage":
        server.client.set(NAME, b"damaged!")
    elif lose == "copy another model's":
        server.client.set(NAME, Generation(2**50, b"another!").seal("digits", SECRET))
    else:
        server.client.delete(NAME)
        if lose == "retype":
            server.client.rpush(NAME, "x")
    await cache.register("iris")
    assert cache.generation("iris") == stored(server) != before


async def test_a_purge_without_Redis_raises_and_changes_nothing_here(l2: RedisCache, server: RedisServer) -> None:
    await l2.register("iris")
    before = l2.generation("iris")
    server.freeze()
    with pytest.raises(StoreUnavailable) as raised:
        await l2.purge("iris")
    assert not isinstance(raised.value, StoreRefused), "it may carry it out yet"
    assert l2.generation("iris") == before
    server.thaw()
    await becomes(lambda: l2.generation("iris") == stored(server), within=30)


async def test_a_generation_is_read_under_OOM_and_stays_where_none_can_be_written(
    l2: RedisCache, server: RedisServer
) -> None:
    store(server, b"existing")
    server.configure(maxmemory_policy="noeviction", maxmemory="1")
    await l2.register("iris")
    assert l2.generation("iris") == b"existing"
    server.client.delete(NAME)
    await l2.register("iris")
    assert l2.generation("iris") == b"existing"
    assert l2.state == "read-only", "which it is; reading goes on"


@pytest.mark.usefixtures("no_rereading")
async def test_a_lost_generation_is_written_once_and_the_others_are_told(workers: Workers, server: RedisServer) -> None:
    many = await registered(workers, 3)
    await subscribed(server, "p1:purges", 3)
    before = many[0].generation("iris")
    server.client.flushall()
    await many[0].register("iris")
    await becomes(lambda: {worker.generation("iris") for worker in many} == {stored(server)}, within=30)
    assert stored(server) != before


async def test_a_worker_never_returns_to_a_generation_that_was_replaced(workers: Workers, server: RedisServer) -> None:
    """Whoever purged it, whether or not this worker was there, and whatever restores it: a restart from an older
    snapshot, a replica that lagged behind."""
    one, two = await workers.start(), await workers.start()
    await one.register("iris")
    snapshots = [server.value(NAME)]
    for _ in range(3):
        await one.purge("iris")
        snapshots.append(server.value(NAME))
    seen = {Generation.unseal(NAME, snapshot, SECRET).value for snapshot in snapshots}
    await two.register("iris")
    assert two.generation("iris") == one.generation("iris")
    for snapshot in snapshots[:-1]:
        server.client.set(NAME, snapshot)
        await two.register("iris")
        assert two.generation("iris") == stored(server)
        assert stored(server) not in seen
        seen.add(stored(server))


@pytest.mark.usefixtures("long_up")
async def test_a_purge_returns_once_every_worker_uses_the_new_generation(workers: Workers, server: RedisServer) -> None:
    """Even one that was not listening at that moment, and one that does not serve the model."""
    many = await registered(workers, 3)
    await (await workers.start()).register("digits")
    await subscribed(server, "p1:purges", 4)
    for purging in (*many, many[0]):
        server.client.client_kill_filter(_type="pubsub")
        purged = await purging.purge("iris")
        assert purged.acknowledged == purged.workers >= 3
        assert purged.seconds == 0
        assert {worker.generation("iris") for worker in many} == {stored(server)}


@pytest.mark.usefixtures("long_up")
async def test_purges_at_the_same_time_all_return_and_leave_one_generation(
    workers: Workers, server: RedisServer
) -> None:
    many = await registered(workers, 3)
    await subscribed(server, "p1:purges", 3)
    for _ in range(5):
        purges = await asyncio.gather(*(worker.purge("iris") for worker in many))
        assert {(purged.acknowledged, purged.seconds) for purged in purges} == {(3, 0.0)}
        await becomes(lambda: {worker.generation("iris") for worker in many} == {stored(server)}, within=30)


async def test_a_redis_that_may_have_forgotten_workers_is_not_believed_to_know_all(
    workers: Workers, server: RedisServer, long_up: None
) -> None:
    cache = await workers.start()
    await cache.register("iris")
    await subscribed(server, "p1:purges")
    assert await cache.purge("iris") == (1, 1, 0.0)
    server.client.flushall()
    purged = await cache.purge("iris")
    assert 0 < purged.seconds <= VALID_SECONDS


async def test_a_worker_that_does_not_acknowledge_is_waited_for_in_bounds_and_counted(
    workers: Workers, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.generations.ACKNOWLEDGE_SECONDS", 0.2)
    cache = await workers.start()
    await cache.register("iris")
    await subscribed(server, "p1:purges")
    dead, long_dead = b"host:1:dead", b"host:2:gone"
    now = int(server.client.time()[0]) * 1000  # type: ignore[index]
    server.client.zadd("p1:w:iris", {dead: now, long_dead: now - 11_000})
    purged = await cache.purge("iris")
    assert (purged.workers, purged.acknowledged) == (2, 1)
    assert VALID_SECONDS - 5 < purged.seconds <= VALID_SECONDS


@pytest.mark.usefixtures("long_up")
async def test_a_worker_that_has_stopped_reading_is_not_waited_for_and_is_told_of_for_a_minute(
    workers: Workers, server: RedisServer
) -> None:
    cache = await workers.start()
    await cache.register("iris")
    await subscribed(server, "p1:purges")
    now = int(server.client.time()[0]) * 1000  # type: ignore[index]
    server.client.zadd("p1:w:iris", {b"host:1:cut off": now - 30_000, b"host:2:gone": now - 61_000})
    workers_seen, acknowledged, seconds = await cache.purge("iris")
    assert (workers_seen, acknowledged) == (1, 1)
    assert VALID_SECONDS - 1 < seconds <= VALID_SECONDS, "its answers are not older than that"
    server.client.zrem("p1:w:iris", b"host:1:cut off")
    assert await cache.purge("iris") == (1, 1, 0.0)


@pytest.mark.usefixtures("no_rereading")
async def test_a_worker_that_cannot_hear_purges_says_so_and_knows_no_generation_after_ten_seconds(
    workers: Workers, server: RedisServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    cache = await workers.start(clock=clock)
    await cache.register("iris")
    known = cache.generation("iris")
    server.freeze()
    clock.now += VALID_SECONDS - 0.01
    assert cache.generation("iris") == known
    clock.now += 0.01
    assert cache.generation("iris") is None, "by the clock, not by a timer: a worker that was stopped has none either"
    await cache.register("iris")
    assert "Purges cannot reach this worker" in caplog.text
    server.thaw()
    await cache.register("iris")
    assert cache.generation("iris") == known, "what is kept under it was not purged meanwhile"


async def test_a_read_only_redis_may_be_a_master_of_the_past_so_its_generations_do_not_count(
    workers: Workers, server: RedisServer, clock: Clock
) -> None:
    cache = await workers.start(clock=clock)
    await cache.register("iris")
    server.client.replicaof("127.0.0.1", "1")
    clock.now += VALID_SECONDS
    await cache.register("iris")
    assert cache.generation("iris") is None


@pytest.mark.usefixtures("long_up")
async def test_a_user_without_permission_for_channels_purges_and_is_told_the_truth(
    workers: Workers, server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.cache.generations.REREAD_SECONDS", 0.05)
    server.client.acl_setuser("mute", enabled=True, passwords=["+p"], keys=["*"], commands=["+@all"], reset=True)
    url = server.url.replace("://", "://mute:p@")
    one, two = await registered(workers, 2, url=url)
    before = two.generation("iris")
    purged = await one.purge("iris")
    assert purged == (2, 2, 0.0)
    assert one.generation("iris") == two.generation("iris") != before
    await becomes(
        lambda: "No messages from Redis reach this worker (this user has no permissions" in caplog.text, within=30
    )
    answer = await one.compute_once("K", compute)
    assert answer.stored, "a lease needs no messages either"


async def compute() -> Entry:
    return entry()


async def test_a_purge_that_redis_refuses_has_purged_nothing(l2: RedisCache, server: RedisServer) -> None:
    await l2.register("iris")
    before = stored(server)
    server.configure(maxmemory_policy="noeviction", maxmemory="1")
    with pytest.raises(StoreRefused):
        await l2.purge("iris")
    assert l2.generation("iris") == stored(server) == before


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
    changes: list[None] = []
    one = await workers.start(on_change=lambda: changes.append(None))
    two = await workers.start()
    for worker in (one, two):
        await worker.register("iris")
    await subscribed(server, "p1:purges", 2)
    changes.clear()
    server.client.client_kill_filter(_type="pubsub")
    await becomes(lambda: len(changes) == 1)
    await two.purge("iris")
    await becomes(lambda: one.generation("iris") == two.generation("iris"), within=30)


async def test_two_services_with_different_secrets_on_one_redis_leave_it_time_for_others(
    workers: Workers, server: RedisServer, witness: Witness
) -> None:
    """Each refuses what the other has sealed, replaces it and says so to all, who then read it."""
    one, two = await workers.start(), await workers.start(secret=b"another")
    await one.register("iris")
    await two.register("iris")
    await asyncio.sleep(1.5)
    assert 1 <= witness.corruptions < 50
    assert one.generation("iris") is not None and two.generation("iris") is not None
