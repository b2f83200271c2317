"""What this service adds to gunicorn's arbiter, through its hooks.

- The start: what is wrong with settings, port or models is one sentence, and exit code 2. Nobody is let in before a
  worker serves.
- A worker that cannot start ends the service only while none has ever served, or when none can any more; else it is
  replaced, ever later. Gunicorn ends everything at the first, or starts the next at once.
- The end: nothing is left behind, and exit code 1 when a worker had to be killed.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gunicorn.errors import HaltServer

from service.config import Settings, settings_of_process
from service.errors import ConfigurationError
from service.metric_files import merge_dead, remove
from service.server.embedded_redis import restart_delay
from service.server.report import ENDED, SERVING, Succession
from service.server.runtime_directory import RuntimeDirectory

logger = logging.getLogger(__name__)

STABLE_SECONDS = 10
"""A worker that served for so long starts afresh in counting failures."""
MOST_FAILURES = 8
"""In a row, and while no worker serves: about ten seconds of trying."""


@cache
def of_process(arguments: tuple[str, ...] | None = None) -> Supervision:
    """One for each process, also when gunicorn reads its configuration again.

    Ends the process, with a sentence and 2, when the settings are wrong.
    """
    # One thread each for linear algebra: workers times threads would be more than there are CPUs. Read by its imports.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for signum in (signal.SIGTERM, signal.SIGINT):  # until gunicorn has its own: nothing serves yet
        signal.signal(signum, lambda *_: sys.exit(0))
    try:
        return Supervision(settings_of_process(arguments))
    except ConfigurationError as error:
        stop_start(error)


class Supervision:
    """Its methods are gunicorn's hooks of the same names; all of it is the arbiter's but ``post_fork``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._environ = dict(os.environ)
        self._directory: RuntimeDirectory | None = None
        self._redis = "none"
        self._tokens = os.pipe()
        self._succession = Succession()
        self._ever_served = False
        self._failures = 0
        self._failure: str | None = None
        self._unclean = False
        self._halting = False

    # Start

    def on_starting(self, arbiter: Any) -> None:
        """Everything that may fail or take its time, before gunicorn starts the first worker."""
        warn_of_a_public_secret(self.settings)
        try:
            if self._binds_alone(arbiter):
                arbiter.LISTENERS = [bind(self.settings)]
        except ConfigurationError as error:
            stop_start(error)
        self._open_directory()
        share_imports(self.settings.models_dir)
        redis_url = self._redis_url()
        share_settings(self.settings.model_copy(update={"redis_url": redis_url}))
        if self._directory is not None:
            self._directory.check_space(self.settings.workers)
        os.write(self._tokens[1], b"." * (self.settings.workers - 1) + b"!")

    def _open_directory(self) -> None:
        try:
            self._directory = RuntimeDirectory(with_redis=self.settings.redis_url == "embedded")
        except OSError as error:
            logger.warning("No room for temporary files (%s): no embedded Redis, no metrics of all workers.", error)

    def _redis_url(self) -> str:
        """Waits for an embedded Redis, which starts meanwhile."""
        embedded = self._directory.redis_url() if self._directory is not None else ""
        if self.settings.redis_url != "embedded":
            self._redis = describe_redis(self.settings.redis_url)
            return self.settings.redis_url
        self._redis = "embedded" if embedded else "none"
        return embedded

    def _binds_alone(self, arbiter: Any) -> bool:
        """Not on sockets from systemd or an arbiter before this one, nor where gunicorn's own options say."""
        inherited = {"GUNICORN_FD", "LISTEN_FDS"} & set(os.environ)
        return not inherited and arbiter.cfg.bind == [bind_address(self.settings)]

    # Workers

    def when_ready(self, arbiter: Any) -> None:
        """Before the first worker."""

        def stop(signum: int, frame: Any) -> None:
            self._succession.stop()
            arbiter.signal(signum, frame)
            logger.info("Told to stop.", extra={"signal": signal.Signals(signum).name})

        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, stop)

    def on_reload(self, arbiter: Any) -> None:
        """SIGHUP: as many as wanted are about to start."""
        self._succession.replace(arbiter.worker_age, arbiter.cfg.workers)

    def pre_fork(self, arbiter: Any, worker: Any) -> None:
        worker.succession = self._succession
        self._succession.expect(worker.age)
        worker.delay = restart_delay(max(0, self._failures - 1))  # the first one is replaced at once
        worker.announce = partial(self._announce, arbiter.LISTENERS)
        worker.began = time.monotonic()
        worker.metrics_directory = self._directory and self._directory.metrics

    def post_fork(self, arbiter: Any, worker: Any) -> None:
        worker.sent_before = arbiter.SIG_QUEUE

    def _announce(self, listeners: list[Any]) -> None:
        """In a worker that serves now. Each takes a token out of the pipe; who takes the last one speaks, once."""
        os.set_blocking(self._tokens[0], False)
        try:
            token = os.read(self._tokens[0], 1)
        except BlockingIOError:
            return
        if token == b"!":
            workers = "1 worker" if self.settings.workers == 1 else f"{self.settings.workers} workers"
            where = ", ".join(map(url, listeners))
            print(f"Serving on {where} ({workers}, Redis: {self._redis})", flush=True)

    def child_exit(self, arbiter: Any, worker: Any) -> None:
        """A worker has ended. Raises HaltServer when the service is to end too."""
        report = worker.report
        others = [other.report for other in arbiter.WORKERS.values()]
        self._ever_served |= report.served or any(other.served for other in others)
        if self._halting or not arbiter.LISTENERS:  # the arbiter stops
            self._unclean |= report.state == SERVING
            return
        self._bury(worker, {other.pid for other in arbiter.WORKERS.values()})
        if report.state != ENDED:
            self._count_failure(worker, any(other.state == SERVING for other in others))

    def _bury(self, worker: Any, alive: set[int]) -> None:
        """Its gauges go, its counters stay, unless it never served and has none."""
        if self._directory is not None and self._directory.metrics is not None:
            if not worker.report.served:
                remove(self._directory.metrics, worker.pid)
            merge_dead(self._directory.metrics, alive)

    def _count_failure(self, worker: Any, others_serve: bool) -> None:
        report, reason = worker.report, worker.report.reason
        if not self._ever_served:
            self._halt(reason or "A worker was killed, or crashed, while it started.")
        if report.served and time.monotonic() - worker.began > STABLE_SECONDS:
            self._failures = 0
        self._failures += 1
        if self._failures >= MOST_FAILURES and not others_serve and not report.served:
            self._halt(f"No worker can start any more. {reason}")
        reason = reason or "It was killed, or crashed."
        logger.error("A worker ended and is replaced.", extra={"worker": worker.pid, "reason": reason})

    def _halt(self, failure: str) -> NoReturn:
        self._failure = failure
        self._halting = True
        self._succession.stop()
        # No reason and status 0: what gunicorn would say about others. `on_exit` says and returns it.
        raise HaltServer(None, 0)

    # End

    def pre_exec(self, arbiter: Any) -> None:
        """SIGUSR2: the new arbiter starts as this one did."""
        arbiter.cfg.env_orig = self._environ

    def on_exit(self, arbiter: Any) -> None:
        """The last moments: nothing is left to stop, and another signal would by default spoil the exit code."""
        for signum in arbiter.SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        self._close()
        if self._failure is not None:
            print(self._failure, file=sys.stderr)
            sys.exit(2)
        sys.exit(int(self._unclean))

    def _close(self) -> None:
        if self._directory is not None:
            self._directory.close()


