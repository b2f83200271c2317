"""A real Redis on a TCP port of its own, for tests that break it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.server.embedded_redis import find_server
from tests.support.process import Process, eventually, free_port


class RedisServer:
    """Owns one server process at a time; the port stays the same over restarts."""

    def __init__(self, directory: Path):
        self.directory, self.port = directory, free_port()
        self._process: Process | None = None
        self.client = redis.Redis(port=self.port, protocol=2, socket_timeout=30, retry=Retry(NoBackoff(), 0))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def process(self) -> Process:
        assert self._process is not None, "the server has been stopped"
        return self._process

    def start(self, *options: str, wait: bool = True) -> None:
        """Start it with production's eviction; ``options`` as on its command line."""
        fixed = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        policy = ["--save", "", "--appendonly", "no", "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lfu"]
        if "--cluster-enabled" in options:  # by default it takes a second port, 10,000 above, which may be somebody's
            fixed += ["--cluster-port", str(free_port())]
        program = find_server()
        assert program is not None, "the tests need a redis-server, of the system or from the dev extra"
        self._process = Process([program, *fixed, *policy, *options], self.directory / "redis.log")
        if wait:
            eventually(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def freeze(self) -> None:
        self.process.freeze()

    def thaw(self) -> None:
        self.process.thaw()

    def kill(self) -> None:
        """SIGKILL: the port refuses, and all data are gone."""
        if self._process is not None:
            self._process.kill()
            self._process = None
        self.client.close()

    def restart(self, *options: str, wait: bool = True) -> None:
        """Killed and started again, empty."""
        self.kill()
        self.start(*options, wait=wait)

    def configure(self, **options: object) -> None:
        """CONFIG SET, with ``_`` for ``-`` in names."""
        for name, value in options.items():
            self.client.config_set(name.replace("_", "-"), str(value))

    def names(self, pattern: str = "*") -> set[bytes]:
        return set(self.client.scan_iter(pattern, count=1000))

    def entries(self) -> set[bytes]:
        """The Redis keys of all cached answers."""
        return self.names("p1:*:v")

    def value(self, key: bytes) -> bytes:
        """The bytes stored under a key that exists."""
        stored = self.client.get(key)
        assert isinstance(stored, bytes)
        return stored

    def kill_clients(self) -> None:
        """Close every connection but this one."""
        for kind in ("normal", "pubsub"):
            self.client.client_kill_filter(_type=kind, skipme=True)


@contextmanager
def running_redis(directory: Path, *options: str) -> Iterator[RedisServer]:
    """A Redis that is gone afterwards, frozen or not."""
    directory.mkdir(parents=True, exist_ok=True)
    server = RedisServer(directory)
    try:
        server.start(*options)
        yield server
    finally:
        server.kill()


def load_slowly(server: RedisServer, seconds: float) -> None:
    """Restart it from a saved file so slowly that it answers LOADING for about that long."""
    keys = 2_000
    with server.client.pipeline(transaction=False) as pipe:
        for number in range(keys):
            pipe.set(f"filler:{number}", b"x" * 200, ex=600)
        pipe.execute()
    server.client.save()
    delay = int(seconds / keys * 1e6)
    server.restart("--key-load-delay", str(delay), "--loading-process-events-interval-bytes", "1024", wait=False)
    time.sleep(0.05)
