"""The access log: a line about each answered request, for a share of them or for the slow ones. Off by default."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable

from service.config import Settings

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)  # whatever PREDICT_LOG_LEVEL is: who asks for these lines gets them


class AccessLog:
    """It has no query and no path, only the route: both may hold what a person has measured."""

    def __init__(self, share: float, slow_seconds: float, random: Callable[[], float] = random.random) -> None:
        self._share, self._slow_seconds, self._random = share, slow_seconds or math.inf, random

    def add(self, seconds: float, **details: object) -> None:
        if seconds >= self._slow_seconds or self._random() < self._share:
            logger.info("A request is answered.", extra={"seconds": round(seconds, 6), **details})


def access_log(settings: Settings) -> AccessLog | None:
    """None when it is off."""
    share, slow_seconds = settings.access_log_share, settings.access_log_slow_seconds
    return AccessLog(share, slow_seconds) if share or slow_seconds else None
