from __future__ import annotations

import asyncio
import os
import pickle
import random
import tempfile
import time
from collections.abc import Awaitable, Callable

import pytest

from service.cache.entry import Accepts, Entry, seal
from service.cache.redis.auto_pipeline import ROUND_TRIP_SECONDS, DeadlineBudget
from service.cache.redis.l2 import NoRedis, RedisCache, open_redis
from service.errors import ConfigurationError, StoreRefused, StoreUnavailable
from tests.cache.stand_ins import SECRET, Witness, Workers, entry, subscribed
from tests.support.process import becomes
from tests.support.proxy import FaultProxy
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

FROZEN_SECONDS, ABSENT_SECONDS = 5, 2.5
"""Far more than a deadline, and far less than redis-py would wait: 59 s for a frozen server, 4.5 s for none."""


ENTRY = "p1:{K}:v"


async def value_of(cache: RedisCache, key: str) -> bytes | None:
    got = await cache.get(key)
    return None if got is None else got.value


def computes(value: bytes) -> Callable[[], Awaitable[Entry]]:
    async def compute() -> Entry:
        return entry(value)

    return compute


# What is stored


async def test_the_first_committed_value_wins_and_everybody_learns_it(workers: Workers) -> None:
    one, two = await workers.start(), await workers.start()
    first, second = entry(b"first", 100), entry(b"second", 200)
    assert await one.put("K", first) is first
    committed = await two.put("K", second)
    assert (committed.value, committed.ttl) == (b"first", 100)
    assert await value_of(one, "K") == b"first"


async def test_a_fresh_answer_overwrites(l2: RedisCache) -> None:
    await l2.put("K", entry(b"old"))
    fresh = entry(b"fresh")
    assert await l2.put("K", fresh, overwrite=True) is fresh
    assert await value_of(l2, "K") == b"fresh"


async def test_age_is_the_lifetime_less_what_Redis_says_is_left(l2: RedisCache, server: RedisServer) -> None:
    await l2.put("K", entry(ttl=300))
    started = time.monotonic()
    server.client.pexpire(ENTRY, 200_000)
    got = await l2.get("K")
    now = time.monotonic()
    assert got is not None
    # Twice: by Redis's clock what it took to ask, and by ours what it took to be told.
    assert 100 - 0.01 <= got.age(now) <= 100 + 2 * (now - started) + 0.01


async def test_an_expiry_that_somebody_has_put_off_is_not_believed(l2: RedisCache, server: RedisServer) -> None:
    await l2.put("K", entry(ttl=300))
    server.client.pexpire(ENTRY, 900_000)
    got = await l2.get("K")
    assert got is not None
    assert got.left(time.monotonic()) <= 300


async def test_everything_stored_has_a_TTL_and_no_key_holds_raw_input(l2: RedisCache, server: RedisServer) -> None:
    await l2.register("iris")
    await l2.put("K", entry(b"secret-input"))
    keys = set(server.client.keys())
    generation = l2.generation("iris")
    assert generation is not None
    assert keys == {b"p1:{K}:v", b"p1:g:iris", b"p1:w:iris", b"p1:k:iris:" + generation.hex().encode()}
    assert all(0 < server.client.pttl(key) <= 300_000 for key in keys - {b"p1:g:iris"})


async def test_services_with_different_prefixes_share_a_Redis_without_meeting(
    workers: Workers, server: RedisServer
) -> None:
    test, production = await workers.start(prefix="shop:test"), await workers.start(prefix="shop:prod")
    for service in (test, production):
        await service.register("iris")
    await subscribed(server, "shop:test:purges")
    await test.compute_once("K", computes(b"test"))
    assert await production.get("K") is None
    kept = production.generation("iris")
    assert (await test.purge("iris"))[:2] == (1, 1)
    assert production.generation("iris") == kept
    await production.compute_once("K", computes(b"production"))
    assert (await value_of(test, "K"), await value_of(production, "K")) == (b"test", b"production")
    assert all(name.startswith((b"shop:test:", b"shop:prod:")) for name in server.names())


async def test_an_answer_can_be_forgotten(l2: RedisCache) -> None:
    await l2.put("K", entry())
    await l2.delete("K")
    assert await l2.get("K") is None


# Shared round trips


