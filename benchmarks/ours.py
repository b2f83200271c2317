"""Start the service under test as its users do: ``python -m service`` and settings in the environment."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Address, Connection, get
from benchmarks.machine import ALL_CORES
from benchmarks.processes import StartFailed, free_port, running

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
RESULTS = ROOT / "benchmarks" / "results"
TABLES = ROOT / "docs" / "performance.md"
"""Where the tables of all benchmarks but `make bench` go."""


@dataclass(frozen=True, slots=True)
class Service:
    """A running service. ``pid`` is 0 when somebody else started it."""

    address: Address
    pid: int = 0

    def models(self) -> list[str]:
        """The names of the models it serves."""
        found = json.loads(self.text("/models"))
        entries = found["models"] if isinstance(found, dict) else found
        return [entry if isinstance(entry, str) else entry["name"] for entry in entries]

    def text(self, path: str) -> str:
        """The body that ``path`` answers with."""
        with Connection(self.address) as connection:
            return connection.ask(get(path)).body.decode()

    def computations(self) -> float:
        """How many inputs its models have computed so far, from /metrics, all models and workers together."""
        found = re.findall(rf"^{COMPUTED}(?:{{[^}}]*}})? (\S+)", self.text("/metrics"), re.MULTILINE)
        return sum(map(float, found))


COMPUTED = "predict_computations_total"
"""The counter of inputs that a model computed."""


@contextmanager
def serving(
    *,
    redis: str = "",
    models: Path = MODELS,
    cores: tuple[int, ...] = ALL_CORES,
    settings: dict[str, object] | None = None,
    source: Path = ROOT,
) -> Iterator[Service]:
    """Our service on a free port. ``settings``: names without PREDICT_. Raises StartFailed, which says what to do."""
    if not any(models.glob("*/manifest.json")):
        raise StartFailed(f"no models in {models}: run `make train` first")
    port = free_port()
    chosen = {
        "port": port,
        "redis_url": redis,
        "models_dir": models.resolve(),
        "log_level": "warning",
        **(settings or {}),
    }
    env = {f"PREDICT_{name.upper()}": str(value) for name, value in chosen.items()}
    address = ("127.0.0.1", port)
    command = [sys.executable, "-m", "service"]
    env["PYTHONPATH"] = os.pathsep.join([str(source), *filter(None, [os.environ.get("PYTHONPATH")])])
    env["PYTHONSAFEPATH"] = "1"  # from there, not from the working directory
    with running(command, address=address, ready=get("/readyz"), cores=cores, env=env) as process:
        yield Service(address, process.pid)
