"""B: nothing is served past its lifetime or after its purge, and Redis is not asked for what is hot."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.scenarios.conftest import CLUSTER_WORKERS, Fresh, Start
from tests.support.client import Connection, Response, fetch
from tests.support.probe import Book, expected, target
from tests.support.process import PATIENCE, becomes, resident_bytes
from tests.support.proxy import fault_proxy
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import ADMIN_TOKEN, Server, close_all

pytestmark = pytest.mark.anyio

TTL = 2.0
BOUND = 10.0
"""Seconds after a purge by which every worker has noticed, whatever it hears."""


@pytest.fixture
async def connections(cluster: Server) -> AsyncIterator[list[Connection]]:
    """One to each worker."""
    found = await cluster.connect_to_each()
    each = [c for owned in found.values() for c in owned]
    yield each
    close_all(each)


async def purge(server: Server, model: str = "probe") -> Response:
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}
    answer = await fetch(server.address, "/admin/purge", "POST", headers, json.dumps({"model": model}).encode())
    assert answer.status in (200, 202, 204), answer
    return answer


async def ask_each(connections: list[Connection], question: str) -> list[Response]:
    """One after another, so that the workers do not collapse into one flight."""
    return [await connection.get(question) for connection in connections]


async def warm(connections: list[Connection], question: str) -> None:
    """Until every worker has it in its own cache, two whole seconds old."""
    async with asyncio.timeout(PATIENCE):
        while {answer.cache.get("detail") for answer in await ask_each(connections, question)} != {"L1"}:
            pass
    await asyncio.sleep(2.05)


def born_before(answer: Response, moment: float) -> bool:
    """Whether the answer certainly dates from before this reading of the monotonic clock (Age is rounded down)."""
    return answer.hit and time.monotonic() - answer.age < moment


async def test_age_never_exceeds_max_age_on_any_worker(
    start: Start, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """B1"""
    x = fresh()
    with start(redis_url=redis_server.url, workers=2, ttl_seconds=TTL) as server:
        found = await server.connect_to_each()
        connections = [c for owned in found.values() for c in owned]
        answers: list[Response] = []
        begun = time.monotonic()
        while book.count(x) < 3 and time.monotonic() - begun < PATIENCE:
            answers += await ask_each(connections, target(x))
            await asyncio.sleep(0.02)
        lifetimes = (time.monotonic() - begun) / (0.9 * TTL) + 1
        close_all(connections)
    assert {answer.status for answer in answers} == {200}
    assert all(answer.age <= answer.max_age for answer in answers)
    assert all(answer.cache["ttl"] >= 0 for answer in answers)
    assert {answer.age for answer in answers if answer.hit} >= {0, 1}, "it did grow old"
    assert 3 <= book.count(x) <= lifetimes * 2, "it did end, and was computed again"


def nothing(redis_server: RedisServer) -> None:
    """Happens."""


def cut_messages(redis_server: RedisServer) -> None:
    redis_server.client.client_kill_filter(_type="pubsub")


@pytest.mark.parametrize("just_before", [nothing, cut_messages])
async def test_a_purge_holds_on_every_worker_when_it_says_so(
    cluster: Server,
    cluster_redis: RedisServer,
    connections: list[Connection],
    book: Book,
    fresh: Fresh,
    just_before: Callable[[RedisServer], None],
) -> None:
    """B2: from the first request on, of whichever worker, and by the tag that a client has from before."""
    while (await purge(cluster)).status != 200:  # noqa: ASYNC110 - Redis may have been started just now
        await asyncio.sleep(0.5)
    x, kept = fresh(), fresh()
    await warm(connections, target(x))
    [before, *_] = await ask_each(connections, target(x))
    await ask_each(connections, target(kept, model="other"))
    just_before(cluster_redis)
    purged = time.monotonic()
    told = await purge(cluster)
    conditions = {"If-None-Match": before.headers["etag"]}
    after = await asyncio.gather(*(connection.get(target(x), conditions) for connection in connections))
    after += await ask_each(connections, target(x))
    assert (told.status, told.json()) == (
        200,
        {
            "purged": "probe",
            "workers": CLUSTER_WORKERS,
            "acknowledged": CLUSTER_WORKERS,
            "complete_within_seconds": 0,
        },
    )
    assert {answer.status for answer in after} == {200}
    assert not any(born_before(answer, purged) for answer in after)
    assert {answer.headers["etag"] for answer in after} != {before.headers["etag"]}
    assert (await connections[0].get(target(x), {"If-None-Match": after[0].headers["etag"]})).status == 304
    assert book.count(x) == 2
    assert all(answer.hit for answer in await ask_each(connections, target(kept, model="other")))


@pytest.mark.faults
@pytest.mark.parametrize("how", ["cut off from Redis", "stopped"])
async def test_a_worker_that_hears_nothing_gives_no_purged_answer_past_the_bound_that_the_purge_states(
    start: Start, redis_server: RedisServer, fresh: Fresh, how: str
) -> None:
    """B2"""
    x = fresh()
    with (
        fault_proxy(redis_server.port) as proxy,
        start(redis_url=proxy.url) as far,
        start(redis_url=redis_server.url) as near,
    ):
        async with await Connection.open(far.address) as connection:
            await warm([connection], target(x))
            tag = (await connection.get(target(x))).headers["etag"]
            if how == "stopped":
                os.kill(far.workers()[0], signal.SIGSTOP)
            else:
                proxy.set("black hole")
            purged = time.monotonic()
            told = await purge(near)
            bound = time.monotonic() + told.json()["complete_within_seconds"]
            assert (told.status, told.json()["workers"], told.json()["acknowledged"]) == (202, 2, 1)
            assert bound <= time.monotonic() + BOUND
            if how == "cut off from Redis":
                assert (await connection.get(target(x))).hit, "it cannot know better"
            await asyncio.sleep(bound - time.monotonic())
            if how == "stopped":
                os.kill(far.workers()[0], signal.SIGCONT)
            answers = [await connection.get(target(x), {"If-None-Match": tag})]
            answers += [await connection.get(target(x)) for _ in range(100)]
            assert {answer.status for answer in answers} == {200}
            assert not any(born_before(answer, purged) for answer in answers)
            if how == "cut off from Redis":
                assert "etag" not in answers[0].headers
                assert (await connection.get(target(x), {"If-None-Match": "*"})).status == 304
                await becomes(lambda: "Purges cannot reach this worker" in far.process.errors())
            proxy.set("none")


@pytest.mark.parametrize("purger", ["the same worker", "one that has gone since"])
async def test_a_purge_is_not_undone_by_a_redis_that_comes_back_with_an_older_snapshot(
    start: Start, fresh: Fresh, tmp_path: Path, purger: str
) -> None:
    """B3"""
    x = fresh()
    with running_redis(tmp_path / "redis") as own, start(redis_url=own.url) as server:
        await fetch(server.address, target(x))
        own.client.save()
        if purger == "the same worker":
            await purge(server)
        else:
            with start(redis_url=own.url) as other:
                await purge(other)
        purged = time.monotonic()
        own.restart()
        assert own.entries(), "it has what it had before"
        while time.monotonic() < purged + 3:
            answer = await fetch(server.address, target(x))
            assert not born_before(answer, purged) and answer.json()["probabilities"] == expected(x)
            await asyncio.sleep(0.05)


async def test_the_worker_that_was_asked_to_purge_has_done_so_when_it_answers(
    start: Start, redis_server: RedisServer, fresh: Fresh
) -> None:
    """B2"""
    x = fresh()
    with start(redis_url=redis_server.url) as server:
        for _ in range(10):
            await fetch(server.address, target(x))
            await fetch(server.address, target(x))
            await purge(server)
            assert not (await fetch(server.address, target(x))).hit


@pytest.mark.faults
async def test_a_purge_reaches_every_worker_within_its_bound_without_pubsub(
    cluster: Server, connections: list[Connection], cluster_redis: RedisServer, fresh: Fresh
) -> None:
    """B2"""
    x = fresh()
    await warm(connections, target(x))

    async def cut() -> None:
        while True:
            cluster_redis.client.client_kill_filter(_type="pubsub")
            await asyncio.sleep(0.02)

    cutting = asyncio.ensure_future(cut())
    try:
        purged = time.monotonic()
        await purge(cluster)
        while any(born_before(answer, purged) for answer in await ask_each(connections, target(x))):
            assert time.monotonic() - purged < BOUND
            await asyncio.sleep(0.05)
    finally:
        cutting.cancel()


def evict_everything_but_entries(redis_server: RedisServer) -> None:
    for key in redis_server.names() - redis_server.entries():
        redis_server.client.unlink(key)


def flush(redis_server: RedisServer) -> None:
    redis_server.client.flushall()


def restart_empty(redis_server: RedisServer) -> None:
    redis_server.restart()


@pytest.mark.parametrize(
    "loss",
    [
        pytest.param(evict_everything_but_entries, marks=pytest.mark.faults),
        pytest.param(flush, marks=pytest.mark.faults),
        restart_empty,
    ],
)
async def test_no_purged_answer_comes_back_whatever_redis_loses(
    cluster: Server, connections: list[Connection], cluster_redis: RedisServer, fresh: Fresh, loss: object
) -> None:
    """B3"""
    x = fresh()
    await warm(connections, target(x))
    purged = time.monotonic()
    await purge(cluster)
    await asyncio.sleep(1)
    assert callable(loss)
    loss(cluster_redis)
    while time.monotonic() < purged + 3:
        answers = await ask_each(connections, target(x))
        assert {answer.status for answer in answers} == {200}
        assert not any(born_before(answer, purged) for answer in answers)
        await asyncio.sleep(0.1)


async def test_hot_keys_answer_at_once_while_redis_is_frozen(
    cluster: Server, connections: list[Connection], cluster_redis: RedisServer, fresh: Fresh
) -> None:
    """B4"""
    x = fresh()
    # Redis may have been restarted: a worker that subscribes again drops what it has.
    await becomes(lambda: cluster_redis.client.pubsub_numsub("p1:purges")[0][1] == CLUSTER_WORKERS)
    await warm(connections, target(x))
    cluster_redis.freeze()
    try:
        answers = [answer for _ in range(25) for answer in await ask_each(connections, target(x))]
    finally:
        cluster_redis.thaw()
    assert all(answer.hit for answer in answers)
    times = sorted(answer.seconds for answer in answers)
    assert times[len(times) // 2] < 0.1
    # Redis costs a question a second here, until three of a worker's have failed: twelve in all.
    assert sum(seconds > 0.8 for seconds in times) < 3, "nobody waited for Redis"


@pytest.mark.faults
@pytest.mark.timeout(900)
async def test_a_million_unique_requests_fit_into_the_bound_of_the_own_cache(start: Start) -> None:
    """B5"""
    bound = 32 * 2**20
    numbers = random.Random(5)
    with start(l1_max_bytes=bound, max_queue_size=4096) as server:
        (worker,) = server.workers()

        async def rows(count: int) -> None:
            async with await Connection.open(server.address) as connection:
                for _ in range(count // 250):
                    inputs = [dict.fromkeys("abcd", numbers.uniform(0, 8)) for _ in range(250)]
                    body = json.dumps({"model": "linear", "inputs": inputs}).encode()
                    headers = {"Content-Type": "application/json"}
                    assert (await connection.request("POST", "/predict_batch", headers, body)).status == 200

        await rows(2_000)
        before = resident_bytes(worker)
        await asyncio.gather(*(rows(250_000) for _ in range(4)))
        grown = resident_bytes(worker) - before
    assert grown <= bound * 1.2, f"{grown / 2**20:.1f} MiB"