async def test_the_reads_of_one_turn_share_one_round_trip(l2: RedisCache, witness: Witness) -> None:
    await asyncio.gather(*(l2.put(f"K{i}", entry(b"%d" % i)) for i in range(50)))
    values = await asyncio.gather(*(value_of(l2, f"K{i}") for i in range(60)))
    assert values == [b"%d" % i for i in range(50)] + [None] * 10
    assert witness.commands == 2


async def test_many_keys_of_a_batch_are_read_and_stored_like_each_alone(
    l2: RedisCache, server: RedisServer, witness: Witness
) -> None:
    entries = {f"K{i}": entry(b"%d" % i) for i in range(200)}
    await l2.put("K1", entry(b"first"))
    server.client.set("p1:{K2}:v", b"no entry")
    before = witness.commands
    assert {key: kept.value for key, kept in (await l2.put_many(entries)).items()} == {
        key: b"first" if key == "K1" else kept.value for key, kept in entries.items()
    }
    server.client.set("p1:{K3}:v", b"no entry")
    found = await l2.get_many([*entries, "absent"])
    assert found.keys() == entries.keys() - {"K3"}
    assert (found["K1"].value, found["K2"].value) == (b"first", b"2")
    assert witness.commands - before <= 4  # one for each of the two, and one more for each value that is no entry
    assert await value_of(l2, "K3") is None


async def test_reads_writes_and_commands_of_one_turn_share_one_too_and_each_has_its_own_reply(
    l2: RedisCache, witness: Witness
) -> None:
    await l2.put("there", entry(b"first"))
    found, missing, stored, late, _, counted = await asyncio.gather(
        value_of(l2, "there"),
        value_of(l2, "not there"),
        l2.put("new", entry(b"new")),
        l2.put("there", entry(b"second")),
        l2.touch(["there"]),
        l2.count("iris", ["a", "b"], 3, 1),
    )
    assert (found, missing, stored.value, late.value) == (b"first", None, b"new", b"first")
    assert counted == [3, 1, 2]
    assert witness.commands == 2


async def test_a_write_that_is_refused_spoils_no_read_beside_it(l2: RedisCache, server: RedisServer) -> None:
    await l2.put("there", entry(b"first"))
    server.configure(maxmemory_policy="noeviction", maxmemory="1")
    found, refused = await asyncio.gather(value_of(l2, "there"), l2.put("new", entry(b"new")), return_exceptions=True)
    assert found == b"first"
    assert isinstance(refused, StoreUnavailable)


async def test_a_command_that_always_errs_takes_nothing_from_those_beside_it(
    l2: RedisCache, server: RedisServer
) -> None:
    await l2.put("there", entry(b"first"))
    for _ in range(10):
        found, erred = await asyncio.gather(
            value_of(l2, "there"), DeadlineBudget().wait(l2._pipeline.ask(("NO-SUCH-COMMAND",))), return_exceptions=True
        )
        assert (found, type(erred), l2.state) == (b"first", StoreRefused, "up")


async def test_a_server_that_has_lost_its_scripts_is_taught_them_again(l2: RedisCache, server: RedisServer) -> None:
    await l2.put("K", entry())
    server.client.script_flush()
    assert await value_of(l2, "K") == b"value"
    server.client.script_flush()
    await l2.put("L", entry())
    assert l2.state == "up"


async def test_a_cancelled_reader_never_shifts_replies_to_others(l2: RedisCache, witness: Witness) -> None:
    await asyncio.gather(*(l2.put(f"K{i}", entry(b"%d" % i)) for i in range(40)))
    chance = random.Random(1)
    for _ in range(30):
        readers = [asyncio.create_task(value_of(l2, f"K{i}")) for i in range(40)]
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
        leaving = set(chance.sample(range(40), 20))
        for i in leaving:
            readers[i].cancel()
        outcomes = await asyncio.gather(*readers, return_exceptions=True)
        for i, outcome in enumerate(outcomes):
            assert outcome == b"%d" % i or (i in leaving and isinstance(outcome, asyncio.CancelledError))
    assert witness.corruptions == 0


async def test_a_unix_socket_will_do(package_server: RedisServer, server: RedisServer, workers: Workers) -> None:
    cache = await workers.start(url=f"unix://{package_server.directory}/redis.sock")
    await cache.put("K", entry())
    assert await value_of(cache, "K") == b"value"


