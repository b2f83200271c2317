"""A server for the tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, running_server


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), models_dir=iris_models, lease="never") as server:
        yield server
