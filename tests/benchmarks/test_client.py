"""The client tells what was answered, and how often it asked."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.client import Connection, Reply, burst, closed_loop, get, one_by_one, post
from tests.benchmarks.stand_in import Answer, answering


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        ("predict; hit; ttl=287; detail=L1", "L1"),
        ("predict; hit; ttl=287; detail=L2", "L2"),
        ("predict; fwd=uri-miss; stored; ttl=300", "computed"),
        ("predict; fwd=uri-miss; collapsed; ttl=300", "collapsed"),
        ("predict; fwd=bypass; detail=L2-DOWN", "computed"),
    ],
)
def test_the_outcome_is_what_cache_status_says(status: str, outcome: str) -> None:
    assert Reply(200, f"HTTP/1.1 200 OK\r\ncache-status: {status}\r\nAge: 3".encode(), b"", 0.0).outcome == outcome


def test_a_reply_is_read_to_its_last_byte() -> None:
    body = bytes(range(256)) * 4000
    with answering(lambda target, _: (418, {"X-Target": target}, body)) as address, Connection(address) as connection:
        for target in ("/a", "/b"):
            reply = connection.ask(get(target))
            assert (reply.status, reply.header("x-target"), reply.body) == (418, target, body)


def test_a_post_sends_its_body() -> None:
    with answering(lambda _, body: (200, {}, body)) as address, Connection(address) as connection:
        assert connection.ask(post("/predict", b"\x89PNG", "image/png")).body == b"\x89PNG"


def test_every_request_is_asked_once_and_in_order_on_one_connection() -> None:
    seen: list[str] = []
    with answering(_noting(seen)) as address:
        assert len(list(one_by_one(address, [get(f"/{number}") for number in range(20)]))) == 20
    assert seen == [f"/{number}" for number in range(20)]


def test_the_closed_loop_asks_every_request_once() -> None:
    seen: list[str] = []
    replies: list[Reply] = []
    with answering(_noting(seen)) as address:
        closed_loop(address, (get(f"/{number}") for number in range(100)), 8, 30, replies.append)
    assert sorted(seen) == sorted(f"/{number}" for number in range(100))
    assert len(replies) == 100


def test_the_closed_loop_ends_when_its_time_is_over() -> None:
    with answering(lambda *_: (200, {}, b"x")) as address:
        assert 0.1 <= closed_loop(address, itertools.repeat(get("/")), 4, 0.1, lambda _: None) < 5


def test_a_burst_is_answered_in_full() -> None:
    seen: list[str] = []
    with answering(_noting(seen)) as address:
        replies, _ = burst(address, get("/same"), 50)
    assert [reply.status for reply in replies] == [200] * 50
    assert seen == ["/same"] * 50


def _noting(seen: list[str]):  # type: ignore[no-untyped-def]
    def answer(target: str, _: bytes) -> Answer:
        seen.append(target)
        return 200, {}, b"{}"

    return answer
