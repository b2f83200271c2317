"""The tools do what the scenarios believe they do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.client import fetch
from tests.support.probe import NAN, PLAIN, RAISE, SLEEP, Book, Probe, expected
from tests.support.process import PATIENCE
from tests.support.proxy import FaultProxy, fault_proxy
from tests.support.redis_server import RedisServer, load_slowly, running_redis
from tests.support.server import running_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FaultProxy]:
    with fault_proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[redis.Redis]:
    with redis.Redis(port=proxy.port, protocol=2, socket_timeout=30, retry=Retry(NoBackoff(), 0)) as client:
        client.set("k", b"0123456789" * 10)
        yield client


def test_the_proxy_relays_what_it_is_given(client: redis.Redis) -> None:
    assert client.get("k") == b"0123456789" * 10


@pytest.mark.parametrize("fault", ["refuse", "reset", "cut", "cut mid-reply"])
def test_a_broken_connection_is_an_error_at_once_and_the_proxy_recovers(
    proxy: FaultProxy, client: redis.Redis, fault: str
) -> None:
    proxy.set(fault)  # type: ignore[arg-type]
    with pytest.raises(redis.ConnectionError):  # and no TimeoutError
        client.get("k")
    proxy.set("none")
    assert client.get("k") == b"0123456789" * 10


def test_a_black_hole_takes_everything_and_answers_nothing(proxy: FaultProxy) -> None:
    with redis.Redis(port=proxy.port, protocol=2, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
        client.ping()
        proxy.set("black hole")
        with pytest.raises(redis.TimeoutError):
            client.get("k")


def test_slices_arrive_whole(proxy: FaultProxy, client: redis.Redis) -> None:
    proxy.set("slices")
    assert client.get("k") == b"0123456789" * 10


def test_a_delay_counts_once_in_each_direction(proxy: FaultProxy, client: redis.Redis) -> None:
    proxy.set(delay=1.0)
    start = time.monotonic()
    client.get("k")
    assert 2.0 <= time.monotonic() - start < 4.0


@pytest.mark.anyio
@pytest.mark.parametrize("patient", [True, False])
async def test_a_patient_service_waits_for_a_redis_that_is_slow(
    proxy: FaultProxy, iris_models: Path, tmp_path: Path, patient: bool
) -> None:
    question = "/predict?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2"
    with running_server(
        tmp_path, patient=patient, models_dir=iris_models, redis_url=proxy.url, l1_max_bytes=0
    ) as service:
        proxy.set(delay=0.2)  # a pause of the impatient one would have to be as long for a reply to be there in time
        await fetch(service.address, question)
        assert (await fetch(service.address, question)).hit is patient


def test_a_slow_start_answers_loading(tmp_path: Path) -> None:
    with running_redis(tmp_path) as slow:
        load_slowly(slow, seconds=2.0)
        seen: set[object] = set()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and True not in seen:
            try:
                seen.add(slow.client.ping())
            except redis.exceptions.BusyLoadingError:
                seen.add("loading")
            except redis.RedisError:
                seen.add("not yet")
        assert {"loading", True} <= seen


def test_the_probe_writes_a_line_per_row_and_answers_each_row_its_own(tmp_path: Path) -> None:
    probe, book = Probe(tmp_path), Book(tmp_path)
    rows = probe.predict_proba(np.array([[1.5, PLAIN, 0], [2.5, SLEEP, 0.01], [3.5, NAN, 0]]))
    assert list(rows[0]) == list(expected(1.5).values()) != list(rows[1])
    assert np.isnan(rows[2]).all()
    assert (book.count(), book.count(2.5), book.count(9.0)) == (3, 1, 0)
    assert len({line.call for line in book.lines()}) == 1
    with pytest.raises(RuntimeError):
        probe.predict_proba(np.array([[4.5, RAISE, 0]]))
    assert book.count(4.5) == 1
