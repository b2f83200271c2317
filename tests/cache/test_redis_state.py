"""What this worker thinks of its Redis, and says about it: one line for each change, with the reason."""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from service.cache.redis import breaker
from service.cache.redis.l2 import RedisCache, open_redis
from service.errors import ConfigurationError, StoreUnavailable
from tests.cache.stand_ins import SECRET, Witness, Workers, entry, subscribed
from tests.support.process import becomes, eventually
from tests.support.proxy import FaultProxy, fault_proxy
from tests.support.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.anyio

CLUSTER = ("--cluster-enabled", "yes")
PING_SECONDS = 0.25
"""In the place of a second."""


@pytest.fixture(autouse=True)
def pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "PING_SECONDS", PING_SECONDS)


class Told(list[tuple[str, str, str]]):
    """Level, state and reason of each line about Redis's state."""

    def read(self, record: logging.LogRecord) -> bool:
        if "state" in vars(record):
            self.append((record.levelname, vars(record)["state"], vars(record)["reason"]))
        return True


@pytest.fixture
def told() -> Iterator[Told]:
    told, logger = Told(), logging.getLogger("service.cache.redis.l2")
    logger.addFilter(told.read)
    before, logger.level = logger.level, logging.INFO
    yield told
    logger.level = before
    logger.removeFilter(told.read)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[RedisServer]:
    with running_redis(tmp_path / "other") as running:
        yield running


async def is_stored(cache: RedisCache, key: str) -> bool:
    """Whether what is put under the key can be got."""
    with suppress(StoreUnavailable):
        await cache.put(key, entry())
        return await cache.get(key) is not None
    return False


async def wait_for_pings(cache: RedisCache, count: int = 2) -> None:
    await asyncio.sleep((count + 0.5) * PING_SECONDS)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://me:hunter2@127.0.0.1:{port}", "invalid username-password pair"),
        ("redis://127.0.0.1:{port}/99", "DB index is out of range"),
        ("redis://127.0.0.1:{free}", "Connect call failed"),
    ],
    ids=["wrong password", "no such database", "nobody there"],
)
async def test_why_Redis_cannot_be_used_is_told_once(
    url: str, reason: str, workers: Workers, server: RedisServer, free_tcp_port: int, told: Told
) -> None:
    cache = await workers.start(url=url.format(port=server.port, free=free_tcp_port))
    await wait_for_pings(cache)
    [(level, state, why)] = told
    assert (level, state, cache.state) == ("WARNING", "down", "down")
    assert reason in why and "hunter2" not in why


@pytest.mark.skipif(shutil.which("openssl") is None, reason="nothing here makes certificates")
async def test_a_certificate_of_an_unknown_authority_is_told_once(
    workers: Workers, other: RedisServer, told: Told
) -> None:
    restart_with_tls(other)
    cache = await workers.start(url=f"rediss://127.0.0.1:{other.port}")
    await wait_for_pings(cache)
    [(level, state, why)] = told
    assert (level, state) == ("WARNING", "down")
    assert "certificate verify failed" in why.lower().replace("_", " ")


def restart_with_tls(server: RedisServer) -> None:
    key, certificate = str(server.directory / "key"), str(server.directory / "certificate")
    made = ("openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=redis", "-days", "2")
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    tls = ("--tls-port", str(server.port), "--tls-cert-file", certificate, "--tls-key-file", key)
    server.restart("--port", "0", *tls, "--tls-auth-clients", "no", wait=False)
    eventually(lambda: listens(server.port))


@pytest.mark.parametrize(("forbidden", "state"), [("-get", "down"), ("-evalsha", "down"), ("-set", "read-only")])
async def test_a_permission_that_is_missing_is_told_once_however_much_is_asked(
    l2: RedisCache, server: RedisServer, told: Told, forbidden: str, state: str
) -> None:
    server.client.execute_command("ACL SETUSER", "default", forbidden)
    try:
        while l2.state == "up":
            await is_stored(l2, "K")
        end = asyncio.get_running_loop().time() + 2.5 * PING_SECONDS
        while asyncio.get_running_loop().time() < end:
            assert not await is_stored(l2, "K")
            await asyncio.sleep(0.05)
        assert l2.state == state
        assert re.search("permission|can't run", told[-1][2])
        assert len(told) <= 2
    finally:
        server.client.execute_command("ACL SETUSER", "default", forbidden.replace("-", "+"))


def listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_each_change_of_state_is_one_line(l2: RedisCache, server: RedisServer, told: Told) -> None:
    server.configure(maxmemory_policy="noeviction", maxmemory="1")
    for _ in range(3):
        assert not await is_stored(l2, "K")
    server.configure(maxmemory="64mb")
    await becomes(lambda: l2.state == "up")
    server.freeze()
    while l2.state != "down":
        assert not await is_stored(l2, "K")
    server.thaw()
    await becomes(lambda: l2.state == "up")
    assert [(level, state) for level, state, _ in told] == [
        ("WARNING", "read-only"),
        ("WARNING", "up"),
        ("WARNING", "down"),
        ("WARNING", "up"),
    ]
    assert "maxmemory" in told[0][2] and "in time" in told[2][2]


async def test_a_master_that_is_demoted_is_left_for_the_one_that_its_name_leads_to_now(
    workers: Workers, server: RedisServer, other: RedisServer
) -> None:
    with fault_proxy(server.port) as name:
        cache = await workers.start(url=name.url)
        await subscribed(server, "p1:purges")
        assert await is_stored(cache, "before")
        fail_over(name, server, other)
        moved = False
        while cache.state == "up" and not moved:  # on a busy machine a deadline may end the old connection first
            moved = await is_stored(cache, "lost")
        assert moved or cache.state == "read-only"
        await becomes(lambda: cache.state == "up")
        while not await is_stored(cache, "after"):
            pass
        assert other.entries() == {b"p1:{after}:v"} | ({b"p1:{lost}:v"} if moved else set())
        await subscribed(other, "p1:purges")
        await becomes(lambda: clients(server) == 0)


def fail_over(name: FaultProxy, old: RedisServer, new: RedisServer) -> None:
    """As Sentinel does: the connections to the old master live on."""
    old.client.replicaof("127.0.0.1", str(new.port))
    name.upstream = new.port


def clients(server: RedisServer) -> int:
    own: dict[str, Any] = server.client.client_info()
    return sum(c["id"] != str(own["id"]) and c["flags"] == "N" for c in server.client.client_list())


async def test_a_replica_that_stays_one_is_never_called_up_and_goes_on_being_listened_to(
    workers: Workers, server: RedisServer, told: Told
) -> None:
    reconnected: list[None] = []
    l2 = await workers.start(on_change=lambda: reconnected.append(None))
    await subscribed(server, "p1:purges")
    told.clear()
    await l2.put("K", entry())
    server.client.replicaof("127.0.0.1", "1")
    assert not await is_stored(l2, "L")
    states = set()
    for _ in range(20):
        await asyncio.sleep(PING_SECONDS / 8)
        states.add(l2.state)
        assert await l2.get("K") is not None
    assert (states, reconnected) == ({"read-only"}, [])
    assert len(told) == 1 and "read only" in told[0][2]


async def test_a_Redis_Cluster_stops_the_start_with_one_sentence(other: RedisServer) -> None:
    other.restart(*CLUSTER)
    with pytest.raises(ConfigurationError, match=r"Redis Cluster.*not supported"):
        async with open_redis(other.url, secret=SECRET, observer=Witness()):
            pass


async def test_a_Redis_Cluster_that_comes_up_later_is_not_used_and_its_worker_says_why(
    other: RedisServer, workers: Workers, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.redis.breaker.SAME_STATE_SECONDS", 0)
    other.kill()
    cache = await workers.start(url=other.url)
    other.start(*CLUSTER)
    await becomes(lambda: "Redis Cluster" in told[-1][2])
    await wait_for_pings(cache)
    assert cache.state == "down"
    assert sum("Redis Cluster" in reason for _, _, reason in told) == 1
