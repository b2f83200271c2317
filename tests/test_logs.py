"""Floods do not flood the log: few lines, and their counts lose nothing."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from service.logs import FloodLog

MESSAGE, PERIOD = "It rains.", 10.0


class Timers:
    """One timer, which a test lets ring."""

    def __init__(self) -> None:
        self.ring: Callable[[], None] | None = None

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Any:
        assert (seconds, self.ring) == (PERIOD, None)
        self.ring = callback
        return self

    def cancel(self) -> None:
        self.ring = None

    def pass_period(self) -> None:
        ring, self.ring = self.ring, None
        assert ring is not None
        ring()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def flood(timers: Timers, caplog: pytest.LogCaptureFixture) -> FloodLog:
    return FloodLog(logging.getLogger("test"), MESSAGE, PERIOD, timers.call_later)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    return [(record.getMessage(), vars(record)["count"]) for record in caplog.records]


OVER = f"For 10 s no more of this: {MESSAGE}"


def test_a_flood_is_a_line_when_it_begins_one_a_period_and_one_when_it_is_over(
    flood: FloodLog, timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    for drops in (1000, 500):
        for drop in range(drops):
            flood.add(drop=drop)
        timers.pass_period()
    timers.pass_period()
    assert told(caplog) == [(MESSAGE, 1), (MESSAGE, 999), (MESSAGE, 500), (OVER, 1500)]
    assert [vars(record).get("drop") for record in caplog.records] == [0, 999, 499, None]
    flood.add(drop=1)
    assert told(caplog)[-1] == (MESSAGE, 1)


def test_one_drop_is_one_line(flood: FloodLog, timers: Timers, caplog: pytest.LogCaptureFixture) -> None:
    flood.add()
    timers.pass_period()
    assert (told(caplog), timers.ring) == ([(MESSAGE, 1)], None)


def test_what_was_not_told_yet_is_told_at_the_end(
    flood: FloodLog, timers: Timers, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        flood.add()
    flood.close()
    flood.close()
    assert (told(caplog), timers.ring) == ([(MESSAGE, 1), (MESSAGE, 4)], None)


def test_a_warning_is_told_once_for_each_line_that_gives_it_even_when_filters_change() -> None:
    program = """
import warnings
from service.logs import set_up_logging
set_up_logging("info")
for number in range(5):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"overflow in row {number}")
        warnings.warn("another")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert "overflow in row 0" in told[0]
    assert "another" in told[1]
