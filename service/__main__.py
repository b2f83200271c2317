"""``python -m service``: serve until told to stop; ``--help`` lists the settings."""

from __future__ import annotations

import logging
import sys
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from service.server.gunicorn import configuration
from service.server.supervision import of_process

logger = logging.getLogger("service")


class Service(BaseApplication):  # type: ignore[misc]
    """Gunicorn in this process, with our configuration and none of its own flags and files."""

    def load_config(self) -> None:
        for name, value in configuration(of_process(tuple(sys.argv[1:]))).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from service.app import app  # not above, so that wrong settings are reported without waiting for it

        return app


class PatientArbiter(Arbiter):  # type: ignore[misc]
    """An arbiter that tries again in a second when a fork fails. Gunicorn's own would end the service."""

    def spawn_worker(self) -> None:
        try:
            super().spawn_worker()
        except OSError as error:
            logger.error("No worker can be started: %s", error)


def main() -> None:
    arbiter = PatientArbiter(Service())
    # For SIGUSR2. Started by this file's path, Python would import `service/http` instead of its own `http`.
    arbiter.START_CTX["args"] = [sys.executable, "-m", "service", *sys.argv[1:]]
    arbiter.run()


if __name__ == "__main__":
    main()
