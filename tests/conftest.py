"""What all tests share: the asyncio backend, and models that are trained once per run."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import service.inference  # noqa: F401  before a test imports torch: how OpenMP waits is decided then

# The same examples in every run, and none refused for its time: a busy machine is no defect.
# `--hypothesis-profile=search` looks for new ones.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("suite", settings.get_profile("search"), derandomize=True, database=None)
settings.load_profile("suite")


def pytest_configure() -> None:
    """A run that is told to stop ends as by Ctrl-C: the fixtures still stop what they started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m gpu`` reads nothing but tests/gpu: where the GPU is there may be no index to install the rest from."""
    gpu = Path(__file__).parent / "gpu"
    elsewhere = collection_path != gpu and gpu not in collection_path.parents and collection_path not in gpu.parents
    return True if config.getoption("markexpr") == "gpu" and elsewhere else None


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def iris_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with a freshly trained ``iris`` in it. Read-only: copy it to change it."""
    import training.iris  # not above: it imports scikit-learn, which most tests need not wait for

    models = tmp_path_factory.mktemp("trained") / "models"
    training.iris.main(["--out", str(models)])
    return models
