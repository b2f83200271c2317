"""A model that can compute no more, since its device fails or a call of it hangs: its worker answers what is cached,
drains, and is replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.client import fetch
from tests.support.probe import LOSE, WAIT, Book, Probe, expected, register, target
from tests.support.process import eventually, is_running
from tests.support.server import running_server

DRAIN_SECONDS = 3


@pytest.mark.anyio
async def test_a_worker_that_lost_its_device_serves_hits_while_it_drains_and_is_replaced(tmp_path: Path) -> None:
    book = Book(tmp_path)
    register(Probe(book.directory), tmp_path / "models", "probe")
    settings = {"models_dir": tmp_path / "models", "redis_url": "embedded", "drain_seconds": DRAIN_SECONDS}
    with running_server(tmp_path / "server", **settings) as server:
        (worker,) = server.workers()
        await fetch(server.address, target(1.0))
        lost = await fetch(server.address, target(2.0, LOSE))
        assert lost.status == 503
        assert lost.headers["content-type"] == "application/problem+json"
        assert int(lost.headers["retry-after"]) >= 1
        assert server.status("/readyz") == 503
        assert (await fetch(server.address, target(1.0))).hit
        assert is_running(worker)
        eventually(lambda: not is_running(worker), within=60)
        eventually(server.is_ready, within=60)
        assert (await fetch(server.address, target(1.0))).hit, "Redis still has it"
        again = await fetch(server.address, target(3.0))
        assert (again.status, again.json()["probabilities"]) == (200, expected(3.0))
        assert server.workers() != [worker]
        assert '"reason": "The device of model probe is lost."' in server.process.errors()


@pytest.mark.anyio
async def test_only_the_worker_that_lost_its_device_is_replaced(tmp_path: Path) -> None:
    book = Book(tmp_path)
    register(Probe(book.directory), tmp_path / "models", "probe")
    with running_server(tmp_path / "server", models_dir=tmp_path / "models", workers=2) as server:
        before = set(server.workers())
        assert (await fetch(server.address, target(2.0, LOSE))).status == 503
        eventually(lambda: len(set(server.workers()) - before) == 1 and server.is_ready(), within=60)
        assert len(set(server.workers()) & before) == 1


@pytest.mark.anyio
async def test_a_worker_whose_model_hangs_says_so_serves_hits_while_it_drains_and_is_replaced(tmp_path: Path) -> None:
    book = Book(tmp_path)
    register(Probe(book.directory), tmp_path / "models", "probe")
    settings = {"redis_url": "embedded", "drain_seconds": DRAIN_SECONDS, "compute_deadline_seconds": 1}
    with running_server(tmp_path / "server", models_dir=tmp_path / "models", **settings) as server:
        (worker,) = server.workers()
        await fetch(server.address, target(1.0))
        hanging = await fetch(server.address, target(2.0, WAIT))
        assert (hanging.status, hanging.headers["retry-after"]) == (503, "1")
        assert server.status("/readyz") == 503
        assert (await fetch(server.address, target(1.0))).hit
        eventually(lambda: server.workers() != [worker] and server.is_ready(), within=60)
        assert (await fetch(server.address, target(3.0))).status == 200
        lines = [line for line in server.process.errors().splitlines() if "PREDICT_COMPUTE_DEADLINE_SECONDS" in line]
        assert len(lines) == 2, "one when it is seen, and one when the worker has ended"
