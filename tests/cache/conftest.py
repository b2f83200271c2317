"""A real Redis for the whole package, emptied before each test."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from service.cache.redis.l2 import RedisCache
from tests.cache.stand_ins import Clock, Witness, Workers
from tests.support.patience import give_redis_time
from tests.support.process import free_port
from tests.support.redis_server import RedisServer, running_redis


@pytest.fixture
def promised_times() -> None:
    """Asked for by the tests that need no Redis to be there in time: it then has no more than in production."""


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """More time for Redis in all other tests: on a busy machine it may not get a CPU for so long."""
    if "promised_times" not in request.fixturenames:
        give_redis_time(monkeypatch.setattr)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture(scope="package")
def package_server() -> Iterator[RedisServer]:
    directory = Path(tempfile.mkdtemp(prefix="pc-"))  # short: a socket's path may have 107 bytes
    with running_redis(directory, "--unixsocket", str(directory / "redis.sock")) as running:
        yield running
    shutil.rmtree(directory)


@pytest.fixture
def server(package_server: RedisServer) -> Iterator[RedisServer]:
    """Empty, and as it was started, whatever the test before did to it."""
    package_server.client.flushall()
    yield package_server
    package_server.thaw()
    package_server.configure(maxmemory="64mb", maxmemory_policy="allkeys-lfu")
    package_server.client.replicaof("NO", "ONE")


@pytest.fixture
async def workers(server: RedisServer, witness: Witness) -> AsyncIterator[Workers]:
    async with AsyncExitStack() as stack:
        yield Workers(server.url, witness, stack)


@pytest.fixture
async def l2(workers: Workers) -> RedisCache:
    return await workers.start()


@pytest.fixture
def free_tcp_port() -> int:
    return free_port()
