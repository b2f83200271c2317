"""A server with tables only, and one with images, too, which takes longer to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, running_server


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("tables"), models_dir=iris_models) as server:
        yield server


@pytest.fixture(scope="session")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A table with features of all types, and a classifier of texts."""
    from tests.support import own_models  # not above: it imports scikit-learn and pandas

    directory = tmp_path_factory.mktemp("typed")
    own_models.register_all(directory)
    with running_server(directory, models_dir=directory / "models") as server:
        yield server


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Iterator[Server]:
    """``iris``, and ``digits`` which has learnt nothing."""
    from tests.support.untrained import write_both  # not above: it imports torch

    directory = tmp_path_factory.mktemp("images")
    with running_server(directory, models_dir=write_both(iris_models, directory)) as server:
        yield server


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image file that ``digits`` can be asked about."""
    from training.digits import split  # not above: it imports scikit-learn

    file = tmp_path_factory.mktemp("picture") / "digit.png"
    file.write_bytes(split()[1][0][0])
    return file
