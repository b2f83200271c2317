"""Log lines are JSON objects, one a line, on standard error: whatever a stranger sends, a line stays a line."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


class JsonFormatter(logging.Formatter):
    """``time`` (UTC), ``level``, ``logger``, ``message``, ``pid``, the record's extras, and ``exception`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
            "pid": record.process,
        }
        line |= {name: _clean(value) for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = _clean(self.formatException(record.exc_info))
        # ASCII only: escapes what a terminal obeys (ESC, C1 controls) and what other readers take for a line's end.
        return json.dumps(line, default=str, ensure_ascii=True)


def set_up_logging(level: str) -> None:
    """Send every logger of this process, Python's warnings included, through one JSON handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    # Four lines a worker about starting and stopping; the launcher says what matters in one.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _clean(value: object) -> object:
    """Lone surrogates, which strict JSON readers refuse, become question marks."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
