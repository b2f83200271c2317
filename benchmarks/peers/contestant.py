"""What takes part: how it is started, how it is asked, and the proof that it does what its row says."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import isclose
from pathlib import Path
from typing import Any, Literal

from benchmarks.client import Address, Connection, one_by_one
from benchmarks.inputs import HOT_IRIS, IRIS
from benchmarks.machine import ALL_CORES, SERVER_CORE
from benchmarks.ours import serving
from benchmarks.peers.environments import interpreter
from benchmarks.processes import StartFailed, free_port, private_redis, running
from benchmarks.wrk import Shape, Vary

Cores = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    """The Iris model directory that everybody serves."""

    directory: Path

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        path = self.directory / "manifest.json"
        if not path.exists():
            raise SystemExit(f"no model in {self.directory}: run `make train` first")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    @property
    def weights(self) -> Path:
        return self.directory / str(self._manifest["weights"]["file"])

    @property
    def example(self) -> list[float]:
        """An input in the order of IRIS."""
        return [float(self._manifest["example"]["inputs"][name]) for name in IRIS]

    @property
    def golden(self) -> list[float]:
        """The class probabilities for ``example``."""
        return [float(value) for value in self._manifest["example"]["golden"]]

    @property
    def labels(self) -> list[str]:
        return [each["label"] for each in self._manifest["classes"]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table. ``warm``: one hot key, one core; ``cold``: never-seen inputs, all cores. ``beside``: the row
    of ours that it is compared with, where that is not the table's: ours on the same request."""

    name: str
    title: str
    kind: Literal["warm", "cold"]
    vary: Vary
    headers: tuple[str, ...] = ()
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Contestant:
    """``start`` runs it on some cores. ``answer``: body -> probabilities; None for those that compute nothing.

    ``computations``: request and pattern of its own count of predicted rows, where it has a cache to prove.
    """

    shape: Shape
    rows: tuple[Row, ...]
    start: Callable[[Contestant, Model, Cores], AbstractContextManager[Address]]
    answer: Callable[[Any], Any] | None = None
    computations: tuple[bytes, str] | None = None
    script: str = ""
    redis: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def cores(self) -> Cores:
        return SERVER_CORE if self.rows[0].kind == "warm" else ALL_CORES


@contextmanager
def script(contestant: Contestant, model: Model, cores: Cores) -> Iterator[Address]:
    """A peer's own script, with a Redis of its own if it wants one."""
    path = Path(__file__).with_name(f"serve_{contestant.script}.py")
    address = ("127.0.0.1", free_port())
    env = {**contestant.environment, "PORT": str(address[1]), "MODEL": str(model.weights.resolve())}
    with ExitStack() as stack:
        if contestant.redis:
            env["REDIS_URL"] = stack.enter_context(private_redis())
        ready = contestant.shape.request(HOT_IRIS)
        stack.enter_context(running([interpreter(path), path], address=address, ready=ready, cores=cores, env=env))
        yield address


def ours(*, redis: bool, settings: dict[str, object] | None = None) -> Callable[..., AbstractContextManager[Address]]:
    """Our service, with only the model that all serve."""

    @contextmanager
    def start(contestant: Contestant, model: Model, cores: Cores) -> Iterator[Address]:
        with ExitStack() as stack:
            url = stack.enter_context(private_redis()) if redis else ""
            models = stack.enter_context(alone(model))
            yield stack.enter_context(serving(redis=url, models=models, cores=cores, settings=settings)).address

    return start


@contextmanager
def alone(model: Model) -> Iterator[Path]:
    """A models directory with nothing else in it, so that no time or memory goes to models that nobody asks."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / model.directory.name).symlink_to(model.directory.resolve())
        yield Path(directory)


def verify(contestant: Contestant, model: Model, address: Address) -> None:
    """That it predicts as the model does, and that its cache hits. Raises StartFailed if not."""
    if contestant.answer is None:
        return
    with Connection(address) as connection:
        reply = connection.ask(contestant.shape.request(model.example))
        if reply.status != 200:
            raise StartFailed(f"answers {reply.status}: {reply.body[:120].decode(errors='replace')}")
        answer = contestant.answer(json.loads(reply.body))
        values = [answer[label] for label in model.labels] if isinstance(answer, dict) else answer
        if not all(isclose(a, b, abs_tol=1e-12) for a, b in zip(values, model.golden, strict=True)):
            raise StartFailed(f"predicts {values} where the model says {model.golden}")
    if contestant.computations is not None and contestant.rows[0].kind == "warm":
        _prove_hits(contestant, model, address)


def computed(contestant: Contestant, address: Address) -> float | None:
    """How many rows it has predicted so far, by its own count; None for those that do not count."""
    if contestant.computations is None:
        return None
    request, pattern = contestant.computations
    with Connection(address) as connection:
        body = connection.ask(request).body.decode()
    return sum(float(each) for each in re.findall(pattern, body, re.MULTILINE))


def _prove_hits(contestant: Contestant, model: Model, address: Address) -> None:
    """Five more of the same question must not be computed."""
    request = contestant.shape.request(model.example)
    before = computed(contestant, address)
    list(one_by_one(address, [request] * 5))
    after = computed(contestant, address)
    if not before or before != after:
        raise StartFailed(f"its cache does not hit: {before} computations before five repeats, {after} after")
