"""What this service adds to gunicorn's arbiter, through its hooks.

- The start: an error in settings, port or models is one sentence and exit code 2. The port refuses connections until a
  worker serves.
- A worker that cannot start ends the service only if no worker has ever served, or none can start any more. Otherwise
  it is replaced, after growing pauses. Gunicorn itself would end everything, or start the next one at once.
- The end: nothing is left behind. The exit code is 1 when a worker had to be killed.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from gunicorn.errors import HaltServer
from prometheus_client.multiprocess import mark_process_dead

from service.config import PUBLIC_SECRET, Settings, settings_of_process
from service.errors import ConfigurationError
from service.server.embedded_redis import RuntimeDirectory, restart_delay
from service.server.report import ENDED, SERVING, Succession

logger = logging.getLogger(__name__)

STABLE_SECONDS = 10
"""A worker that served for so long ends a row of failures."""
MOST_FAILURES = 8
"""So many failures in a row, while no worker serves, end the service: after about ten seconds."""


@cache
def of_process(arguments: tuple[str, ...] | None = None) -> Supervision:
    """The process's one Supervision, also when gunicorn reads its configuration again.

    Wrong settings end the process with a sentence and exit code 2.
    """
    # One thread for linear algebra in each worker, or there would be more threads than CPUs. Set before its imports.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for signum in (signal.SIGTERM, signal.SIGINT):  # until gunicorn sets its handlers: nothing serves yet
        signal.signal(signum, lambda *_: sys.exit(0))
    try:
        return Supervision(settings_of_process(arguments))
    except ConfigurationError as error:
        stop_start(error)


class Supervision:
    """Public methods are gunicorn's hooks of the same names. All run in the arbiter."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._directory: RuntimeDirectory | None = None
        self._redis = ""
        self._tokens = -1
        self._succession = Succession.shared()
        self._ever_served = False
        self._failures = 0
        self._failure: str | None = None
        self._unclean = False

    # Start

    def on_starting(self, arbiter: Any) -> None:
        """Do everything that may fail or take long before gunicorn starts the first worker."""
        warn_of_a_public_secret(self.settings)
        try:
            if self._binds_alone(arbiter):
                arbiter.LISTENERS = [bind(self.settings)]
        except ConfigurationError as error:
            stop_start(error)
        is_embedded = self.settings.redis_url == "embedded"
        try:
            self._directory = RuntimeDirectory(with_redis=is_embedded)
        except OSError as error:
            logger.warning("No space for temporary files (%s): no embedded Redis, no metrics of all workers.", error)
        share_imports(self.settings.models_dir)
        redis_url = self.settings.redis_url
        if is_embedded:
            redis_url = self._directory.redis_url() if self._directory is not None else ""
        self._redis = "embedded" if is_embedded and redis_url else describe_redis(redis_url)
        share_settings(self.settings.model_copy(update={"redis_url": redis_url}))
        self._tokens, end = os.pipe()
        os.write(end, b"." * (self.settings.workers - 1) + b"!")
        os.close(end)

    def _binds_alone(self, arbiter: Any) -> bool:
        """Whether to bind: not with sockets from systemd or an old arbiter, nor with gunicorn's own options."""
        inherited = {"GUNICORN_FD", "LISTEN_FDS"} & set(os.environ)
        return not inherited and arbiter.cfg.bind == [bind_address(self.settings)]

    # Workers

    def when_ready(self, arbiter: Any) -> None:
        """Before the first worker."""

        def stop(signum: int, frame: Any) -> None:
            self._succession.stopping = True
            arbiter.signal(signum, frame)
            logger.info("Told to stop.", extra={"signal": signal.Signals(signum).name})

        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(signum, stop)
        signal.signal(signal.SIGCHLD, partial(self._child_ended, arbiter.signal_chld))

    def _child_ended(self, reap: Callable[[int, Any], None], signum: int, frame: Any) -> None:
        try:
            if self._directory is not None:
                self._directory.child_ended()
        finally:
            reap(signum, frame)

    def on_reload(self, arbiter: Any) -> None:
        """SIGHUP: all workers are about to be replaced."""
        logger.info("All workers are replaced by new ones, which load the models again.", extra={"signal": "SIGHUP"})
        shared = self._succession
        shared.stopping, shared.count, shared.youngest = False, arbiter.cfg.workers, arbiter.worker_age

    def nworkers_changed(self, arbiter: Any, now: int, before: int | None) -> None:
        """At the start, and by SIGTTIN or SIGTTOU."""
        if before not in (None, now):
            logger.info("The number of workers is changed.", extra={"now": now, "before": before})

    def pre_fork(self, arbiter: Any, worker: Any) -> None:
        worker.succession = self._succession
        self._succession.set_ready(worker.age, False)
        worker.delay = restart_delay(max(0, self._failures - 1))  # the first one is replaced at once
        worker.announce = partial(self._announce, arbiter.LISTENERS)
        worker.began = time.monotonic()
        worker.sent_before = arbiter.SIG_QUEUE
        taken = {other.number for other in arbiter.WORKERS.values()}
        worker.number = next(number for number in count() if number not in taken)
        worker.metrics_directory = self._directory and self._directory.metrics

    def _announce(self, listeners: list[Any]) -> None:
        """Each worker calls this when it serves. It takes a token from the pipe; the last token's worker prints."""
        if os.read(self._tokens, 1) == b"!":
            count, where = self.settings.workers, ", ".join(map(url, listeners))
            print(f"Serving on {where} ({count} worker{'s' * (count > 1)}, Redis: {self._redis})", flush=True)

    def child_exit(self, arbiter: Any, worker: Any) -> None:
        """A worker has ended. Raises HaltServer when the service must end, too."""
        report = worker.report
        others = [other.report for other in arbiter.WORKERS.values()]
        self._ever_served |= report.served or any(other.served for other in others)
        if self._failure is not None or not arbiter.LISTENERS:  # the arbiter stops
            self._unclean |= report.state == SERVING
            return
        if self._directory is not None:
            mark_process_dead(worker.number, str(self._directory.metrics))  # type: ignore[no-untyped-call]
        if report.state != ENDED:
            self._count_failure(worker, sum(other.state == SERVING for other in others))

    def _count_failure(self, worker: Any, serving: int) -> None:
        """``serving``: how many other workers serve."""
        report, reason = worker.report, worker.report.reason
        if not self._ever_served:
            self._halt(reason or "A worker was killed, or crashed, while it started.")
        if report.served and time.monotonic() - worker.began > STABLE_SECONDS:
            self._failures = 0
        self._failures += 1
        if self._failures >= MOST_FAILURES and not serving and not report.served:
            self._halt(f"No worker can start any more. {reason}")
        reason = reason or "It was killed, or crashed."
        about = {"worker": worker.pid, "reason": reason, "serving": serving}
        logger.error("A worker ended and is replaced.", extra=about)

    def _halt(self, failure: str) -> NoReturn:
        self._failure = failure
        self._succession.stopping = True
        # No reason and status 0, so that gunicorn prints nothing. `on_exit` prints the reason and sets the exit code.
        raise HaltServer(None, 0)

    # End

    def on_exit(self, arbiter: Any) -> None:
        """Clean up and exit. Signals are ignored from now on, because one more would change the exit code."""
        for signum in arbiter.SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        if self._directory is not None:
            self._directory.close()
        if self._failure is not None:
            print(self._failure, file=sys.stderr)
            sys.exit(2)
        logger.info("The service has stopped.", extra={"exit_code": int(self._unclean)})
        sys.exit(int(self._unclean))


