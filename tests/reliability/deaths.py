"""Requests that fail when a worker is killed, and when the service is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.reliability.fixture import Fixture
from tests.reliability.once import Figures
from tests.support.client import Connection, fetch
from tests.support.probe import SLEEP, expected, target
from tests.support.process import becomes, eventually
from tests.support.server import Server, close_all

KILLS = 10
WORKERS = 3
PER_WORKER = 4
"""Keep-alive connections to each worker, each with one request under way at any time."""
BEFORE, SHARED, AFTER = 0.3, 0.3, 0.5
"""Seconds of quick questions, of the model on the one during which its worker is killed, and of quick ones again."""
RESTART_SECONDS = 60.0
SERVES = "A worker serves."

CLIENTS = 20
DRAIN_SECONDS = 1.0
EXIT_SECONDS = 30.0
BROKEN = (OSError, asyncio.IncompleteReadError)


@dataclass
class Share:
    """What became of one client's requests. ``slowest`` in seconds, of those that were answered."""

    answered: int = 0
    failed: int = 0
    slowest: float = 0.0

    async def ask(self, connection: Connection, x: float, seconds: float = 0.0) -> None:
        """Raises what BROKEN names when the connection breaks."""
        answer = await connection.get(target(x, SLEEP, seconds))
        right = answer.status == 200 and answer.json()["probabilities"] == expected(x)
        self.answered += right
        self.failed += not right
        self.slowest = max(self.slowest, answer.seconds)


async def kills(fixture: Fixture) -> Figures:
    """Under load, the worker that computes what the clients of all workers wait for."""
    with fixture.redis() as redis, fixture.service(redis.url, workers=WORKERS) as server:
        rounds = []
        for number in range(KILLS):
            fixture.say(f"kills: {number + 1} of {KILLS}")
            rounds.append(await _kill_one(fixture, server))
    return {"workers": WORKERS, "connections": PER_WORKER, "rounds": rounds}


async def _kill_one(fixture: Fixture, server: Server) -> Figures:
    connections = await server.connect_to_each(PER_WORKER)
    quick, shared = [fixture.fresh() for _ in range(5_000)], fixture.fresh()
    load = {
        pid: [asyncio.ensure_future(_ask_throughout(connection, quick, shared)) for connection in owned]
        for pid, owned in connections.items()
    }
    await becomes(lambda: fixture.book.count(shared))
    victim = fixture.book.lines(shared)[0].pid
    served = server.process.errors().count(SERVES)
    os.kill(victim, signal.SIGKILL)
    replaced = asyncio.create_task(
        asyncio.to_thread(eventually, lambda: server.process.errors().count(SERVES) > served, RESTART_SECONDS)
    )
    shares = {pid: await asyncio.gather(*tasks) for pid, tasks in load.items()}
    close_all(connection for owned in connections.values() for connection in owned)
    computed = fixture.book.count(shared)
    return {**_summary(shares, victim), "computations": computed, "full_strength_seconds": await replaced}


def _summary(shares: Mapping[int, Sequence[Share]], victim: int) -> Figures:
    everyone = [share for owned in shares.values() for share in owned]
    return {
        "answered": sum(share.answered for share in everyone),
        "failed_in_flight": sum(share.failed for share in shares[victim]),
        "failed_elsewhere": sum(share.failed for pid in shares if pid != victim for share in shares[pid]),
        "slowest_seconds": max(share.slowest for share in everyone),
    }


async def _ask_throughout(connection: Connection, quick: Sequence[float], shared: float) -> Share:
    """Until the plan or the connection ends."""
    share, questions = Share(), iter(quick)
    try:
        await _ask_for(BEFORE, share, connection, questions)
        await share.ask(connection, shared, SHARED)
        await _ask_for(AFTER, share, connection, questions)
    except BROKEN:
        share.failed += 1
    return share


async def _ask_for(seconds: float, share: Share, connection: Connection, questions: Iterator[float]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await share.ask(connection, next(questions))


async def sigterm(fixture: Fixture) -> Figures:
    """Keep-alive clients that ask five times per drain delay, and one request that outlasts the drain."""
    fixture.say("sigterm: keep-alive load")
    settings = {"workers": 2, "drain_seconds": DRAIN_SECONDS}
    with fixture.redis() as redis, fixture.service(redis.url, **settings) as server:
        clients = [asyncio.ensure_future(_ask_until_closed(fixture, server, number)) for number in range(CLIENTS)]
        await asyncio.sleep(1)
        slow = asyncio.ensure_future(fetch(server.address, target(fixture.fresh(), SLEEP, DRAIN_SECONDS + 1)))
        await asyncio.sleep(0.2)
        server.process.terminate()
        told = time.monotonic()
        results = await asyncio.gather(*clients)
        code = await asyncio.to_thread(server.process.wait, EXIT_SECONDS)
        ended = time.monotonic() - told
        (last,) = await asyncio.gather(slow, return_exceptions=True)
    slow_failed = isinstance(last, BaseException) or last.status != 200
    return {
        "answered": sum(answered for answered, _ in results) + (not slow_failed),
        "failed": sum(failed for _, failed in results) + slow_failed,
        "exit_code": code,
        "seconds": ended,
    }


async def _ask_until_closed(fixture: Fixture, server: Server, number: int) -> tuple[int, int]:
    """Until the service says ``Connection: close``; every other client asks for what is cached."""
    answered = 0
    async with await Connection.open(server.address) as connection:
        while True:
            x = fixture.fresh() if number % 2 else 0.25
            try:
                answer = await connection.get(target(x))
            except BROKEN:
                return answered, 1
            if answer.status != 200 or answer.json()["probabilities"] != expected(x):
                return answered, 1
            answered += 1
            if answer.headers.get("connection") == "close":
                return answered, 0
            await asyncio.sleep(DRAIN_SECONDS / 5)