def stop_start(error: ConfigurationError) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(2)


def share_imports(models_dir: Path) -> None:
    """Load what every worker needs, once: memory that is never written to is shared after a fork.

    Imports only: models belong to workers, and a thread or a connection does not survive a fork.
    """
    # Not above: settings that are wrong need not wait for all that serves.
    import service.server.worker  # noqa: F401
    from service.inference.loading import import_kinds

    import_kinds(models_dir)
    gc.collect()
    gc.freeze()


def warn_of_a_public_secret(settings: Settings) -> None:
    """Here, since a worker cannot tell the embedded Redis, which nobody else can reach, from another one."""
    if settings.redis_url not in ("", "embedded") and settings.secret_is_public:
        logger.warning(
            "PREDICT_CACHE_SECRET is the public default: whoever can write to this Redis can forge answers. "
            "Set a secret of your own, the same for all that share this Redis."
        )


def share_settings(settings: Settings) -> None:
    from service.app import app  # not above, as in `share_imports`

    app.state.settings = settings


def bind_address(settings: Settings) -> str:
    return f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"


def bind(settings: Settings) -> socket.socket:
    """A socket that is bound, so that a port that is taken stops the start; raises ConfigurationError.

    The first worker that serves makes it listen. Until then clients are refused, and a load balancer asks another
    replica, where they would wait in the backlog of one that starts. Gunicorn's own way listens before workers start.
    """
    host, port = settings.host, settings.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        where = f"{host} port {port} ({error.strerror})"
        raise ConfigurationError(f"Cannot listen on {where}: set PREDICT_HOST and PREDICT_PORT to others.") from None
    bound.set_inheritable(True)  # for the arbiter that SIGUSR2 starts
    return bound


def url(listener: Any) -> str:
    """Of our own socket, or of one of gunicorn's, which know theirs."""
    if not isinstance(listener, socket.socket):
        return str(listener)
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def describe_redis(url: str) -> str:
    """Without user and password."""
    if not url:
        return "none"
    parts = urlsplit(url)
    return parts.hostname or parts.path
