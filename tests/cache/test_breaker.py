from __future__ import annotations

import asyncio

import pytest

from service.cache.breaker import PING_SECONDS, WRITE_PAUSE_SECONDS, Breaker
from service.errors import StoreUnavailable
from tests.cache.stand_ins import Clock
from tests.support.process import becomes

pytestmark = pytest.mark.anyio


class Server:
    """Answers PINGs or not; ``sleep`` records how long and returns at the next turn of the loop."""

    def __init__(self) -> None:
        self.answers, self.pings, self.sleeps = True, 0, list[float]()
        self.changes: list[bool] = []
        self.clock = Clock()
        self.breaker = Breaker(self.ping, self.changes.append, self.clock, self.sleep)

    async def ping(self) -> None:
        self.pings += 1
        if not self.answers:
            raise StoreUnavailable

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
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
    assert server.changes == [True]


async def test_three_failures_in_a_row_open_it_and_it_says_so_once(server: Server) -> None:
    for closed in (True, True, False, False):
        server.breaker.failed()
        assert server.breaker.closed is closed
    assert server.changes == [True, False]


async def test_a_success_between_failures_keeps_it_closed(server: Server) -> None:
    for _ in range(5):
        server.breaker.failed()
        server.breaker.failed()
        server.breaker.succeeded()
    assert server.breaker.closed


async def test_while_open_only_a_PONG_closes_it(server: Server) -> None:
    for _ in range(3):
        server.breaker.failed()
    server.breaker.succeeded()
    assert not server.breaker.closed


async def test_while_open_it_pings_once_a_second_and_after_that_rests(server: Server) -> None:
    server.answers = False
    for _ in range(3):
        server.breaker.failed()
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
    for _ in range(3):
        server.breaker.failed()
    await server.breaker.probe()
    server.breaker.failed()
    server.breaker.failed()
    assert server.breaker.closed


async def test_writes_pause_for_a_while_and_reads_do_not(server: Server) -> None:
    server.breaker.pause_writes()
    assert server.breaker.closed
    assert not server.breaker.writable
    server.clock.now += WRITE_PAUSE_SECONDS
    assert server.breaker.writable


async def test_an_open_one_is_not_writable(server: Server) -> None:
    for _ in range(3):
        server.breaker.failed()
    assert not server.breaker.writable
