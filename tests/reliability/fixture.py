"""What every figure stands on: the probe model, its book, and real servers in one temporary directory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from tests.support.probe import Book, Probe, register
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import Server

COST_SECONDS = 0.005
"""What the probe takes for any call: enough for a lease under the default settings."""
EXIT_SECONDS = 30


class Fixture:
    """``say`` is told what begins, as the run goes on. ``surprises`` are what a service should not have logged or done
    beside what is measured."""

    def __init__(self, directory: Path, say: Callable[[str], None]):
        self.directory, self.say = directory, say
        self.surprises: list[str] = []
        self.book = Book(directory)
        self.models = directory / "models"
        register(Probe(directory, COST_SECONDS), self.models, "probe")
        self._questions = itertools.count(1)
        self._places = itertools.count(1)

    def fresh(self) -> float:
        """A question that nobody has asked before."""
        return next(self._questions) + 0.123456789

    def redis(self) -> AbstractContextManager[RedisServer]:
        """An empty Redis of its own."""
        return running_redis(self._place("redis"))

    @contextmanager
    def service(self, redis_url: str, **settings: object) -> Iterator[Server]:
        """A ready service with default settings but for those given, told to stop afterwards and gone in any case."""
        given: dict[str, Any] = {"models_dir": self.models, "default_model": "probe", **settings}
        server = Server(self._place("service"), redis_url=redis_url, **given)
        try:
            server.wait_until_ready()
            yield server
            self._stop(server)
        finally:
            server.kill()

    def _stop(self, server: Server) -> None:
        """What the tests would fail on is only noted here: the figures are worth having all the same."""
        if server.process.exit_code is None:
            server.process.terminate()
        code = server.process.wait(EXIT_SECONDS)
        if code:
            self.surprises.append(f"exit code {code}")
        self.surprises += server.tracebacks()

    def _place(self, name: str) -> Path:
        place = self.directory / f"{name}-{next(self._places)}"
        place.mkdir()
        return place
