"""I: starting, stopping and dying without anybody noticing who need not."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.scenarios.conftest import Fresh, Start
from tests.support.client import Connection, fetch
from tests.support.probe import SLEEP, SPIN, Book, target
from tests.support.process import PATIENCE, SLACK, becomes, command_line, eventually, is_running
from tests.support.redis_server import RedisServer
from tests.support.server import Server, close_all

pytestmark = pytest.mark.anyio

DRAIN = 2.0
GRACE = 15.0


@pytest.fixture(scope="module")
def server(start: Start, redis_server: RedisServer) -> Iterator[Server]:
    with start(redis_url=redis_server.url, workers=2) as server:
        yield server


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.faults), 2])
async def test_sigterm_under_keep_alive_load_fails_no_request(
    start: Start, book: Book, fresh: Fresh, workers: int
) -> None:
    """I1"""
    settings = {"drain_seconds": DRAIN, "grace_seconds": GRACE, "redis_url": "embedded"}
    with start(workers=workers, **settings) as server:
        family = server.family()
        assert any("redis-server" in command_line(pid) or "valkey" in command_line(pid) for pid in family)
        answered = [0] * 20

        async def client(number: int) -> None:
            """Until it is told to close; it asks several times in the drain delay, as it has to."""
            async with await Connection.open(server.address) as connection:
                while True:
                    answer = await connection.get(target(fresh() if number % 2 else 0.25, SLEEP, 0.01))
                    assert answer.status == 200
                    answered[number] += 1
                    if answer.headers.get("connection") == "close":
                        return
                    await asyncio.sleep(DRAIN / 10)

        clients = [asyncio.ensure_future(client(number)) for number in range(20)]
        await becomes(lambda: min(answered) >= 2 or any(client.done() for client in clients))
        last = fresh()
        late = asyncio.ensure_future(fetch(server.address, target(last, SLEEP, DRAIN + 1)))
        await becomes(lambda: book.count(last))
        server.process.terminate()
        told = time.monotonic()
        while (draining := await fetch(server.address, "/readyz")).status == 200:
            pass
        assert (draining.status, draining.headers["connection"]) == (503, "close")
        assert (await fetch(server.address, target(fresh()))).status == 200, "served on while draining"
        await asyncio.gather(*clients)
        assert (await late).status == 200
        code = await asyncio.to_thread(server.process.wait, PATIENCE)
        assert code == 0
        assert time.monotonic() - told < DRAIN + GRACE
        assert min(answered) >= 3
        eventually(lambda: not any(is_running(pid) for pid in family))
        assert not server.tracebacks()


async def test_sigterm_on_an_idle_service_ends_after_the_drain_and_leaves_nothing(start: Start) -> None:
    """I1"""
    with start(workers=2, drain_seconds=0.2, grace_seconds=GRACE, redis_url="embedded") as server:
        family = server.family()
        idle = [await Connection.open(server.address) for _ in range(3)]
        for connection in idle:
            assert (await connection.get("/livez")).status == 200
        begun = time.monotonic()
        assert await asyncio.to_thread(server.stop) == 0
        assert time.monotonic() - begun < GRACE
        close_all(idle)
        eventually(lambda: not any(is_running(pid) for pid in family))


async def test_a_killed_arbiter_takes_everything_with_it(start: Start) -> None:
    """I1"""
    with start(workers=2, redis_url="embedded", drain_seconds=0.2) as server:
        family = server.family()
        assert len(family) >= 4
        server.process.kill()
        eventually(lambda: not any(is_running(pid) for pid in family))


async def test_a_killed_worker_fails_only_its_own_requests_and_is_replaced(
    server: Server, book: Book, fresh: Fresh
) -> None:
    """I2"""
    connections = await server.connect_to_each(8)
    victim = next(iter(connections))
    failed = dict.fromkeys(connections, 0)
    answered = dict.fromkeys(connections, 0)
    over = asyncio.Event()

    async def client(pid: int, connection: Connection) -> None:
        try:
            while not over.is_set():
                assert (await connection.get(target(fresh(), SLEEP, 0.02))).status == 200
                answered[pid] += 1
        except (asyncio.IncompleteReadError, OSError):
            failed[pid] += 1

    async with asyncio.TaskGroup() as group:
        for pid, owned in connections.items():
            for connection in owned:
                group.create_task(client(pid, connection))
        await becomes(lambda: min(answered.values()) >= 20)
        os.kill(victim, signal.SIGKILL)
        await becomes(lambda: failed[victim] == 8)
        before = dict(answered)
        await becomes(lambda: all(answered[pid] > before[pid] + 80 for pid in connections if pid != victim))
        over.set()
    close_all(c for owned in connections.values() for c in owned)
    assert failed == {pid: 8 if pid == victim else 0 for pid in connections}
    server.wait_until_ready()
    assert victim not in server.workers()


async def test_a_killed_worker_is_back_within_five_seconds(server: Server) -> None:
    """I2"""
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    begun = time.monotonic()
    await asyncio.to_thread(eventually, lambda: len(set(server.workers()) - {before[0]}) == len(before))
    connections = await server.connect_to_each()
    try:
        for owned in connections.values():
            assert (await owned[0].get("/readyz")).status == 200
    finally:
        close_all(c for owned in connections.values() for c in owned)
    assert time.monotonic() - begun < 5 + server.started_after * SLACK
    assert before[0] not in connections


@pytest.mark.parametrize("share", [0.5, pytest.param(0.99, marks=pytest.mark.faults)])
async def test_livez_answers_at_once_while_a_model_computes(server: Server, fresh: Fresh, share: float) -> None:
    """I3"""
    connections = await server.connect_to_each()
    (connection,) = next(iter(connections.values()))
    busy = [
        asyncio.ensure_future(other.get(target(fresh(), SPIN, 2.0)))
        for (other,) in (await server.connect_to_each()).values()
    ]
    times = []
    while not all(task.done() for task in busy):
        times.append((await connection.get("/livez")).seconds)
        await asyncio.sleep(0.005)
    close_all(c for owned in connections.values() for c in owned)
    assert len(times) > 10
    assert sorted(times)[int(len(times) * share)] < 0.05 * SLACK, "it does not wait for the two seconds of the model"
    assert [(await task).status for task in busy] == [200] * len(busy)
