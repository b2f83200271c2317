"""F: more work than can be done is refused early and politely, and hits never notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.scenarios.conftest import Fresh, Start
from tests.support.client import Connection, Response, caught_up, fetch, fetch_json
from tests.support.probe import PLAIN, SLEEP, WAIT, Book, inputs, target
from tests.support.process import SLACK, becomes
from tests.support.redis_server import RedisServer
from tests.support.server import Server

pytestmark = pytest.mark.anyio

QUEUE = 8
DEADLINE = 6.0


@pytest.fixture(scope="module")
def server(start: Start, redis_server: RedisServer) -> Iterator[Server]:
    with start(redis_url=redis_server.url, max_queue_size=QUEUE, deadline_seconds=DEADLINE) as server:
        yield server


async def hold(server: Server, book: Book, x: float) -> asyncio.Task[Response]:
    """Occupy the model until the gate of ``x`` is opened."""
    task = asyncio.ensure_future(fetch(server.address, target(x, WAIT)))
    await becomes(lambda: book.count(x))
    return task


async def test_a_full_queue_refuses_exactly_what_it_cannot_hold(server: Server, book: Book, fresh: Fresh) -> None:
    """F1"""
    gate, hot = fresh(), fresh()
    await fetch(server.address, target(hot))
    held = await hold(server, book, gate)
    waiting = [asyncio.ensure_future(fetch(server.address, target(fresh()))) for _ in range(QUEUE + 2)]
    try:
        await becomes(lambda: sum(task.done() for task in waiting) == 2)
        await asyncio.sleep(0.2)
        refused = [task.result() for task in waiting if task.done()]
        assert [answer.status for answer in refused] == [503, 503]
        assert all(answer.seconds < DEADLINE / 2 for answer in refused), "at once, not past the deadline"
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert all(answer.headers["content-type"] == "application/problem+json" for answer in refused)
        assert (await fetch(server.address, target(hot))).hit, "hits are never shed"
    finally:
        book.open_gate(gate)
        answers = await asyncio.gather(held, *waiting)
    assert sorted(answer.status for answer in answers) == [200] * (1 + QUEUE) + [503, 503]


async def test_a_batch_that_does_not_fit_is_refused_whole(server: Server, book: Book, fresh: Fresh) -> None:
    """F1"""
    gate = fresh()
    held = await hold(server, book, gate)
    xs = [fresh() for _ in range(QUEUE + 1)]
    try:
        answer = await fetch_json(
            server.address, "/predict_batch", {"model": "probe", "inputs": [inputs(x) for x in xs]}
        )
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
    finally:
        book.open_gate(gate)
        await held
    assert book.count(*xs) == 0


@pytest.mark.faults
async def test_ten_times_too_much_leaves_hits_fast_and_misses_at_capacity(
    start: Start, redis_server: RedisServer, fresh: Fresh
) -> None:
    """F2: the model takes 20 ms for each, so some 50 a second can be computed, and 500 are asked for."""
    clients, rate, seconds = 50, 10, 5.0
    hot = fresh()

    async def misses(server: Server, every: float, seconds: float) -> list[Response]:
        """One client's, on time unless it is still waiting for the one before."""
        answers = []
        async with await Connection.open(server.address) as connection:
            end = time.monotonic() + seconds
            while (begun := time.monotonic()) < end:
                answers.append(await connection.get(target(fresh(), SLEEP, 0.02)))
                await asyncio.sleep(max(0.0, begun + every - time.monotonic()))
        return answers

    with start(redis_url=redis_server.url, max_batch_size=1, max_queue_size=8) as server:
        for _ in range(3):
            await fetch(server.address, target(hot))
        calm = await asyncio.gather(*(misses(server, 0, 1.0) for _ in range(2)))
        capacity = sum(map(len, calm))
        flood = asyncio.gather(*(misses(server, 1 / rate, seconds) for _ in range(clients)))
        hot_answers = []
        async with await Connection.open(server.address) as connection:
            while not flood.done():
                hot_answers.append(await connection.get(target(hot)))
                await asyncio.sleep(0.01)
            over = time.monotonic()
            while (await connection.get(target(fresh(), SLEEP, 0.02))).seconds > 0.04:
                assert time.monotonic() - over < 2
    cold_answers = [answer for answers in await flood for answer in answers]
    assert {answer.status for answer in hot_answers} == {200}
    assert all(answer.hit for answer in hot_answers)
    times = sorted(answer.seconds for answer in hot_answers)
    assert {answer.status for answer in cold_answers} == {200, 503}
    computed = sum(answer.status == 200 for answer in cold_answers) / seconds
    share = f"{computed:.0f} of {capacity} a second, {len(cold_answers) / seconds:.0f} asked"
    print(f"{share}; hits p99 {times[int(len(times) * 0.99)] * 1000:.1f} ms")
    assert times[int(len(times) * 0.99)] <= 0.02 * SLACK
    assert computed >= 0.8 * capacity


async def test_a_request_past_its_deadline_is_never_dispatched(server: Server, book: Book, fresh: Fresh) -> None:
    """F3"""
    gate, late = fresh(), fresh()
    held = await hold(server, book, gate)
    try:
        answer = await fetch(server.address, target(late, PLAIN))
        assert answer.status == 504
        assert DEADLINE * 0.9 <= answer.seconds < DEADLINE * SLACK
    finally:
        book.open_gate(gate)
        await held
    assert (await fetch(server.address, target(fresh()))).status == 200, "a later one has been dispatched"
    assert book.count(late) == 0


async def test_a_request_whose_only_client_left_is_never_dispatched(server: Server, book: Book, fresh: Fresh) -> None:
    """F3"""
    gate, left, stayed = fresh(), fresh(), fresh()
    held = await hold(server, book, gate)
    leaver = await Connection.open(server.address)
    leaver.send("GET", target(left))
    await caught_up(server.address)
    staying = await Connection.open(server.address)
    staying.send("GET", target(stayed))
    await caught_up(server.address)
    leaver.abort()
    await caught_up(server.address)
    book.open_gate(gate)
    assert (await held).status == 200
    assert (await staying.read()).status == 200
    staying.close()
    assert (book.count(stayed), book.count(left)) == (1, 0)


async def test_one_of_two_who_asked_may_leave_and_the_other_is_answered(
    server: Server, book: Book, fresh: Fresh
) -> None:
    """F3"""
    gate, x = fresh(), fresh()
    held = await hold(server, book, gate)
    leaver = await Connection.open(server.address)
    leaver.send("GET", target(x))
    await caught_up(server.address)
    staying = await Connection.open(server.address)
    staying.send("GET", target(x))
    await caught_up(server.address)
    leaver.abort()
    await caught_up(server.address)
    book.open_gate(gate)
    assert (await held).status == 200
    assert (await staying.read()).status == 200
    staying.close()
    assert book.count(x) == 1
