"""One serving process: gunicorn's worker with uvicorn's server in it. It drains when it is told to stop or is orphaned.

Gunicorn's arbiter forks it and reads its report (report.py). A failure here never becomes an exit code, because some
exit codes make gunicorn end the whole service.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import math
import os
import queue
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import uvicorn
from uvicorn.config import Config
from uvicorn_worker import UvicornWorker

from service.app import app
from service.config import Settings, settings_of_process
from service.errors import ConfigurationError
from service.metrics import share_values
from service.runtime import Runtime
from service.server.connection import protocol_class
from service.server.hit_table import HitTable
from service.server.report import ENDED, SERVING, Report, Succession

logger = logging.getLogger("service.server.worker")

BEAT_SECONDS = 0.5
EXIT_SLACK_SECONDS = 2
"""How long a shutdown may take beyond drain and grace."""
LAST_SECONDS = 0.1
QUICK_SECONDS = 2
"""How long requests under way may take after SIGQUIT."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class Lifespan:
    """The application's lifespan as ASGI events. It raises the application's errors; uvicorn's own only logs them."""

    should_exit = False

    def __init__(self, app: Any) -> None:
        self.state: dict[str, Any] = {}
        self._events: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self._replies: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self._app = app
        self._running: asyncio.Task[None]

    async def startup(self) -> None:
        """Raises what the application raised while it started. Makes the hit table before there are connections."""
        self._running = asyncio.create_task(self._app(self._scope, self._events.get, self._replies.put))
        await self._send("lifespan.startup")
        runtime: Runtime = self.state["runtime"]
        if runtime.settings.has_hit_path:
            hits = self.state["hits"] = HitTable(runtime)
            runtime.tallies.append(hits.flush)

    async def shutdown(self) -> None:
        await self._send("lifespan.shutdown")
        await self._running

    async def _send(self, event: str) -> None:
        self._events.put_nowait({"type": event})
        reply = asyncio.create_task(self._replies.get())
        await asyncio.wait((reply, self._running), return_when=asyncio.FIRST_COMPLETED)
        if not reply.done() or not reply.result()["type"].endswith(".complete"):
            reply.cancel()
            await self._running


class Server(uvicorn.Server):
    """Uvicorn's server with heartbeats and a drain before its shutdown. It does not raise signals again at the end."""

    def __init__(self, config: Config, settings: Settings, worker: ServiceWorker) -> None:
        super().__init__(config)
        self._settings = settings
        self._worker = worker
        self._told_to_end = False
        self._draining = False

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Start up, serve, drain, shut down."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.end_in_turn)
        loop.add_signal_handler(signal.SIGQUIT, self.quit)
        beating = asyncio.create_task(self._beat())
        await asyncio.sleep(self._worker.delay)
        self.config.load()
        self.lifespan: Any = Lifespan(self.config.loaded_app)
        try:
            await self.startup(sockets)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigurationError("Another service listens on the port: set PREDICT_PORT to another.") from None
        settle_memory()
        models = self.lifespan.state["runtime"].models.values()
        self._worker.tell_ready({model.name: model.version for model in models})
        await self.main_loop()
        await self.shutdown(sockets)
        if self._worker.report.state == SERVING:
            self._worker.report.state = ENDED
        beating.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, after a short time in which the connections accepted last can send their first request."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(LAST_SECONDS)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """As uvicorn's, which renews the Date header."""
        before = self.server_state.default_headers
        should_exit = await super().on_tick(counter)
        if "hits" in self.lifespan.state and self.server_state.default_headers is not before:
            self.lifespan.state["hits"].invalidate()
        return should_exit

    async def _beat(self) -> None:
        """Show that the event loop turns, from before the models load until the last request is answered.

        Uvicorn's own heartbeat covers only the time between.
        """
        while True:
            self._worker.notify()
            if os.getppid() != self._worker.ppid:
                self._drain(logging.WARNING, "The arbiter is gone; this worker drains and stops.")
            if self._told_to_end:
                self.end_in_turn()
            await asyncio.sleep(BEAT_SECONDS)

    def end_in_turn(self) -> None:
        """On SIGTERM: end now, or after a SIGHUP once the new workers serve."""
        self._told_to_end = True
        if not self.started or self._worker.succession.may_end(self._worker.age):
            self._drain(logging.INFO, "This worker drains and stops.", signal="SIGTERM")

    def lose(self, reason: str) -> None:
        """A model can compute no more: drain, still answering hits, and let the arbiter start another worker."""
        if not self._draining:
            self._worker.report.fail(f"{reason}.")
        self._drain(logging.ERROR, f"{reason}; this worker drains and is replaced.")

    def _drain(self, level: int, message: str, **details: str) -> None:
        """Be unready at once, serve for `drain_seconds`, then stop accepting and finish the requests under way."""
        if not self._draining:
            self._end(self._settings.drain_seconds, self._settings.grace_seconds)
            logger.log(level, message, extra=details)

    def quit(self) -> None:
        """On SIGQUIT: stop without a drain. During a drain, end at once."""
        if self._draining:
            os._exit(1)
        self._end(0, QUICK_SECONDS)
        logger.info("This worker stops.", extra={"signal": "SIGQUIT"})

    def _end(self, drain_seconds: float, grace_seconds: float) -> None:
        if not self.started:
            self._worker.leave()
        self._draining = True
        state = self.lifespan.state
        state["runtime"].draining = True
        if "hits" in state:
            state["hits"].clear()
        self.config.timeout_graceful_shutdown = math.ceil(grace_seconds)
        asyncio.get_running_loop().call_later(drain_seconds, setattr, self, "should_exit", True)
        # If a model's native code hangs, the kernel ends this process, even when no arbiter is left to do it.
        signal.alarm(math.ceil(drain_seconds + math.ceil(grace_seconds)) + EXIT_SLACK_SECONDS)