# Values that this service did not write


class Bomb:
    path = os.path.join(tempfile.gettempdir(), f"pickle-bomb-{os.getpid()}")

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (self.path,)


def put_raw(server: RedisServer, value: bytes) -> None:
    server.client.set(ENTRY, value, px=300_000)


DAMAGES: dict[str, Callable[[RedisServer], object]] = {
    "random": lambda s: put_raw(s, os.urandom(60)),
    "empty": lambda s: put_raw(s, b""),
    "truncated": lambda s: put_raw(s, s.client.get(ENTRY)[:-1]),
    "one bit flipped": lambda s: s.client.setbit(ENTRY, 200, 1 - s.client.getbit(ENTRY, 200)),
    "without a TTL": lambda s: s.client.persist(ENTRY),
    "copied from another key": lambda s: put_raw(s, seal("L", b"value", 300_000, SECRET)),
    "with another secret": lambda s: put_raw(s, seal("K", b"value", 300_000, b"guessed")),
    "a list": lambda s: (s.client.delete(ENTRY), s.client.rpush(ENTRY, "x")),
    "a hash": lambda s: (s.client.delete(ENTRY), s.client.hset(ENTRY, "x", "y")),
    "huge": lambda s: put_raw(s, bytes(1_000_000)),
    "a pickle bomb": lambda s: put_raw(s, pickle.dumps(Bomb())),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_corrupt_value_is_a_counted_miss_and_gone(
    l2: RedisCache, server: RedisServer, witness: Witness, damage: Callable[[RedisServer], object]
) -> None:
    await l2.put("K", entry())
    damage(server)
    assert await l2.get("K") is None
    assert witness.corruptions == 1
    await becomes(lambda: not server.client.exists(ENTRY))
    await l2.put("K", entry(b"again"))
    assert await value_of(l2, "K") == b"again"
    assert os.path.basename(Bomb.path) not in os.listdir(tempfile.gettempdir())


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_a_corrupt_value_does_not_pass_for_the_first_committed_one(
    l2: RedisCache, server: RedisServer, damage: Callable[[RedisServer], object]
) -> None:
    await l2.put("K", entry())
    damage(server)
    mine = entry(b"mine")
    assert await l2.put("K", mine) is mine
    assert await value_of(l2, "K") == b"mine"


WAYS: dict[str, Callable[[RedisCache, Accepts], Awaitable[Entry | None]]] = {
    "get": lambda l2, accepts: l2.get("K", accepts=accepts),
    "put": lambda l2, accepts: l2.put("K", entry(b"mine"), accepts=accepts),
    "claim": lambda l2, accepts: led(l2, accepts),
    "commit": lambda l2, accepts: led(l2, accepts, overtaken_by=b"theirs"),
}


async def led(l2: RedisCache, accepts: Accepts, overtaken_by: bytes | None = None) -> Entry:
    async def compute() -> Entry:
        if overtaken_by is not None:
            await l2.put("K", entry(overtaken_by), overwrite=True)
        return entry(b"mine")

    return (await l2.compute_once("K", compute, accepts=accepts)).entry


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_a_value_that_its_reader_does_not_accept_is_a_counted_miss_and_gone(
    l2: RedisCache,
    server: RedisServer,
    witness: Witness,
    way: Callable[[RedisCache, Accepts], Awaitable[Entry | None]],
) -> None:
    await l2.put("K", entry(b"theirs"))
    got = await way(l2, lambda value: value != b"theirs")
    assert got is None or got.value == b"mine"
    assert witness.corruptions >= 1
    await becomes(lambda: b"theirs" not in (server.client.get(ENTRY) or b""))


async def test_a_redis_that_takes_no_writes_is_not_asked_to_remove_a_value_or_a_claim(
    l2: RedisCache, server: RedisServer, witness: Witness
) -> None:
    """Each refusal would make the pause of writes longer, and under traffic it would never end."""
    server.client.set(ENTRY, b"damaged", px=60_000)
    l2._client.breaker.pause_writes("OOM")
    before = witness.commands
    assert await l2.get("K") is None
    assert (await led(l2, lambda value: True)).value == b"mine"
    await l2._pipeline.close()  # waits for all that was asked
    assert (witness.commands, server.client.get(ENTRY)) == (before + 1, b"damaged")


async def test_one_corrupt_value_spoils_no_neighbour(l2: RedisCache, server: RedisServer) -> None:
    await l2.put("K", entry())
    await l2.put("L", entry(b"good"))
    server.client.delete(ENTRY)
    server.client.rpush(ENTRY, "x")
    assert await asyncio.gather(value_of(l2, "K"), value_of(l2, "L")) == [None, b"good"]


async def test_removing_a_corrupt_value_spares_the_good_one_that_came_meanwhile(
    l2: RedisCache, server: RedisServer
) -> None:
    await l2.put("K", entry(b"good"))
    l2._discard("K", b"what was seen before")
    assert await value_of(l2, "K") == b"good"


# Redis misbehaves


async def test_a_frozen_Redis_costs_no_more_than_a_deadline_and_is_found_again(
    l2: RedisCache, server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    await l2.put("K", entry())
    server.freeze()
    for state in ("up", "up", "down"):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await l2.get("K")
        assert time.monotonic() - started < FROZEN_SECONDS
        assert l2.state == state
    times = []
    for _ in range(5):
        started = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await l2.get("K")
        with pytest.raises(StoreUnavailable):
            await l2.put("K", entry())
        times.append(time.monotonic() - started)
    assert min(times) < ROUND_TRIP_SECONDS / 2  # nobody waits for a Redis that is known to be down
    server.thaw()
    await becomes(lambda: l2.state == "up")
    assert await value_of(l2, "K") == b"value"
    assert [record.state for record in caplog.records] == ["down", "up"]  # type: ignore[attr-defined]


async def test_a_pause_of_the_worker_itself_is_not_blamed_on_Redis(
    l2: RedisCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await l2.put("K", entry())
    monkeypatch.undo()  # from here on Redis has no more time than in production
    for _ in range(4):
        reading = asyncio.create_task(value_of(l2, "K"))
        for _ in range(4):  # until the command has been sent
            await asyncio.sleep(0)
        time.sleep(0.2)  # noqa: ASYNC251 - the pause
        assert await reading == b"value"
    assert not caplog.records


async def test_all_round_trips_of_a_request_together_cost_no_more_than_its_allowance(
    l2: RedisCache, server: RedisServer
) -> None:
    budget = DeadlineBudget()
    server.freeze()
    started = time.monotonic()
    for call in (l2.get("K", budget), l2.put("K", entry(), budget=budget)):
        with pytest.raises(StoreUnavailable):
            await call
    assert time.monotonic() - started < FROZEN_SECONDS
    assert budget.left <= 0.01


async def test_replies_that_come_too_late_meet_nobody(server: RedisServer, workers: Workers, witness: Witness) -> None:
    proxy = FaultProxy(server.port)
    proxy.start()
    try:
        cache = await workers.start(url=proxy.url)
        await asyncio.gather(*(cache.put(f"K{i}", entry(b"%d" % i)) for i in range(8)))
        for fault in ("slices", "cut mid-reply", "reset", "cut"):
            proxy.set(fault)
            await asyncio.gather(*(cache.get(f"K{i}") for i in range(8)), return_exceptions=True)
            proxy.set("none")
            await becomes(lambda: cache.state == "up")
            for i in range(8):
                assert await value_of(cache, f"K{i}") == b"%d" % i
        assert witness.corruptions == 0
    finally:
        proxy.stop()


async def test_connections_that_the_server_has_closed_cost_nobody_an_answer(
    l2: RedisCache, server: RedisServer
) -> None:
    await l2.put("K", entry())
    for _ in range(10):
        server.kill_clients()
        await asyncio.sleep(0.01)  # the close has to reach our socket
        assert await value_of(l2, "K") == b"value"


async def test_a_full_Redis_still_serves_reads_and_writes_pause(l2: RedisCache, server: RedisServer) -> None:
    await l2.register("iris")
    await l2.put("K", entry())
    server.configure(maxmemory_policy="noeviction", maxmemory="1")
    server.client.script_flush()
    with pytest.raises(StoreUnavailable, match="maxmemory"):
        await l2.put("L", entry())
    assert await value_of(l2, "K") == b"value"
    assert l2.state == "read-only"
    server.configure(maxmemory="64mb")
    with pytest.raises(StoreUnavailable):  # nothing is tried before the pause is over
        await l2.put("L", entry())
    assert server.client.keys("*:v") == [b"p1:{K}:v"]
    await becomes(lambda: l2.state == "up")


async def test_a_read_only_replica_still_serves_reads(l2: RedisCache, server: RedisServer) -> None:
    await l2.put("K", entry())
    server.client.replicaof("127.0.0.1", "1")
    with pytest.raises(StoreUnavailable, match=r"(?i)read only"):
        await l2.put("L", entry())
    assert await value_of(l2, "K") == b"value"
    assert l2.state == "read-only"


async def test_a_wrong_password_is_an_unavailable_store(server: RedisServer, workers: Workers) -> None:
    server.client.config_set("requirepass", "changed")
    try:
        cache = await workers.start()
        assert cache.state == "down"
        with pytest.raises(StoreUnavailable):
            await cache.get("K")
    finally:
        server.client.config_set("requirepass", "")
    await becomes(lambda: cache.state == "up")


async def test_errors_that_are_no_refusal_to_write_open_the_breaker(l2: RedisCache, server: RedisServer) -> None:
    server.client.execute_command("ACL SETUSER", "default", "-get")
    try:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await l2.get("K")
        assert l2.state == "down"
    finally:
        server.client.execute_command("ACL SETUSER", "default", "+get")


@pytest.mark.usefixtures("promised_times")
async def test_a_Redis_that_is_not_there_delays_nothing(free_tcp_port: int) -> None:
    started = time.monotonic()
    async with open_redis(f"redis://127.0.0.1:{free_tcp_port}", secret=SECRET, observer=Witness()) as cache:
        await cache.register("iris")
        assert time.monotonic() - started < ABSENT_SECONDS
        assert (cache.state, cache.generation("iris")) == ("down", None)
        with pytest.raises(StoreUnavailable):
            await cache.purge("iris")


async def test_a_Redis_with_no_room_for_another_client_is_an_unavailable_store(
    server: RedisServer, workers: Workers
) -> None:
    await becomes(lambda: len(server.client.client_list()) == 1)  # those of the test before have gone
    server.configure(maxclients=1)
    try:
        cache = await workers.start()
        assert cache.state == "down"
    finally:
        server.configure(maxclients=1000)
    await becomes(lambda: cache.state == "up")


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cr@localhost",
        "redis://:s3cr/et@localhost:6379/0",
        "s3cr:6379",
        "redis://localhost/s3cr",
        "redis://localhost/0?s3cr=1",
    ],
)
async def test_a_URL_that_is_none_stops_the_start_and_no_part_of_it_is_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError, match="PREDICT_REDIS_URL") as failure:
        async with open_redis(url, secret=SECRET, observer=Witness()):
            pass
    assert "s3cr" not in str(failure.value)


