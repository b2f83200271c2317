"""A real Redis and real servers per module; the models and the probe's book are shared by all of them."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from tests.support.probe import Book, Probe, register
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import Server, running_server

Start = Callable[..., AbstractContextManager[Server]]
Fresh = Callable[[], float]

CLUSTER_WORKERS = 4

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    """What the models ``probe`` and ``other`` have computed."""
    return Book(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="session")
def fresh() -> Fresh:
    """A question, as the probe's ``x``, that no test has asked before."""
    return lambda: next(_numbers) + 0.123456789


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, iris_models: Path, book: Book) -> Path:
    """``iris``; ``probe``; ``other``, a probe with answers of its own; ``linear``, whose last bits batches may move."""
    root = tmp_path_factory.mktemp("served") / "models"
    shutil.copytree(iris_models, root)
    register(Probe(book.directory), root, "probe")
    register(Probe(book.directory, salt=1), root, "other")
    measured = load_iris()
    linear = LogisticRegression(max_iter=1000).fit(measured.data, measured.target)
    register(linear, root, "linear", features="a,b,c,d", classes="setosa,versicolor,virginica")
    return root


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The Redis of ``cluster``. Who breaks it mends it."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(start: Start, cluster_redis: RedisServer) -> Iterator[Server]:
    """Four workers with a lease, for all modules, since their start takes seconds."""
    with start(redis_url=cluster_redis.url, workers=CLUSTER_WORKERS, lease="always") as server:
        yield server


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Start:
    """``with start(redis_url=…, workers=4) as server``: a ready service with those settings, gone afterwards."""
    return lambda **settings: running_server(tmp_path_factory.mktemp("server"), **{"models_dir": models, **settings})
