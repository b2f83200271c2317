"""What a Redis that misbehaves costs those who ask us, and those who use redis-py as it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from statistics import median

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.reliability.fixture import Fixture
from tests.reliability.once import Figures
from tests.scenarios.test_e_redis_faults import FAULTS, HOT, PER_SECOND, Rig, hits_from_redis
from tests.support.client import fetch
from tests.support.probe import expected, target
from tests.support.proxy import fault_proxy
from tests.support.server import Server

HEALTHY = "none"
NAMES = (
    *("refused", "SIGSTOP", "SIGKILL", "reset", "black hole", "500 ms latency", "1-byte slices", "cut mid-reply"),
    *("OOM", "READONLY", "CLIENT PAUSE"),
)
SECONDS = 3.0
"""A fault lasts at least so long, and until redis-py has given up what it began within this time."""
CAP_SECONDS = 10.0
"""Nobody waits for redis-py any longer."""
RECOVERY_SECONDS = 30.0
IN_A_ROW = 6
"""So many new answers found in Redis one after the other mean that all workers use it again."""


@dataclass
class Tally:
    """What became of the requests of one fault. ``worst`` and ``misses`` in seconds."""

    requests: int = 0
    hot: int = 0
    hits: int = 0
    non_200: int = 0
    wrong: int = 0
    worst: float = 0.0
    misses: list[float] = field(default_factory=list)

    def as_json(self) -> Figures:
        """The misses as their median."""
        return {**asdict(self), "misses": median(self.misses)}


@dataclass
class Textbook:
    """A cache as most people write it: redis-py's defaults, GET, and SET on a miss. ``fresh`` names its keys."""

    port: int
    fresh: Callable[[], float]
    calls: int = 0
    errors: int = 0
    worst: float = 0.0
    _redis: Redis = field(init=False, repr=False)

    async def __aenter__(self) -> Textbook:
        self._redis = Redis(port=self.port)
        await self._redis.ping()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._redis.aclose()

    async def endure(self) -> None:
        """One answer after the other until the fault has lasted SECONDS."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            key, begun = f"textbook:{self.fresh()}", time.monotonic()
            try:
                async with asyncio.timeout(CAP_SECONDS):
                    if await self._redis.get(key) is None:
                        await self._redis.set(key, "an answer", ex=300)
            except (RedisError, OSError, TimeoutError):
                self.errors += 1
            self.calls += 1
            self.worst = max(self.worst, time.monotonic() - begun)
            await asyncio.sleep(1 / PER_SECOND)


async def faults(fixture: Fixture) -> Figures:
    """Each in turn, between a service of two workers and its Redis; first none, to compare with."""
    with fixture.redis() as redis, fault_proxy(redis.port) as proxy, fixture.service(proxy.url, workers=2) as server:
        rig = Rig(server, redis, proxy, descriptors={})
        found: Figures = {}
        for name in (HEALTHY, *NAMES):
            fixture.say(f"faults: {name}")
            fault = nullcontext() if name == HEALTHY else FAULTS[name](rig)
            found[name] = await _endure(fixture, rig, fault)
    return found


async def _endure(fixture: Fixture, rig: Rig, fault: AbstractContextManager[None]) -> Figures:
    hot = [fixture.fresh() for _ in range(HOT)]
    for x in hot * 3:  # stored in Redis, then in the memory of whichever worker is asked
        await fetch(rig.server.address, target(x))
    async with Textbook(rig.proxy.port, fixture.fresh) as textbook:
        with fault:
            suffering = asyncio.ensure_future(textbook.endure())
            tally = await _traffic(fixture, rig.server, hot, suffering)
            await suffering
        back = await _until_redis_is_used(fixture, rig.server)
    theirs = {"calls": textbook.calls, "errors": textbook.errors, "worst": min(textbook.worst, CAP_SECONDS)}
    return {**tally.as_json(), "hits_back_seconds": back, "redis_py": theirs}


async def _traffic(fixture: Fixture, server: Server, hot: list[float], during: asyncio.Future[None]) -> Tally:
    """PER_SECOND, half hot and half new, sent on time whether or not earlier ones have been answered."""
    tally = Tally()
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while not during.done():
            await asyncio.sleep(max(0.0, start + tally.requests / PER_SECOND - time.monotonic()))
            is_hot = tally.requests % 2 == 1
            x = hot[tally.hot % HOT] if is_hot else fixture.fresh()
            tally.requests += 1
            tally.hot += is_hot
            group.create_task(_ask(server, x, tally))
    return tally


async def _ask(server: Server, x: float, tally: Tally) -> None:
    begun = time.perf_counter()
    try:
        answer = await fetch(server.address, target(x))
    except (OSError, asyncio.IncompleteReadError):
        tally.non_200 += 1
    else:
        if answer.status == 200:
            tally.hits += answer.hit
            tally.misses += [] if answer.hit else [answer.seconds]
            tally.wrong += answer.json()["probabilities"] != expected(x)
        else:
            tally.non_200 += 1
    tally.worst = max(tally.worst, time.perf_counter() - begun)


async def _until_redis_is_used(fixture: Fixture, server: Server) -> float:
    """Seconds from now until every new answer is found in Redis again; RECOVERY_SECONDS when that does not happen."""
    begun = since = time.monotonic()
    found = 0
    while found < IN_A_ROW and time.monotonic() - begun < RECOVERY_SECONDS:
        if await hits_from_redis(server, fixture.fresh):
            found += 1
        else:
            found = 0
            await asyncio.sleep(0.05)
            since = time.monotonic()
    return since - begun if found == IN_A_ROW else RECOVERY_SECONDS
