"""Limits per client address, and which requests the access log tells of."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from service import rate_limit
from service.errors import TooManyRequests, Unauthorized
from service.http.endpoint import Request
from service.logs import AccessLog
from service.management.admin import check_token
from service.rate_limit import RateLimit


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(limit: RateLimit, client: str = "somebody") -> bool:
    try:
        limit.check(client)
    except TooManyRequests:
        return False
    limit.take(client)
    return True


@given(st.floats(0.01, 100), st.integers(1, 20), st.lists(st.floats(0, 30), min_size=1, max_size=60))
def test_in_no_time_does_a_client_get_more_than_the_burst_and_the_rate(
    rate: float, burst: int, pauses: list[float]
) -> None:
    clock = Clock()
    limit, times = RateLimit(rate, burst, clock), []
    for pause in pauses:
        clock.now += pause
        if admitted(limit):
            times.append(clock.now)
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= burst + rate * (times[last] - start) + 1e-3


def test_who_waits_as_long_as_told_is_admitted_and_nobody_waits_for_others() -> None:
    clock = Clock()
    limit = RateLimit(0.5, 3, clock)
    assert [admitted(limit) for _ in range(4)] == [True, True, True, False]
    assert admitted(limit, "another")
    with pytest.raises(TooManyRequests) as refused:
        limit.check("somebody")
    clock.now += refused.value.retry_after
    assert admitted(limit)


def test_who_guesses_admin_tokens_waits_even_with_the_right_one_and_who_sends_none_does_not_guess() -> None:
    clock, secret = Clock(), SecretStr("right")
    runtime = SimpleNamespace(settings=SimpleNamespace(admin_token=secret), guesses=RateLimit(1 / 6, 10, clock))

    def ask(authorization: bytes | None) -> None:
        headers = {b"authorization": authorization}
        check_token(cast(Request, SimpleNamespace(runtime=runtime, client="somebody", header=headers.get)))

    for sent in [None] * 20 + [b"Bearer wrong"] * 10:
        with pytest.raises(Unauthorized):
            ask(sent)
    with pytest.raises(TooManyRequests):
        ask(b"Bearer right")
    clock.now += 6
    ask(b"Bearer right")


def test_floods_of_addresses_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_CLIENTS", 10)
    limit = RateLimit(1, 1, Clock())
    assert all(admitted(limit, str(number)) for number in range(100))
    assert len(limit._full_at) == 10


@pytest.mark.parametrize(("share", "slow", "logged"), [(0, 0.5, [0.7]), (0.3, 0, [0.2]), (0.3, 0.5, [0.2, 0.7])])
def test_the_access_log_has_a_share_of_the_requests_and_the_slow_ones(
    share: float, slow: float, logged: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    log = AccessLog(share, slow, random=iter([0.9, 0.2, 0.9]).__next__)
    for seconds in (0.1, 0.2, 0.7):
        log.add(seconds, route="/predict")
    assert [vars(record)["seconds"] for record in caplog.records] == logged
    assert all(record.levelno == logging.INFO for record in caplog.records)
