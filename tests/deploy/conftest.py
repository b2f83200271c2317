from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest

from tests.support.redis_server import RedisServer, running_redis


@pytest.fixture(scope="session")
def program() -> Callable[[str], str]:
    """The path of an installed program; a test that needs one that is not there says so."""

    def find(name: str) -> str:
        return shutil.which(name) or shutil.which(name, path="/usr/sbin") or pytest.skip(f"{name} is not installed")

    return find


@pytest.fixture(scope="package")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server
