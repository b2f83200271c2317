"""Start servers, wait until they answer, stop exactly what was started."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from benchmarks.client import Address, Connection, get
from benchmarks.machine import ALL_CORES, CLIENT_CORE, pin


class StartFailed(Exception):
    """A server that could not be started; the text says why, with the end of its log."""


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    address: Address,
    ready: bytes = get("/"),
    cores: tuple[int, ...] = ALL_CORES,
    env: Mapping[str, str] | None = None,
    timeout: float = 60,
) -> Iterator[subprocess.Popen[bytes]]:
    """A server confined to ``cores``, from the first time it answers ``ready`` with 200 until the end of the block.

    Raises StartFailed when it ends, or does not answer within ``timeout`` seconds.
    """
    with spawned(command, cores=cores, env=env) as (process, log):
        deadline = time.monotonic() + timeout
        while not answers(address, ready):
            if process.poll() is not None:
                raise StartFailed(f"{command[0]} ended with {process.returncode}: {last_lines(log)}")
            if time.monotonic() > deadline:
                raise StartFailed(f"{command[0]} did not answer within {timeout:.0f} s: {last_lines(log)}")
            time.sleep(0.005)
        yield process


@contextmanager
def spawned(
    command: Sequence[str | Path], *, cores: tuple[int, ...] = ALL_CORES, env: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
    """A process in a group of its own, so that its workers go with it; and the file that its output goes to."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**_inherited(), **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: pin(cores),
        )
        try:
            yield process, log
        finally:
            _stop(process)


@contextmanager
def private_redis() -> Iterator[str]:
    """The URL of a Redis of our own on the client's core, nothing saved. Raises StartFailed without a server."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise StartFailed("redis-server is not installed (Debian: redis-server)")
    port = free_port()
    command = [binary, "--port", str(port), "--save", "", "--appendonly", "no", "--maxmemory", "256mb"]
    command += ["--maxmemory-policy", "allkeys-lfu"]
    with spawned(command, cores=CLIENT_CORE) as (process, log):
        for _ in range(200):
            if _accepts(("127.0.0.1", port)):
                break
            time.sleep(0.02)
        else:
            raise StartFailed(f"redis-server ended with {process.poll()}: {last_lines(log)}")
        yield f"redis://127.0.0.1:{port}/0"


def answers(address: Address, request: bytes) -> bool:
    """Whether ``request`` is answered with 200 now."""
    try:
        with Connection(address, timeout=5) as connection:
            return connection.ask(request).status == 200
    except OSError:
        return False


def _inherited() -> dict[str, str]:
    """Our environment without settings of the service: it is measured with those that the measurement names."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PREDICT_")}


def _accepts(address: Address) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the leader, so that it can stop its workers in order; after ten seconds SIGKILL to the whole group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(log: IO[bytes], count: int = 3) -> str:
    """The end of what a process has written there."""
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return " / ".join(lines[-count:]) or "(no output)"
