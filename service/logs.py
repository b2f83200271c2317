"""The log: one JSON object a line, on standard error. Whatever a client sends, a record stays one line."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import random
import sys
from collections.abc import Callable
from contextvars import Context, ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from service.errors import ServiceError

_access = logging.getLogger("service.access_log")
_access.setLevel(logging.INFO)  # whatever PREDICT_LOG_LEVEL is: who asks for these lines gets them

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


@dataclass(slots=True)
class RequestId:
    """A request's id: the client's, or else a new one, made when it is first read. Few are ever read."""

    given: bytes | None = None

    @property
    def text(self) -> str:
        if self.given is None:
            self.given = uuid4().hex.encode()
        return self.given.decode("ascii")


current_request: ContextVar[RequestId | None] = ContextVar("current_request", default=None)
"""The request that this task answers, or that started this flight."""


def named_request() -> RequestId:
    """The current request's id. A task without one gets one."""
    name = current_request.get() or RequestId()
    current_request.set(name)
    return name


class JsonFormatter(logging.Formatter):
    """``time`` (UTC), ``level``, ``logger``, ``message``, ``pid``, the record's extras, and where there is one,
    ``request_id`` and ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
            "pid": record.process,
        }
        if (request_id := current_request.get()) is not None:
            line["request_id"] = request_id.text
        line |= {name: _clean(value) for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = _clean(self.formatException(record.exc_info))
        # ASCII only, which escapes a terminal's control characters and what other readers take for the end of a line.
        return json.dumps(line, default=str, ensure_ascii=True)


class OncePerPlace(logging.Filter):
    """A warning once for each line of code that gives it. Python does so too, but whenever a library changes the
    filters it forgets what it has shown. Then a model that warns of its inputs would write a line for each question."""

    def __init__(self) -> None:
        super().__init__()
        self._places: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        place = ":".join(record.getMessage().split(":", 2)[:2])  # file and line
        is_new = place not in self._places
        self._places.add(place)
        return is_new


def set_up_logging(level: str) -> None:
    """Send every logger of this process, Python's warnings included, through one JSON handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").addFilter(OncePerPlace())
    # uvicorn writes four lines about each start and stop of a worker; ours is one.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _clean(value: object) -> object:
    """Lone surrogates, which strict JSON readers refuse, become question marks."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


class FloodLog:
    """Few lines about events that may come in floods: one when a flood begins, one in each period, and one at its end.

    Each line has the ``count`` of events and the details of the latest one. Use it on the event loop.
    """

    def __init__(
        self,
        logger: logging.Logger,
        message: str,
        seconds: float,
        call_later: Callable[[float, Callable[[], None]], asyncio.TimerHandle] | None = None,
    ) -> None:
        self._logger, self._message, self._seconds = logger, message, seconds
        self._call_later = call_later or _call_later
        self._timer: asyncio.TimerHandle | None = None
        self._details: dict[str, object] = {}
        self._count = self._total = 0

    def add(self, **details: object) -> None:
        self._count += 1
        self._details = details
        if self._timer is None:
            self._tell()

    def close(self) -> None:
        """Write the line that is still due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._write()

    def _tell(self) -> None:
        if self._write():
            self._timer = self._call_later(self._seconds, self._tell)
            return
        self._timer = None
        if self._total > 1:
            extra = {"count": self._total}
            self._logger.warning("For %g s no more of this: %s", self._seconds, self._message, extra=extra)
        self._total = 0

    def _write(self) -> bool:
        if not self._count:
            return False
        self._logger.warning(self._message, extra={**self._details, "count": self._count})
        self._total += self._count
        self._count = 0
        return True


def _call_later(seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
    """Call it in an empty context: a later line is not about the request that began the flood."""
    return asyncio.get_running_loop().call_later(seconds, callback, context=Context())


class Refusals:
    """Log lines about the requests of one worker that are refused or late, by the error's type."""

    PERIOD_SECONDS = 10.0

    def __init__(self) -> None:
        self._floods: dict[str, FloodLog] = {}

    def add(self, error: ServiceError, **details: object) -> None:
        """Log an error that answered a request, if it concerns the operator. Most concern only the client."""
        if not error.logged:
            return
        flood = self._floods.get(error.type)
        if flood is None:
            logger = logging.getLogger("service.refusals")
            flood = self._floods[error.type] = FloodLog(logger, f"{error.title}.", self.PERIOD_SECONDS)
        flood.add(status=error.status, type=error.type, detail=str(error), **details)

    def close(self) -> None:
        for flood in self._floods.values():
            flood.close()


class AccessLog:
    """A line about each answered request, for a share of them and for the slow ones.

    It has no query and no path, only the route: both may hold what a person has measured.
    """

    def __init__(self, share: float, slow_seconds: float, random: Callable[[], float] = random.random) -> None:
        self._share, self._slow_seconds, self._random = share, slow_seconds or math.inf, random

    def add(self, seconds: float, **details: object) -> None:
        if seconds >= self._slow_seconds or self._random() < self._share:
            _access.info("A request is answered.", extra={"seconds": round(seconds, 6), **details})