async def test_connections_are_bounded_and_gone_after_closing(server: RedisServer, witness: Witness) -> None:
    def clients() -> int:
        return len(server.client.client_list())

    await becomes(lambda: clients() == 1)  # those of the test before have gone
    async with open_redis(server.url, secret=SECRET, observer=witness) as cache:
        for _ in range(20):
            await asyncio.gather(*(cache.get(f"K{i}") for i in range(500)), return_exceptions=True)
        assert clients() - 1 <= 14  # 12 for round trips, one for PING, one that listens
    await becomes(lambda: clients() == 1)


# Without Redis


async def test_without_a_URL_there_is_an_L2_that_never_has_anything() -> None:
    changed: list[None] = []
    async with open_redis("", secret=SECRET, observer=Witness(), on_change=lambda: changed.append(None)) as cache:
        assert isinstance(cache, NoRedis)
        assert cache.state == "off"
        assert await cache.get("K") is None
        generation = cache.generation("iris")
        assert cache.generation("iris") == generation
        assert cache.generation("other") != generation
        await cache.purge("iris")
        assert cache.generation("iris") != generation
        assert changed == [None]


async def test_redis_is_told_what_is_asked_where_it_cannot_see_it(l2: RedisCache, server: RedisServer) -> None:
    server.configure(maxmemory_policy="allkeys-lfu")
    for key in ("hot", "cold"):
        await l2.put(key, entry())
    for _ in range(100):
        await l2.touch(["hot", "not there"])
    hot, cold = (server.client.object("freq", f"p1:{{{key}}}:v") for key in ("hot", "cold"))
    assert hot > cold
