"""Log lines about requests that are refused or late. A flood of such requests does not flood the log."""

from __future__ import annotations

import logging

from service.errors import ServiceError
from service.logs import FloodLog

PERIOD_SECONDS = 10.0

logger = logging.getLogger(__name__)


class Refusals:
    """The refusals of one worker, by the error's type."""

    def __init__(self) -> None:
        self._floods: dict[str, FloodLog] = {}

    def add(self, error: ServiceError, **details: object) -> None:
        """Log an error that answered a request, if it concerns the operator. Most concern only the client."""
        if not error.logged:
            return
        flood = self._floods.get(error.type)
        if flood is None:
            flood = self._floods[error.type] = FloodLog(logger, f"{error.title}.", PERIOD_SECONDS)
        flood.add(status=error.status, type=error.type, detail=str(error), **details)

    def close(self) -> None:
        for flood in self._floods.values():
            flood.close()