def stop_start(error: ConfigurationError) -> NoReturn:
    print(error, file=sys.stderr)
    sys.exit(2)


def share_imports(models_dir: Path) -> None:
    """Import what every worker needs before the fork: memory that is never written to stays shared.

    Only imports, because no thread or connection survives a fork. Models belong to workers.
    """
    # Imported here, so that wrong settings are reported without waiting for these imports.
    import service.server.worker  # noqa: F401
    from service.inference.loading import import_kinds

    import_kinds(models_dir)
    gc.collect()
    gc.freeze()


def warn_of_a_public_secret(settings: Settings) -> None:
    """In the arbiter, because a worker cannot tell the embedded Redis, which nobody else can reach, from another."""
    is_public = settings.cache_secret.get_secret_value() == PUBLIC_SECRET
    if settings.redis_url not in ("", "embedded") and is_public:
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
    """A bound socket; raises ConfigurationError when the port is taken.

    The first worker that serves makes it listen. Until then connections are refused, and a load balancer tries another
    replica. Gunicorn would listen before the workers start, and clients would wait in the backlog.
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
    """The URL of our own socket, or of one of gunicorn's."""
    if not isinstance(listener, socket.socket):
        return str(listener)
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def describe_redis(url: str) -> str:
    """The host or path of the URL, without user and password."""
    if not url:
        return "none"
    parts = urlsplit(url)
    return parts.hostname or parts.path
