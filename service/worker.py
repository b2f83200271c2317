"""One serving process: uvicorn's server on the launcher's socket, drained when it is told to stop or left alone.

Run by the launcher as ``python -m service.worker LISTENER CHANNEL``, two inherited file descriptors: the listening
socket, and a stream to the launcher, which is told ``ready`` or, in one sentence, why not. Its end of file means that
the launcher is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
from typing import Any

import uvicorn
from uvicorn.config import Config

from service.api.hits import HitTable
from service.api.protocol import protocol_class
from service.app import app
from service.config import Settings, load_settings
from service.errors import ConfigurationError
from service.logs import set_up_logging
from service.supervisor import READY

logger = logging.getLogger("service.worker")

EXIT_SLACK_SECONDS = 2
"""What shutting down may take beyond drain and grace."""


class Lifespan:
    """The application's lifespan as ASGI events. Its errors come out as exceptions, where uvicorn logs tracebacks."""

    should_exit = False

    def __init__(self, app: Any) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._events: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._replied = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Raises what the application raised while it started."""
        self._task = asyncio.create_task(self._run())
        await self._put("lifespan.startup")
        if self._task.done():
            self._task.result()

    async def shutdown(self) -> None:
        await self._put("lifespan.shutdown")
        if self._task is not None:
            await self._task

    async def _put(self, event: str) -> None:
        self._replied.clear()
        self._events.put_nowait({"type": event})
        await self._replied.wait()

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._events.get, self._send)
        finally:
            self._replied.set()

    async def _send(self, message: dict[str, Any]) -> None:
        # After a failure the application raises it right away: let `_run` end before anybody looks.
        if not message["type"].endswith(".failed"):
            self._replied.set()


class Worker(uvicorn.Server):
    """Uvicorn's server with a drain before its shutdown, and no signal raised again after it."""

    failed = False
    """Whether it ends because it can compute no more, and not because it was told to."""

    def __init__(self, settings: Settings, channel: socket.socket) -> None:
        app.state.settings = settings
        app.state.lost = self.lose_device
        super().__init__(
            Config(
                app,
                loop="uvloop",
                http=protocol_class(settings),
                ws="none",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(settings.grace_seconds),
            )
        )
        self._settings = settings
        self._channel = channel
        self._draining = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Start up, serve, drain, shut down."""
        self.config.load()
        self.lifespan: Any = Lifespan(self.config.loaded_app)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal, signum)
        loop.add_reader(self._channel, self._launcher_left)
        await self.startup(sockets)
        settle_memory()
        with contextlib.suppress(OSError):
            self._channel.sendall(READY)
        await self.main_loop()
        await self.shutdown(sockets)

    @property
    def _hits(self) -> HitTable | None:
        hits: HitTable | None = self.lifespan.state.get("hits")
        return hits

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's, which sets the date anew."""
        before = self.server_state.default_headers
        should_exit = await super().on_tick(counter)
        if self._hits is not None and self.server_state.default_headers is not before:
            self._hits.turn()
        return should_exit

    def _on_signal(self, signum: int) -> None:
        if self.started and not self._draining:
            logger.info("This worker drains and stops.", extra={"signal": signal.Signals(signum).name})
        self.drain()

    def lose_device(self, reason: str) -> None:
        """Nothing but hits can be answered here any more: drain, and let the launcher start another worker."""
        if not self.failed:
            self.failed = True
            logger.error("%s; this worker drains and is replaced.", reason)
            self.drain()

    def drain(self) -> None:
        """Unready at once, still serving for `drain_seconds`; then stop accepting and finish what is under way."""
        if self._draining:
            return
        self._draining = True
        if (runtime := self.lifespan.state.get("runtime")) is not None:
            runtime.draining = True
        if (hits := self._hits) is not None:
            hits.clear()
        asyncio.get_running_loop().call_later(self._settings.drain_seconds, self._stop)
        # The kernel ends a process that hangs in a model's native code, even where no launcher is left to do it.
        longest = self._settings.drain_seconds + math.ceil(self._settings.grace_seconds) + EXIT_SLACK_SECONDS
        signal.alarm(math.ceil(longest))

    def _stop(self) -> None:
        self.should_exit = True

    def _launcher_left(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)
        logger.warning("The launcher is gone; this worker drains and stops.")
        self.drain()


def settle_memory() -> None:
    """What is loaded now stays: the collector need not look at it again, nor look as often.

    Requests leave little garbage in cycles, and the default thresholds spend an eighth of the CPU on looking for it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def main(listener_fd: int, channel_fd: int) -> int:
    """Serve until told to stop or unable to; the exit code."""
    channel = socket.socket(fileno=channel_fd)
    listener = socket.socket(fileno=listener_fd)
    try:
        settings = load_settings()
        set_up_logging(settings.log_level)
        worker = Worker(settings, channel)
        worker.run(sockets=[listener])
    except ConfigurationError as error:
        with contextlib.suppress(OSError):
            channel.sendall(str(error).encode() + b"\n")
        return 2
    except Exception:
        logger.exception("The worker failed.")
        return 1
    return int(worker.failed)


if __name__ == "__main__":
    exit_code = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    # At once: all is closed, and what the libraries of models would still do is to write lines that are no log's.
    os._exit(exit_code)
