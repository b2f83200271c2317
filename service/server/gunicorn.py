"""Gunicorn's configuration: ``gunicorn -c service/server/gunicorn.py service.app:app``.

``python -m service`` does the same in its own process. Gunicorn's own options override this configuration.
"""

from __future__ import annotations

import logging
import math
import os
from typing import Any

from gunicorn.glogging import Logger

from service.server.supervision import Supervision, bind_address, of_process

SHARED_MEMORY = "/dev/shm"
KILL_SLACK_SECONDS = 3
"""Added to drain and grace. A worker that hangs ends itself a second earlier."""


class Log(Logger):  # type: ignore[misc]
    """Gunicorn's warnings, as lines of this service's log."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


def configuration(supervision: Supervision) -> dict[str, Any]:
    """Setting of gunicorn -> value."""
    settings = supervision.settings
    hooks = ("on_starting", "when_ready", "on_reload", "nworkers_changed", "pre_fork", "child_exit", "on_exit")
    return {
        "bind": bind_address(settings),
        "workers": settings.workers,
        "worker_class": "service.server.worker.ServiceWorker",
        "preload_app": True,
        "graceful_timeout": math.ceil(settings.drain_seconds + settings.grace_seconds) + KILL_SLACK_SECONDS,
        # Workers write heartbeats twice a second, and a slow disk would hold them up.
        "worker_tmp_dir": SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None,
        "control_socket_disable": True,
        "logger_class": Log,
        **{hook: getattr(supervision, hook) for hook in hooks},
    }


if __name__ == "__config__":  # as gunicorn calls the file that it is told to read
    globals().update(configuration(of_process()))
