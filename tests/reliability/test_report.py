"""The tables of docs/reliability.md say what was found, whether it is flattering or not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reliability import report

TALLY = {"requests": 150, "hot": 75, "hits": 70, "non_200": 0, "wrong": 0, "worst": 0.02, "misses": 0.006}
THEIRS = {"calls": 3, "errors": 1, "worst": 1.25}
FAULT = {**TALLY, "hits_back_seconds": 0.5, "redis_py": THEIRS}


def page(load: float = 0.1, surprises: dict[str, list[str]] | None = None, **figures: Any) -> str:
    content = {"taken": "2026-01-02T03:04:05", "cores": 2, "load_average": load, "surprises": surprises or {}}
    return report.page({**content, "figures": figures}, "a machine")


def kills(failed_elsewhere: int) -> dict[str, Any]:
    counts = {"answered": 100, "failed_in_flight": 4, "failed_elsewhere": failed_elsewhere, "computations": 2}
    each = {**counts, "slowest_seconds": 2.1, "full_strength_seconds": 2.0}
    return {"workers": 3, "connections": 4, "rounds": [each, each]}


@pytest.mark.parametrize("others", [0, 3])
def test_requests_that_had_no_part_in_a_kill_are_told_apart(others: int) -> None:
    assert f"8 in flight, {2 * others} others; 200 answered" in page(kills=kills(others))


def test_every_row_says_how_to_take_it_again() -> None:
    text = page(kills=kills(0), sigterm={"failed": 0, "answered": 9, "exit_code": 0, "seconds": 2.0})
    assert [f"`make figures ONLY={name}`" in text for name in ("kills", "sigterm", "lag")] == [True, True, False]


def test_the_worst_fault_is_named_and_one_beyond_patience_says_so() -> None:
    slow = {**FAULT, "worst": 0.3, "wrong": 2, "redis_py": {**THEIRS, "worst": 10.0}}
    text = page(faults={"none": FAULT, "refused": FAULT, "SIGSTOP": slow})
    assert "300 ms (SIGSTOP)" in text
    assert "≤ 306 ms" in text
    assert "0 and 2 of 300" in text
    assert "> 10 s" in text
    assert "1,250 ms" in text


def test_without_nginx_the_reason_stands_in_its_place() -> None:
    one = {"median_seconds": 0.0005, "worst_seconds": 0.001, "rounds": 16}
    text = page(lag={"same": {**one, "median_seconds": -0.00002}, "other": one, "nginx": "nginx is not installed"})
    assert "not run: nginx is not installed" in text
    assert "median −20 µs, worst of 16 1 ms" in text


@pytest.mark.parametrize(("load", "busy"), [(0.3, False), (6.0, True)])
def test_a_machine_shared_with_others_is_called_so(load: float, busy: bool) -> None:
    assert ("The machine was shared" in page(load)) is busy


def test_surprises_are_counted_on_the_page() -> None:
    assert "2 during `faults`" in page(surprises={"faults": ["exit code 1", "a traceback"], "lag": []})
    assert "Unexpected" not in page(surprises={"lag": []})
