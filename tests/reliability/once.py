"""How often one question is computed, and how far behind the leader those who wait for it are answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.machine import ALL_CORES
from benchmarks.peers.nginx import nginx
from benchmarks.processes import StartFailed
from tests.reliability.fixture import Fixture
from tests.support.client import Address, Connection, Response
from tests.support.probe import SLEEP, expected, target
from tests.support.process import becomes
from tests.support.server import close_all

REPLICAS = 2
WORKERS = 4
REQUESTS = 1_000
ROUNDS = 3
SECONDS = 0.5
"""How long the model takes."""
LAG_ROUNDS = 16
ARRIVALS = 0.4
"""Waiters come within this many seconds after the leader: when one comes decides when nginx looks again."""

_CACHE = "proxy_cache_path cache keys_zone=answers:1m;"
_LOCK = """
  location = /openapi.json { return 200 '{}'; }
  location / {
    proxy_pass http://%s:%d; proxy_cache answers; proxy_cache_valid 200 5m; proxy_cache_lock on;
  }
"""

Figures = dict[str, object]


async def computations(fixture: Fixture) -> Figures:
    """All at once, to two services that share one Redis; counted in the probe's own file."""
    with fixture.redis() as redis:
        settings = {"redis_url": redis.url, "workers": WORKERS}
        with fixture.service(**settings) as one, fixture.service(**settings) as other:  # type: ignore[arg-type]
            rounds = [await _stampede(fixture, [one.address, other.address]) for _ in range(ROUNDS)]
    return {"requests": REQUESTS, "workers": WORKERS, "replicas": REPLICAS, "rounds": rounds}


async def _stampede(fixture: Fixture, addresses: Sequence[Address]) -> Figures:
    x = fixture.fresh()
    fixture.say(f"computations: {REQUESTS:,} requests for one answer")
    targets = [addresses[number % len(addresses)] for number in range(REQUESTS)]
    connections = await asyncio.gather(*(Connection.open(address) for address in targets))
    answers: list[Response] = await asyncio.gather(*(c.get(target(x, SLEEP, SECONDS)) for c in connections))
    close_all(connections)
    right = [answer for answer in answers if answer.status == 200 and answer.json()["probabilities"] == expected(x)]
    return {
        "computations": fixture.book.count(x),
        "right": len(right),
        "bodies": len({answer.body for answer in answers}),
        "late": sum(answer.hit for answer in answers),
        "slowest_seconds": max(answer.seconds for answer in answers),
    }


async def lag(fixture: Fixture) -> Figures:
    """Ours and nginx's, one waiter of each kind at a time, so that the client itself does not delay what it times."""
    ours = await _our_lag(fixture)
    try:
        return {**ours, "nginx": await _nginx_lag(fixture)}
    except StartFailed as reason:
        return {**ours, "nginx": str(reason)}


async def _our_lag(fixture: Fixture) -> Figures:
    with fixture.redis() as redis, fixture.service(redis.url, workers=2) as server:
        connections = await server.connect_to_each(2)
        pids = list(connections)
        same, other, computed = [], [], []
        for number in range(LAG_ROUNDS):
            fixture.say(f"lag: round {number + 1} of {LAG_ROUNDS}")
            here, there = connections[pids[number % 2]], connections[pids[1 - number % 2]]
            x = fixture.fresh()
            computing = lambda: fixture.book.count(x)  # noqa: B023, E731 - asked within this round only
            behind = await _behind(here[0], [here[1], there[0]], target(x, SLEEP, SECONDS), computing, number)
            same.append(behind[0])
            other.append(behind[1])
            computed.append(fixture.book.count(x))
        close_all(connection for owned in connections.values() for connection in owned)
    return {"same": _summary(same), "other": _summary(other), "computations": max(computed)}


async def _nginx_lag(fixture: Fixture) -> Figures:
    """In front of one upstream without a cache. Raises StartFailed where nginx is missing."""
    asked: list[str] = []

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split()[1].decode())
        await asyncio.sleep(SECONDS)
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with await asyncio.start_server(upstream, "127.0.0.1", 0) as listener:
        host, port = listener.sockets[0].getsockname()
        with nginx(_CACHE, _LOCK % (host, port), ALL_CORES) as address:
            connections = [await Connection.open(address) for _ in range(2)]
            behind = []
            for number in range(LAG_ROUNDS):
                fixture.say(f"lag of nginx: round {number + 1} of {LAG_ROUNDS}")
                question = f"/{number}"
                computing = lambda: question in asked  # noqa: B023, E731 - asked within this round only
                behind += await _behind(connections[0], connections[1:], question, computing, number)
            close_all(connections)
    return {**_summary(behind), "computations": max(asked.count(question) for question in asked)}


async def _behind(
    leader: Connection, waiters: Sequence[Connection], question: str, computing: Callable[[], object], number: int
) -> list[float]:
    """How much later than the leader's each waiter's answer arrived, in seconds; below 0 when it came first."""
    leading = asyncio.ensure_future(_arrival(leader, question))
    await becomes(computing)
    await asyncio.sleep(ARRIVALS * number / LAG_ROUNDS)
    arrivals = await asyncio.gather(*(_arrival(waiter, question) for waiter in waiters))
    led = await leading
    return [arrival - led for arrival in arrivals]


async def _arrival(connection: Connection, question: str) -> float:
    answer = await connection.get(question)
    assert answer.status == 200, answer
    return time.perf_counter()


def _summary(seconds: Sequence[float]) -> Figures:
    return {"median_seconds": median(seconds), "worst_seconds": max(seconds), "rounds": len(seconds)}
