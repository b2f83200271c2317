"""The service as its users run it: ``python -m service`` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.support.client import Address, Connection
from tests.support.probe import TOLD_TO_RAISE, environment
from tests.support.process import (
    PATIENCE,
    Process,
    children,
    command_line,
    descendants,
    eventually,
    free_port,
    is_running,
)

ADMIN_TOKEN = "a-token-for-tests"
SITE = Path(__file__).parent / "site"
START_SECONDS = 120


class Server:
    """A running service. ``settings`` are PREDICT_* names in lower case without the prefix.

    ``patient``: give Redis more time than in production, as tests/support/patience.py says why. ``command``: Python's
    arguments.
    """

    def __init__(
        self, directory: Path, *, patient: bool = False, command: Sequence[str] = ("-m", "service"), **settings: object
    ):
        self.port = int(str(settings.get("port", 0))) or free_port()
        self.address: Address = ("127.0.0.1", self.port)
        self.started_after = 0.0
        self._family: list[int] = []
        self.workers_wanted = int(str(settings.get("workers", 1)))
        # No audits: they compute what the probe would count.
        fixed = {"port": self.port, "admin_token": ADMIN_TOKEN, "redis_url": "", "drain_seconds": 0, "audit_share": 0}
        given = fixed | settings
        log = directory / f"service-{self.port}.log"
        env = environment(given)
        if patient:
            env["PYTHONPATH"] = f"{SITE}:{env['PYTHONPATH']}"
        self.process = Process([sys.executable, *command], log, env=env, cwd=directory)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> float:
        """Seconds from now until every worker serves and /readyz says 200."""
        return eventually(self._is_up, within=START_SECONDS)

    def _is_up(self) -> bool:
        assert self.process.exit_code is None, self.process.errors()
        return len(self.workers()) >= self.workers_wanted and set(self.workers()) <= self.serving() and self.is_ready()

    def is_ready(self) -> bool:
        return self.status("/readyz") == 200

    def status(self, path: str) -> int | None:
        """The status of a plain GET on a fresh connection, or None when there is no answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def workers(self) -> list[int]:
        """The pids of the processes that serve, or will: forked, they have their parent's command line."""
        own = command_line(self.process.pid)
        return [pid for pid in children(self.process.pid) if own and command_line(pid) == own]

    def serving(self) -> set[int]:
        """The workers that have told that they serve; a process that runs may still be starting."""
        whole = self.process.errors().rpartition("\n")[0]  # without a line that is being written
        return {json.loads(line)["worker"] for line in whole.splitlines() if '"A worker serves."' in line}

    def family(self) -> list[int]:
        """Every process that belongs to it, its embedded Redis included."""
        self._family = [self.process.pid, *descendants(self.process.pid)]
        return self._family

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of that name that carry the labels; 0 when there are none."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=30) as response:
            text = response.read().decode()
        total = 0.0
        for series, value in re.findall(rf"^{re.escape(name)}(\{{.*\}})? (\S+)$", text, re.M):
            if all(f'{key}="{wanted}"' in series for key, wanted in labels.items()):
                total += float(value)
        return total

    def stop(self, within: float = PATIENCE) -> int:
        """SIGTERM; the exit code. Fails when it takes longer or when a traceback of the service's own was logged."""
        self.process.terminate()
        code = self.process.wait(within)
        assert not self.tracebacks(), self.tracebacks()[0]
        return code

    def tracebacks(self) -> list[str]:
        """Log lines with a traceback, other than those that the probe asked for."""
        lines = self.process.errors().splitlines()
        return [line for line in lines if "Traceback" in line and TOLD_TO_RAISE not in line]

    def kill(self) -> None:
        """End every process of it, at once and by pid."""
        family = self.family() if self.process.exit_code is None else self._family
        self.process.kill()
        for pid in family[1:]:
            if is_running(pid):
                with suppress(ProcessLookupError):  # it has ended by itself meanwhile
                    os.kill(pid, signal.SIGKILL)

    async def connect_to_each(self, count: int = 1) -> dict[int, list[Connection]]:
        """``count`` keep-alive connections to every worker, by pid, each used once, so that it may idle for long.

        Whoever calls closes them, with ``close_all``.
        """
        workers = self.workers()
        return {pid: [await self._connect_to(pid, workers) for _ in range(count)] for pid in workers}

    async def _connect_to(self, pid: int, workers: list[int]) -> Connection:
        """The workers share one listening socket: who alone is not frozen for a moment accepts."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                with frozen(other for other in workers if other != pid), suppress(TimeoutError):
                    connection = await Connection.open(self.address)
                    async with asyncio.timeout(3):  # It may be starting still.
                        await connection.get("/livez")
                        return connection
                connection.close()
                await asyncio.sleep(0.2)


@contextmanager
def frozen(pids: Iterable[int]) -> Iterator[None]:
    """SIGSTOP, and SIGCONT afterwards."""
    stopped = list(pids)
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def close_all(connections: Iterable[Connection]) -> None:
    for connection in connections:
        connection.close()


@contextmanager
def running_server(directory: Path, *, patient: bool = True, **settings: object) -> Iterator[Server]:
    """A ready service; afterwards stopped by SIGTERM, which must end it with 0, and gone in any case."""
    directory.mkdir(parents=True, exist_ok=True)
    server = Server(directory, patient=patient, **settings)  # type: ignore[arg-type]
    try:
        server.started_after = server.wait_until_ready()
        yield server
        if server.process.exit_code is None:
            assert server.stop() == 0, server.process.errors()
    finally:
        server.kill()
