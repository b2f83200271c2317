"""``python -m service``: serve until told to stop; ``--help`` lists the settings."""

from __future__ import annotations

import sys
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from service.server.gunicorn import configuration
from service.server.supervision import of_process


class Service(BaseApplication):  # type: ignore[misc]
    """Gunicorn in this process, with our configuration and none of its own flags and files."""

    def load_config(self) -> None:
        for name, value in configuration(of_process(tuple(sys.argv[1:]))).items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        from service.app import app  # not above: settings that are wrong need not wait for all that serves

        return app


def main() -> None:
    Arbiter(Service()).run()


if __name__ == "__main__":
    main()
