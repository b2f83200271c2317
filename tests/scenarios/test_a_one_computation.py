"""A: each answer is computed once, however many ask and whatever happens to those who compute."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tests.scenarios.conftest import CLUSTER_WORKERS, Fresh, Start
from tests.support.client import Connection, Response, burst, fetch
from tests.support.probe import EXIT, RAISE, SLEEP, TOLD_TO_RAISE, WAIT, Book, expected, target
from tests.support.process import SLACK, becomes
from tests.support.redis_server import RedisServer
from tests.support.server import Server, close_all

pytestmark = pytest.mark.anyio

LEASE = 2.0


async def ask(connection: Connection, question: str) -> Response | None:
    """None when the connection broke: its worker has died."""
    try:
        return await connection.get(question)
    except (asyncio.IncompleteReadError, OSError):
        return None


async def test_200_simultaneous_requests_over_4_workers_cost_one_computation(
    cluster: Server, book: Book, fresh: Fresh
) -> None:
    """A1"""
    x = fresh()
    answers = await burst(cluster.address, [target(x, SLEEP, 0.5)] * 200)
    assert [answer.status for answer in answers] == [200] * 200
    assert book.count(x) == 1
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json()["probabilities"] == expected(x)
    assert max(answer.seconds for answer in answers) < 0.75 * SLACK + 1


async def test_two_replicas_share_one_computation(
    cluster: Server, start: Start, cluster_redis: RedisServer, book: Book, fresh: Fresh
) -> None:
    """A1"""
    x = fresh()
    with start(redis_url=cluster_redis.url, lease="always") as replica:
        both = await asyncio.gather(
            burst(cluster.address, [target(x, SLEEP, 0.5)] * 100), burst(replica.address, [target(x, SLEEP, 0.5)] * 100)
        )
    answers = [answer for answers in both for answer in answers]
    assert [answer.status for answer in answers] == [200] * 200
    assert len({answer.body for answer in answers}) == 1
    assert book.count(x) == 1


async def test_distinct_inputs_do_not_wait_for_each_others_lease(cluster: Server, book: Book, fresh: Fresh) -> None:
    """A2: behind one another they would need a call of the model each; beside each other, two per worker."""
    xs = [fresh() for _ in range(8)]
    answers = await burst(cluster.address, [target(x, SLEEP, 1.0) for x in xs])
    assert [answer.json()["probabilities"] for answer in answers] == [expected(x) for x in xs]
    lines = book.lines(*xs)
    assert len(lines) == 8
    for pid in {line.pid for line in lines}:
        assert len({line.call for line in lines if line.pid == pid}) <= 2


async def test_when_the_computing_worker_is_killed_another_computes(cluster: Server, book: Book, fresh: Fresh) -> None:
    """A3"""
    x = fresh()
    connections = await cluster.connect_to_each(4)
    try:
        asking = {
            pid: [asyncio.ensure_future(ask(connection, target(x, WAIT))) for connection in owned]
            for pid, owned in connections.items()
        }
        await becomes(lambda: book.count(x))
        victim = book.lines(x)[0].pid
        os.kill(victim, signal.SIGKILL)
        start = time.monotonic()
        book.open_gate(x)
        answers = [await task for pid, tasks in asking.items() for task in tasks if pid != victim]
        assert time.monotonic() - start < (LEASE + 0.5) * SLACK
        assert [answer and answer.status for answer in answers] == [200] * (CLUSTER_WORKERS - 1) * 4
        assert len({answer.body for answer in answers if answer}) == 1
        assert book.count(x) == 2
        assert [await task for task in asking[victim]] == [None] * 4
    finally:
        book.open_gate(x)
        close_all(c for owned in connections.values() for c in owned)
        cluster.wait_until_ready()


@pytest.mark.faults
async def test_a_computation_of_three_leases_keeps_its_lease(cluster: Server, book: Book, fresh: Fresh) -> None:
    """A4"""
    x = fresh()
    connections = await cluster.connect_to_each(2)
    everyone = [c for owned in connections.values() for c in owned]
    try:
        answers = await asyncio.gather(*(c.get(target(x, SLEEP, 3 * LEASE + 0.5)) for c in everyone))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        assert book.count(x) == 1
    finally:
        close_all(everyone)


@pytest.mark.faults
async def test_a_worker_that_stalls_for_two_leases_changes_nobodys_answer(
    cluster: Server, book: Book, fresh: Fresh
) -> None:
    """A5"""
    x = fresh()
    connections = await cluster.connect_to_each(2)
    everyone = [c for owned in connections.values() for c in owned]
    try:
        asking = [asyncio.ensure_future(c.get(target(x, SLEEP, 1.0))) for c in everyone]
        await becomes(lambda: book.count(x))
        stalled = book.lines(x)[0].pid
        os.kill(stalled, signal.SIGSTOP)
        try:
            await asyncio.sleep(2 * LEASE)
        finally:
            os.kill(stalled, signal.SIGCONT)
        answers = await asyncio.gather(*asking)
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        assert book.count(x) <= 2
    finally:
        close_all(everyone)


async def test_a_first_client_that_leaves_takes_nothing_from_the_others(
    cluster: Server, book: Book, fresh: Fresh
) -> None:
    """A6"""
    x = fresh()
    connections = await cluster.connect_to_each(2)
    everyone = [c for owned in connections.values() for c in owned]
    try:
        first = await Connection.open(cluster.address)
        first.send("GET", target(x, WAIT))
        await becomes(lambda: book.count(x))
        asking = [asyncio.ensure_future(c.get(target(x, WAIT))) for c in everyone]
        await asyncio.sleep(0.2)
        first.abort()
        await asyncio.sleep(0.2)
        book.open_gate(x)
        answers = await asyncio.gather(*asking)
        assert [answer.status for answer in answers] == [200] * len(everyone)
        assert book.count(x) == 1
    finally:
        book.open_gate(x)
        close_all(everyone)


async def test_what_was_dispatched_for_a_client_that_left_is_a_hit_for_the_next(
    cluster: Server, cluster_redis: RedisServer, book: Book, fresh: Fresh
) -> None:
    """A6"""
    x = fresh()
    stored = cluster_redis.entries()
    alone = await Connection.open(cluster.address)
    alone.send("GET", target(x, WAIT))
    await becomes(lambda: book.count(x))
    alone.abort()
    await asyncio.sleep(0.2)
    book.open_gate(x)
    await becomes(lambda: cluster_redis.entries() - stored)
    assert (await fetch(cluster.address, target(x, WAIT))).hit
    assert book.count(x) == 1


@pytest.mark.faults
async def test_50_clients_in_a_loop_cost_one_computation_per_lifetime(
    start: Start, cluster_redis: RedisServer, book: Book, fresh: Fresh
) -> None:
    """A7"""
    x = fresh()
    with start(redis_url=cluster_redis.url, workers=CLUSTER_WORKERS, lease="always", ttl_seconds=2) as server:
        end = time.monotonic() + 10

        async def client() -> None:
            async with await Connection.open(server.address) as connection:
                while time.monotonic() < end:
                    assert (await connection.get(target(x))).status == 200

        await asyncio.gather(*(client() for _ in range(50)))
    assert book.count(x) <= 6


async def test_a_failure_is_shared_and_leaves_good_keys_alone(cluster: Server, book: Book, fresh: Fresh) -> None:
    """A8"""
    bad, good = fresh(), fresh()
    answers = await burst(cluster.address, [target(bad, RAISE, 1.0)] * 40 + [target(good, SLEEP, 1.0)] * 40)
    problems = [answer.json() for answer in answers[:40]]
    assert {answer.status for answer in answers[:40]} == {500}
    assert len({(p["type"], p["title"], p["status"], p.get("detail")) for p in problems}) == 1
    assert all(TOLD_TO_RAISE not in answer.body.decode() for answer in answers), "the model's own words are for the log"
    assert [answer.json()["probabilities"] for answer in answers[40:]] == [expected(good)] * 40
    good_lines = book.lines(good)
    assert len({line.pid for line in good_lines}) == 1
    assert all(len(lines) <= 2 for lines in _by_worker(book, bad).values()), "once in a batch and once alone"


async def test_a_failure_alone_is_computed_once_on_each_worker_at_most(
    cluster: Server, book: Book, fresh: Fresh
) -> None:
    """A8"""
    bad = fresh()
    answers = await burst(cluster.address, [target(bad, RAISE, 1.0)] * 40)
    assert {answer.status for answer in answers} == {500}
    assert all(len(lines) == 1 for lines in _by_worker(book, bad).values())
    assert (await fetch(cluster.address, target(bad, RAISE))).status == 500, "failures are not stored"


def _by_worker(book: Book, x: float) -> dict[int, list[object]]:
    found: dict[int, list[object]] = {}
    for line in book.lines(x):
        found.setdefault(line.pid, []).append(line)
    return found


@pytest.mark.faults
async def test_an_input_that_kills_its_worker_kills_three_at_most(cluster: Server, book: Book, fresh: Fresh) -> None:
    """A9"""
    x = fresh()
    status = None
    for _ in range(12):
        async with await Connection.open(cluster.address) as connection:
            answer = await ask(connection, target(x, EXIT))
        if answer is not None:
            status = answer.status
            break
    assert status == 500
    assert book.count(x) <= 3
    again = await fetch(cluster.address, target(x, EXIT))
    assert (again.status, again.seconds < 0.1 * SLACK + 1) == (500, True)
    assert book.count(x) <= 3
    cluster.wait_until_ready()
