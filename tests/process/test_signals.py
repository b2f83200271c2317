"""What gunicorn documents for each signal to its arbiter, with the workers that we give it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.test_service import QUESTION
from tests.support.client import fetch
from tests.support.process import PATIENCE, children, command_line, eventually, is_running
from tests.support.server import Server, close_all, running_server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Path:
    copy = tmp_path_factory.mktemp("signals") / "models"
    shutil.copytree(iris_models, copy)
    return copy


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with running_server(models.parent, workers=2, redis_url="embedded", models_dir=models) as server:
        yield server


def send(server: Server, signum: signal.Signals) -> None:
    os.kill(server.process.pid, signum)


def served_by(server: Server, count: int, without: set[int] = frozenset()) -> bool:  # type: ignore[assignment]
    """Whether so many workers run, all of them serve, and none of those of before does."""
    workers = set(server.workers())
    return len(workers) == count and workers <= server.serving() and not workers & without


async def test_sighup_replaces_every_worker_and_fails_no_request(server: Server) -> None:
    before = set(server.workers())
    over = asyncio.Event()

    async def client() -> int:
        count = 0
        while not over.is_set():
            assert (await fetch(server.address, QUESTION)).status == 200
            count += 1
        return count

    clients = [asyncio.ensure_future(client()) for _ in range(4)]
    send(server, signal.SIGHUP)
    await asyncio.to_thread(eventually, lambda: served_by(server, 2, without=before))
    over.set()
    assert all(await asyncio.gather(*clients))


async def test_sighup_whose_new_workers_cannot_start_leaves_the_old_ones_serving(server: Server, models: Path) -> None:
    before = set(server.workers())
    seen = len(server.process.errors())
    os.rename(models, away := models.with_name("away"))
    try:
        send(server, signal.SIGHUP)
        eventually(lambda: server.process.errors()[seen:].count(str(models)) >= 2)
        assert (await fetch(server.address, QUESTION)).status == 200
        assert set(server.workers()) == before
        assert server.is_ready()
    finally:
        os.rename(away, models)
    send(server, signal.SIGHUP)
    eventually(lambda: served_by(server, 2, without=before))


async def test_sigttin_adds_a_worker_and_sigttou_takes_the_oldest_away(server: Server) -> None:
    before = set(server.workers())
    send(server, signal.SIGTTIN)
    eventually(lambda: served_by(server, 3))
    send(server, signal.SIGTTOU)
    eventually(lambda: served_by(server, 2))
    assert len(before & set(server.workers())) == 1


async def test_sigusr1_which_reopens_log_files_disturbs_nobody(server: Server) -> None:
    connections = await server.connect_to_each()
    before = set(connections)
    send(server, signal.SIGUSR1)
    send(server, signal.SIGTTIN)  # the arbiter takes one after the other
    eventually(lambda: served_by(server, 3))
    for owned in connections.values():
        assert (await owned[0].get(QUESTION)).status == 200
    close_all(c for owned in connections.values() for c in owned)
    assert before <= set(server.workers())
    send(server, signal.SIGTTOU)
    eventually(lambda: served_by(server, 2))


async def test_sigusr2_starts_another_service_on_the_same_port_which_outlives_the_old_one(
    tmp_path: Path, iris_models: Path
) -> None:
    with running_server(tmp_path / "server", redis_url="embedded", models_dir=iris_models) as server:
        (worker,) = server.workers()
        send(server, signal.SIGUSR2)
        eventually(lambda: len(server.serving()) == 2)
        (other,) = server.serving() - {worker}
        (new,) = [child for child in children(server.process.pid) if other in children(child)]
        try:
            server.process.terminate()
            assert server.process.wait(PATIENCE) == 0
            answer = await fetch(server.address, QUESTION)
            assert answer.status == 200
            assert any("redis.sock" in command_line(child) for keeper in children(new) for child in children(keeper))
        finally:
            os.kill(new, signal.SIGTERM)
            eventually(lambda: not is_running(new) and not is_running(other))


@pytest.mark.parametrize("signum", [signal.SIGQUIT, signal.SIGINT])
async def test_sigquit_and_ctrl_c_end_it_without_a_drain(
    tmp_path: Path, iris_models: Path, signum: signal.Signals
) -> None:
    settings = {"redis_url": "embedded", "models_dir": iris_models, "drain_seconds": 100}
    with running_server(tmp_path / "server", workers=2, **settings) as server:
        family = server.family()
        told = time.monotonic()
        send(server, signum)
        assert server.process.wait(PATIENCE) == 0
        assert time.monotonic() - told < PATIENCE
        eventually(lambda: not any(is_running(pid) for pid in family))
        assert not server.tracebacks()
