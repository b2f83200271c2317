from __future__ import annotations

import asyncio

import pytest

from service.cache.redis.breaker import PING_SECONDS, WRITE_PAUSE_SECONDS, Breaker, State
from service.errors import StoreUnavailable
from tests.cache.stand_ins import Clock
from tests.support.process import becomes

pytestmark = pytest.mark.anyio


class Server:
    """Answers PINGs or not; ``sleep`` records how long and returns at the next turn of the loop."""

    def __init__(self) -> None:
        self.answers, self.pings, self.sleeps = True, 0, list[float]()
        self.reason, self.refusal = "refused", ""
        self.pinged_at: list[float] = []
        self.changes: list[tuple[State, str]] = []
        self.clock = Clock()
        self.breaker = Breaker(self.ping, lambda *change: self.changes.append(change), self.clock, self.sleep)

    async def ping(self) -> str:
        self.pings += 1
        self.pinged_at.append(self.clock.now)
        if not self.answers:
            raise StoreUnavailable(self.reason)
        return self.refusal

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed("silent")

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.clock.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
async def server() -> Server:
    server = Server()
    await server.breaker.probe()
    return server


async def test_it_is_open_until_the_first_PONG() -> None:
    server = Server()
    server.answers = False
    await server.breaker.probe()
    assert not server.breaker.closed
    server.answers = True
    await server.breaker.probe()
    assert server.breaker.closed
    assert server.changes == [("down", "refused"), ("up", "")]


async def test_three_failures_in_a_row_open_it_and_it_says_so_once(server: Server) -> None:
    for closed in (True, True, False, False):
        server.breaker.failed("silent")
        assert server.breaker.closed is closed
    assert server.changes == [("up", ""), ("down", "silent")]


async def test_a_success_between_failures_keeps_it_closed(server: Server) -> None:
    for _ in range(5):
        server.fail(2)
        server.breaker.failures = 0
    assert server.breaker.closed


async def test_while_open_only_a_PONG_closes_it(server: Server) -> None:
    server.fail(3)
    server.breaker.failures = 0
    assert not server.breaker.closed


async def test_while_open_it_pings_once_a_second_and_after_that_rests(server: Server) -> None:
    server.answers = False
    server.fail(3)
    watch = asyncio.create_task(server.breaker.watch())
    await becomes(lambda: len(server.sleeps) >= 5)
    server.answers = True
    await becomes(lambda: server.breaker.closed)
    pings = server.pings
    for _ in range(20):
        await asyncio.sleep(0)
    watch.cancel()
    assert server.pings == pings
    assert set(server.sleeps) == {PING_SECONDS}
    assert pings - 1 == len(server.sleeps)  # the first was not the watch's


async def test_it_takes_three_failures_again_after_it_has_closed(server: Server) -> None:
    server.fail(3)
    await server.breaker.probe()
    server.fail(2)
    assert server.breaker.closed


async def test_a_refused_write_pauses_writes_and_no_reads_until_Redis_takes_one_again(server: Server) -> None:
    server.refusal = "OOM"
    server.breaker.pause_writes("OOM")
    assert (server.breaker.closed, server.breaker.writable) == (True, False)
    watch = asyncio.create_task(server.breaker.watch())
    await becomes(lambda: server.pings > 2)
    started, first, second = server.pinged_at[:3]
    assert (first - started, second - first) == (WRITE_PAUSE_SECONDS, PING_SECONDS)
    assert not server.breaker.writable
    server.refusal = ""
    await becomes(lambda: server.breaker.writable)
    watch.cancel()
    assert server.changes == [("up", ""), ("read-only", "OOM"), ("up", "")]


async def test_another_reason_for_being_down_is_told_once_a_minute(server: Server) -> None:
    server.answers = False
    server.fail(3)
    for minute in range(3):
        for second in range(60):
            server.reason = f"{minute} or {second % 2}"
            server.clock.now += 1
            await server.breaker.probe()
    assert len(server.changes) == 2 + 3


async def test_an_open_one_is_not_writable(server: Server) -> None:
    server.fail(3)
    server.breaker.pause_writes("still under way")
    assert (server.breaker.writable, server.breaker.closed) == (False, False)
