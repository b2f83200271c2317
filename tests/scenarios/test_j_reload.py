"""J: the next version, deployed and taken back under load. Its users see one version or the other, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeClassifier

from service.inference.artifact import read_artifact
from service.inference.loading import load_model
from service.inference.predictor import Options
from tests.scenarios.conftest import Start
from tests.support.client import fetch
from tests.support.probe import environment
from tests.support.process import eventually
from tests.support.redis_server import RedisServer
from tests.support.server import Server
from training import register
from training.rollback import rollback

pytestmark = [pytest.mark.anyio, pytest.mark.faults]

SWAPS = 10
CLIENTS, PAUSE = 4, 0.04
NUMBERS = np.arange(100.0).reshape(-1, 1)


class Said(NamedTuple):
    number: int
    version: str
    label: str


@pytest.fixture
def swapped(tmp_path: Path) -> Path:
    """``own`` in two versions, which differ in what they say of 50: first ``high``, and now ``low``."""
    for least in (50, 51):
        tree = DecisionTreeClassifier().fit(NUMBERS, np.where(NUMBERS[:, 0] >= least, "high", "low"))
        register(tree, name="own", models_dir=tmp_path / "models", features=[{"name": "a"}], show=lambda _: None)
    return tmp_path / "models"


def current(models: Path) -> str:
    return load_model(models / "own", Options()).predictor.fingerprint.hex()[:12]


async def ask(server: Server, number: int) -> Said:
    answer = await fetch(server.address, f"/predict?model=own&a={number}")
    assert answer.status == 200
    document = json.loads(answer.body)
    return Said(number, document["version"], document["label"])


def deploy(server: Server, before: set[int]) -> None:
    """SIGHUP, until no worker of before is left."""
    os.kill(server.process.pid, signal.SIGHUP)
    eventually(lambda: len(now := set(server.workers())) == 2 and now <= server.serving() and not now & before)


async def test_versions_that_are_swapped_under_load_fail_no_request_and_are_never_mixed(
    start: Start, swapped: Path
) -> None:
    """J1; a version that comes back finds its answers in Redis."""
    said: list[Said] = []
    over = asyncio.Event()

    async def client(first: int) -> None:
        number = first
        while not over.is_set():
            said.append(await ask(server, number))
            number = 50 if number != 50 else (first + len(said)) % 100
            await asyncio.sleep(PAUSE)

    with start(models_dir=swapped, workers=2, redis_url="embedded") as server:
        clients = [asyncio.ensure_future(client(number)) for number in range(CLIENTS)]
        served = [current(swapped)]
        for swap in range(SWAPS):
            rollback(swapped / "own")
            served.append(current(swapped))
            await asyncio.to_thread(deploy, server, set(server.workers()))
            answer = await fetch(server.address, "/predict?model=own&a=50")
            assert swap == 0 or "; hit" in answer.headers["cache-status"]
            assert {(await ask(server, 50)).version for _ in range(10)} == {served[-1]}
        over.set()
        await asyncio.gather(*clients)
    assert len(set(served)) == 2
    assert {one.version for one in said} == set(served)
    first_of = dict(zip(served[:2], (51, 50), strict=True))
    assert all(one.label == ("high" if one.number >= first_of[one.version] else "low") for one in said)


async def test_a_version_that_is_damaged_leaves_the_one_before_served_by_new_workers_too(
    start: Start, swapped: Path
) -> None:
    """J2"""
    rollback(swapped / "own")
    before = current(swapped)
    with start(models_dir=swapped, workers=2, redis_url="embedded") as server:
        rollback(swapped / "own")
        weights = swapped / "own" / read_artifact(swapped / "own").manifest.files[0].file
        weights.write_bytes(weights.read_bytes()[:-1])
        os.kill(victim := server.workers()[0], signal.SIGKILL)
        eventually(lambda: victim not in (now := set(server.workers())) and len(now) == 2 and now <= server.serving())
        assert {(await ask(server, 50)) for _ in range(20)} == {Said(50, before, "high")}
        await asyncio.to_thread(deploy, server, set(server.workers()))
        assert {(await ask(server, 50)) for _ in range(20)} == {Said(50, before, "high")}
        assert "Serving the previous version of own." in server.process.errors()


async def test_a_version_begins_with_the_hits_that_the_one_before_had(
    start: Start, tmp_path: Path, redis_server: RedisServer
) -> None:
    """J5"""
    for slope in (1, 2):
        line = LinearRegression().fit(NUMBERS, slope * NUMBERS[:, 0])
        register(line, name="own", models_dir=tmp_path / "models", features=[{"name": "a"}], show=lambda _: None)
    settings = {"models_dir": tmp_path / "models", "redis_url": redis_server.url}
    rollback(tmp_path / "models" / "own")
    with start(workers=2, **settings) as server:

        async def hits() -> int:
            answers = [await fetch(server.address, f"/predict?model=own&a={number}") for number in range(100)]
            return sum("; hit" in answer.headers["cache-status"] for answer in answers)

        assert [await hits(), await hits()] == [0, 100]
        rollback(tmp_path / "models" / "own")
        (tmp_path / "requests.csv").write_text("\n".join(["a", *map(str, range(100)), "x"]))
        command = [sys.executable, "-m", "training.warm", "own", str(tmp_path / "requests.csv")]
        filled = await asyncio.to_thread(subprocess.run, command, env=environment(settings), capture_output=True)
        assert filled.stdout.decode() == f"own {current(tmp_path / 'models')}: 100 stored, 1 refused\n", filled.stderr
        await asyncio.to_thread(deploy, server, set(server.workers()))
        assert await hits() == 100
        assert await asyncio.to_thread(server.metric, "predict_computations_total", model="own") == 100