class ServiceWorker(UvicornWorker):  # type: ignore[misc]
    """The arbiter makes it and then forks. From ``init_process`` on it is a process of its own.

    Before that, the arbiter's hooks set (supervision.py):
    ``succession``: shared by all workers.
    ``delay``: seconds to wait before it loads anything, because workers before it failed.
    ``sent_before``: a queue of the arbiter's signal handlers, which the fork inherits. They put signals there that
    arrive before this worker has handlers of its own.
    ``announce``: called when this worker serves.
    ``number``: the smallest that no other living worker has; of its files for metrics.
    ``metrics_directory``: where workers share their metrics.
    """

    succession: Succession
    delay: float
    sent_before: queue.SimpleQueue[int]
    announce: Callable[[], None]
    number: int
    metrics_directory: Path | None

    CONFIG_KWARGS = {  # noqa: RUF012 - as uvicorn's
        "loop": "uvloop",
        "ws": "none",
        "interface": "asgi3",
        "access_log": False,
        "proxy_headers": False,
        "server_header": False,
        "callback_notify": None,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        logging.getLogger("uvicorn.error").propagate = True  # our handler is the root's
        self.report = Report.shared()

    def init_process(self) -> NoReturn:
        """Serve until told to stop or unable to."""
        try:
            super().init_process()
        except ConfigurationError as error:
            self.report.fail(str(error))
        except Exception as error:
            logger.exception("The worker failed.")
            self.report.fail(f"{type(error).__name__}: {error}")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # At once: everything is closed, and at a normal exit the models' libraries would write stray lines.
            os._exit(0)

    def init_signals(self) -> None:
        """Handle signals until the event loop does. Ctrl-C is for the arbiter, which then tells its workers."""
        super().init_signals()
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._leave_on_signal)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(queue.Empty):
            while self.sent_before.get_nowait() not in STOP_SIGNALS:
                pass
            self.leave()

    def run(self) -> None:
        settings = app.state.settings = app.state.settings or settings_of_process()
        self._share_metrics(settings)
        self.config.app = self.wsgi
        self.config.http = protocol_class(settings)
        self.config.timeout_graceful_shutdown = math.ceil(settings.grace_seconds)  # when max_requests ends it
        server = Server(self.config, settings, self)
        app.state.lost = server.lose
        server.run(sockets=self.sockets)

    def _share_metrics(self, settings: Settings) -> None:
        if self.metrics_directory is None:
            return
        try:
            models = len(list(settings.models_dir.glob("*/manifest.json")))
            share_values(self.metrics_directory, self.number, models)
        except OSError as error:
            logger.warning("No space for the metrics of all workers (%s): this worker shows only its own.", error)

    def tell_ready(self, models: dict[str, str]) -> None:
        """``models``: the versions that it serves."""
        self.report.state, self.report.served = SERVING, True
        self.succession.set_ready(self.age, True)
        logger.info("A worker serves.", extra={"worker": self.pid, "models": models})
        self.announce()

    def leave(self) -> NoReturn:
        """End before anything was served."""
        self.report.state = ENDED
        os._exit(0)

    def _leave_on_signal(self, signum: int, frame: object) -> None:
        self.leave()


def settle_memory() -> None:
    """Exempt what is loaded now from garbage collection, and collect less often.

    Requests leave few reference cycles, and with the default thresholds collections took an eighth of the CPU.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
