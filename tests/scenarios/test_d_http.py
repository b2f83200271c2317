"""D: HTTP caching as HTTP means it: directives, conditionals, Cache-Status, problems, HEAD and QUERY."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from tests.scenarios.conftest import Fresh, Start
from tests.support.client import Connection, Response, caught_up, fetch, fetch_json
from tests.support.probe import RAISE, WAIT, Book, expected, inputs, target
from tests.support.process import PATIENCE, becomes
from tests.support.redis_server import RedisServer
from tests.support.server import Server, close_all

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(start: Start, redis_server: RedisServer) -> Iterator[Server]:
    with start(redis_url=redis_server.url) as server:
        yield server


async def ask(server: Server, x: float, cache_control: str | None = None, **headers: str) -> Response:
    if cache_control is not None:
        headers["Cache-Control"] = cache_control
    return await fetch(server.address, target(x), headers=headers)


async def warm(server: Server, redis_server: RedisServer, x: float) -> Response:
    """Computed and stored."""
    before = redis_server.entries()
    answer = await ask(server, x)
    await becomes(lambda: redis_server.entries() - before)
    return answer


ANEW = [
    "no-cache",
    "NO-CACHE",
    "max-age=0, no-cache",
    "min-fresh=1000",
    "max-age=100, min-fresh=301",
    "min-fresh",
    "a, no-cache",
]


async def test_who_asks_for_a_fresh_answer_has_it_computed_and_kept(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D1"""
    asked = {fresh(): directive for directive in ANEW}
    for x in asked:
        await warm(server, redis_server, x)
    await asyncio.sleep(1.6)  # a second, and what Redis may have been late by
    for x, directive in asked.items():
        assert (await ask(server, x)).age >= 1
        answer = await ask(server, x, directive)
        assert (answer.hit, answer.cache["fwd"], answer.cache["stored"]) == (False, "request", True), directive
        assert book.count(x) == 2, directive
        after = await ask(server, x)
        assert (after.hit, after.age, book.count(x)) == (True, 0, 2), directive


async def test_max_age_has_what_is_older_computed_anew(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D1"""
    directives = ["max-age=3", "max-age=100, max-age=3", 'max-age="3"', "Max-Age=3, unknown=2"]
    asked = {fresh(): directive for directive in directives}
    for x, directive in asked.items():
        await warm(server, redis_server, x)
        assert (await ask(server, x, directive)).hit, directive
    await asyncio.sleep(4.05)
    for x, directive in asked.items():
        assert not (await ask(server, x, directive)).hit, directive
        assert book.count(x) == 2, directive


@pytest.mark.parametrize(
    "directive", ["max-age=100", "min-fresh=10", "", "foo", "no-transform, foo=bar", "max-stale=5"]
)
async def test_directives_that_are_satisfied_or_unknown_leave_a_hit_a_hit(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh, directive: str
) -> None:
    """D1"""
    x = fresh()
    await warm(server, redis_server, x)
    assert (await ask(server, x, directive)).hit
    assert book.count(x) == 1


async def test_no_store_neither_reads_nor_writes(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D1"""
    x, known = fresh(), fresh()
    await warm(server, redis_server, known)
    assert not (await ask(server, known, "no-store")).hit
    before = redis_server.entries()
    answer = await ask(server, x, "no-store")
    assert (answer.status, answer.hit, "stored" in answer.cache) == (200, False, False)
    assert redis_server.entries() == before
    assert not (await ask(server, x)).hit
    assert (book.count(known), book.count(x)) == (2, 2)


async def test_only_if_cached_never_computes(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D1"""
    x = fresh()
    missing = await ask(server, x, "only-if-cached")
    assert (missing.status, missing.headers["cache-control"], book.count(x)) == (504, "no-store", 0)
    await warm(server, redis_server, x)
    assert (await ask(server, x, "only-if-cached")).hit
    assert book.count(x) == 1


async def test_who_asks_for_a_fresh_answer_shares_only_with_those_who_do(
    server: Server, book: Book, fresh: Fresh
) -> None:
    """D1"""
    x = fresh()
    plain = asyncio.ensure_future(fetch(server.address, target(x, WAIT)))
    await becomes(lambda: book.count(x))
    connections = [await Connection.open(server.address) for _ in range(5)]
    for connection in connections:
        connection.send("GET", target(x, WAIT), {"Cache-Control": "no-cache"})
    await caught_up(server.address)
    book.open_gate(x)
    anew = [await connection.read() for connection in connections]
    close_all(connections)
    assert not (await plain).hit
    assert not any(answer.hit for answer in anew)
    assert book.count(x) == 2


MILLISECOND = 0.001
"""What Redis counts a lifetime in."""


async def test_age_rises_in_real_time(server: Server, redis_server: RedisServer, fresh: Fresh) -> None:
    """D2"""
    x = fresh()
    before = time.monotonic()
    assert "age" not in (await warm(server, redis_server, x)).headers
    after = time.monotonic()
    assert (await ask(server, x)).hit
    read = time.monotonic() - after  # for so long it may seem older than it is
    for _ in range(20):
        asked = time.monotonic()
        answer = await ask(server, x)
        assert int(asked - after - MILLISECOND) <= int(answer.headers["age"]) <= int(time.monotonic() - before + read)
        assert answer.age + answer.cache["ttl"] in (answer.max_age - 1, answer.max_age)
        await asyncio.sleep(0.11)


def is_not_modified(answer: Response, tag: str) -> bool:
    return (answer.status, answer.body, answer.headers["etag"], "content-length" in answer.headers) == (
        304,
        b"",
        tag,
        False,
    )


async def test_a_matching_tag_is_not_modified_without_redis_and_without_a_computation(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D3"""
    x = fresh()
    tag = (await ask(server, x, "no-store")).headers["etag"]
    assert tag.startswith('W/"')
    redis_server.freeze()
    try:
        async with await Connection.open(server.address) as connection:
            for given in (tag, tag.removeprefix("W/"), f'"a", {tag}', f'W/"b,c" , "d",{tag}'):
                assert is_not_modified(await connection.get(target(x), {"If-None-Match": given}), tag)
    finally:
        redis_server.thaw()
    assert book.count(x) == 1


async def test_a_tag_that_does_not_match_is_answered_in_full(server: Server, fresh: Fresh) -> None:
    """D3"""
    x = fresh()
    tag = (await ask(server, x)).headers["etag"]
    for given in ('"a"', 'W/"a", "b"', tag[:-2] + '"', tag.strip('W/"'), ""):
        answer = await ask(server, x, None, **{"If-None-Match": given})
        assert (answer.status, answer.json()["probabilities"]) == (200, expected(x))
    other = await fetch(server.address, target(x) + "&top_k=1", headers={"If-None-Match": tag})
    assert (other.status, other.headers["etag"] != tag) == (200, True), "another rendering has another tag"


async def test_a_tag_that_matches_what_no_cache_has_computed_anew_is_not_modified(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D3"""
    x = fresh()
    tag = (await ask(server, x)).headers["etag"]
    await becomes(lambda: redis_server.entries())
    for count, condition in enumerate((tag, f'"a", {tag}', "*"), 2):
        answer = await ask(server, x, "no-cache", **{"If-None-Match": condition})
        assert is_not_modified(answer, tag)
        assert (answer.cache["fwd"], answer.cache["stored"], book.count(x)) == ("request", True, count)
    other = await ask(server, x, "no-cache", **{"If-None-Match": '"a"'})
    assert (other.status, book.count(x)) == (200, 5)
    unknown = fresh()
    assert (await ask(server, unknown, "no-cache", **{"If-None-Match": "*"})).status == 200


async def by_query(server: Server, x: float, **headers: str) -> Response:
    body = b'{"x": %r, "act": 0, "seconds": 0}' % x
    return await fetch(server.address, "/models/probe/predict", "QUERY", JSON_BODY | headers, body)


async def test_a_weak_tag_fails_if_match_and_any_needs_a_stored_answer(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D3; RFC 9110, 13.1.1: the comparison is strong, and a weak tag strongly matches nothing."""
    x = fresh()
    refused = [await ask(server, x, None, **{"If-Match": "*"}), await by_query(server, x, **{"If-Match": "*"})]
    tag = (await warm(server, redis_server, x)).headers["etag"]
    for given in (tag, tag.removeprefix("W/"), f'"a", {tag}', "a", ""):
        refused.append(await ask(server, x, None, **{"If-Match": given, "If-None-Match": tag}))
        refused.append(await ask(server, x, "no-cache", **{"If-Match": given}))
        refused.append(await fetch(server.address, target(x), "HEAD", {"If-Match": given}))
        refused.append(await by_query(server, x, **{"If-Match": given}))
    assert {answer.status for answer in refused} == {412}
    is_problem(refused[0], 412)
    assert book.count(x) == 1
    assert (await ask(server, x, None, **{"If-Match": "*"})).hit
    assert is_not_modified(await ask(server, x, None, **{"If-Match": "*", "If-None-Match": tag}), tag)
    assert (await fetch(server.address, "/predict?nothing=1", headers={"If-Match": tag})).status == 422


async def test_a_resource_without_a_tag_fails_if_match_for_any_but_any(server: Server) -> None:
    """D3"""
    for path in ("/models", "/models/probe", "/livez", "/v2", "/v2/models/probe"):
        for method in ("GET", "HEAD"):
            assert (await fetch(server.address, path, method, {"If-Match": '"a"'})).status == 412
            assert (await fetch(server.address, path, method, {"If-Match": "*"})).status == 200
    assert (await fetch(server.address, "/models/nobody", headers={"If-Match": '"a"'})).status == 404


async def test_any_tag_is_decided_by_a_look_up(
    server: Server, redis_server: RedisServer, book: Book, fresh: Fresh
) -> None:
    """D3"""
    x = fresh()
    first = await ask(server, x, None, **{"If-None-Match": "*"})
    assert (first.status, book.count(x)) == (200, 1)
    await becomes(lambda: redis_server.entries())
    again = await ask(server, x, None, **{"If-None-Match": "*"})
    assert is_not_modified(again, first.headers["etag"])
    assert book.count(x) == 1


VOLATILE = {"age", "cache-status", "server-timing", "date"}


@pytest.mark.parametrize("methods", [("GET", "HEAD"), ("HEAD", "GET")], ids=" then ".join)
async def test_head_is_get_without_the_body_and_each_warms_the_other(
    server: Server, book: Book, fresh: Fresh, methods: tuple[str, str]
) -> None:
    """D4"""
    x = fresh()
    async with await Connection.open(server.address) as connection:
        answers = [await connection.request(method, target(x)) for method in methods]
        alive = await connection.get("/livez")
    assert [answer.hit for answer in answers] == [False, True]
    assert book.count(x) == 1
    assert alive.status == 200, "no body was left over on the connection"
    first, second = ({k: v for k, v in a.headers.items() if k not in VOLATILE} for a in answers)
    assert first.keys() == second.keys()
    for name in first.keys() - {"cache-control"}:
        assert first[name] == second[name]
    body = answers[methods.index("GET")].body
    assert int(answers[methods.index("HEAD")].headers["content-length"]) == len(body)


async def together(server: Server, book: Book, x: float, times: int) -> list[Response]:
    """The answers to one question that was asked again and again while it was computed."""
    connections = [await Connection.open(server.address) for _ in range(times)]
    for connection in connections:
        connection.send("GET", target(x, WAIT))
    await caught_up(server.address)
    book.open_gate(x)
    answers = [await connection.read() for connection in connections]
    close_all(connections)
    return answers


async def test_every_cache_status_is_either_a_hit_or_forwarded(server: Server, book: Book, fresh: Fresh) -> None:
    """D5: ``Response.cache`` parses it as RFC 9651 says."""
    x, y = fresh(), fresh()
    batch = {"model": "probe", "inputs": [inputs(x), inputs(y)]}
    answers = [
        await ask(server, x),
        await ask(server, x),
        await ask(server, x, "no-cache"),
        await ask(server, x, "no-store"),
        await ask(server, x, "only-if-cached"),
        await fetch(server.address, target(x), "HEAD"),
        await fetch_json(server.address, "/models/probe/predict", inputs(x)),
        await fetch_json(server.address, "/models/probe/predict", inputs(y)),
        await fetch_json(server.address, "/predict_batch", batch),
        *await together(server, book, fresh(), 3),
    ]
    answers.append(await ask(server, x, None, **{"If-None-Match": answers[0].headers["etag"]}))
    for answer in answers:
        assert (answer.cache.get("hit") is True) != ("fwd" in answer.cache), answer.headers["cache-status"]
        assert answer.cache.get("fwd", "miss") in ("bypass", "miss", "uri-miss", "request", "partial")
        assert set(answer.cache) <= {"hit", "fwd", "ttl", "stored", "collapsed", "detail"}
    assert any("collapsed" in answer.cache for answer in answers)


def as_json(body: bytes) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "application/json"}, body


JSON_BODY = {"Content-Type": "application/json"}
PROBLEMS = [
    (404, "GET", "/nothing/here", {}, None),
    (404, "GET", "/models/nobody", {}, None),
    (404, "GET", "/models/nobody/predict?x=1", {}, None),
    (404, "GET", "/predict?model=nobody&x=1", {}, None),
    (404, "GET", "/predict/", {}, None),
    (405, "DELETE", "/predict", {}, None),
    (405, "POST", "/livez", {}, b""),
    (405, "PATCH", "/predict", {}, b""),
    (422, "GET", "/models/probe/predict?x=nan&act=0&seconds=0", {}, None),
    (400, "POST", "/models/probe/predict", JSON_BODY, b"{"),
    (415, "POST", "/models/probe/predict", {"Content-Type": "text/plain"}, b"x=1"),
    (415, "POST", "/models/probe/predict", {}, b"{}"),
    (413, "POST", "/models/probe/predict", {**JSON_BODY, "Content-Length": str(11 * 2**20)}, b""),
    (414, "GET", "/predict?x=" + "1" * 70_000, {}, None),
    (431, "GET", "/livez", {"X-Long": "a" * 40_000}, None),
    (500, "GET", target(0.5, RAISE), {}, None),
    (401, "POST", "/admin/purge", {"Authorization": "Bearer wrong"}, b"{}"),
    (504, "GET", target(0.75), {"Cache-Control": "only-if-cached"}, None),
]


@pytest.mark.parametrize(
    ("status", "method", "path", "headers", "body"), PROBLEMS, ids=[f"{p[0]} {p[1]} {p[2][:30]}" for p in PROBLEMS]
)
async def test_every_error_is_a_problem_that_nobody_stores(
    server: Server, status: int, method: str, path: str, headers: dict[str, str], body: bytes | None
) -> None:
    """D6"""
    is_problem(await fetch(server.address, path, method, headers, body), status)


def is_problem(answer: Response, status: int) -> None:
    assert answer.status == status, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers
    document = answer.json()
    assert (document["status"], type(document["title"]), type(document["type"])) == (status, str, str)


NOT_HTTP = [
    b"hello\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a\r\nContent-Length: abc\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: a\r\nBad Header: 1\r\n\r\n",
    b"POST /predict HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("raw", NOT_HTTP, ids=lambda raw: repr(raw.split(b"\r\n", 2)[-1][:30]))
async def test_what_the_parser_refuses_is_a_problem_too_and_ends_the_connection(server: Server, raw: bytes) -> None:
    """D6"""
    async with await Connection.open(server.address) as connection:
        connection.writer.write(raw)
        answer = await connection.read()
        is_problem(answer, 400)
        assert answer.headers["connection"] == "close"
        assert await connection.is_closed(within=PATIENCE)


async def test_every_error_names_the_request_it_belongs_to(server: Server) -> None:
    """D6"""
    answers = [await fetch(server.address, path, method, headers, body) for _, method, path, headers, body in PROBLEMS]
    for raw in NOT_HTTP:
        async with await Connection.open(server.address) as connection:
            connection.writer.write(raw)
            answers.append(await connection.read())
    assert [answer.status for answer in answers if not answer.headers.get("x-request-id")] == []


async def test_a_method_that_is_not_allowed_names_those_that_are(server: Server) -> None:
    """D6"""
    for path in ("/predict", "/models/probe/predict", "/predict_batch", "/livez"):
        refused = await fetch(server.address, path, "DELETE")
        options = await fetch(server.address, path, "OPTIONS")
        assert refused.headers["allow"] == options.headers["allow"]
        assert "OPTIONS" in options.headers["allow"]
        assert options.status in (200, 204)


async def test_query_is_post_and_cached(server: Server, book: Book, fresh: Fresh) -> None:
    """D7"""
    x = fresh()

    async def ask_by(method: str, **headers: str) -> Response:
        given, body = as_json(b'{"x": %r, "act": 0, "seconds": 0}' % x)
        return await fetch(server.address, "/models/probe/predict", method, given | headers, body)

    first, second, post = await ask_by("QUERY"), await ask_by("QUERY"), await ask_by("POST")
    get = await ask(server, x)
    assert [answer.hit for answer in (first, second, post, get)] == [False, True, True, True]
    assert len({answer.body for answer in (first, second, post, get)}) == 1
    assert first.headers["etag"] == get.headers["etag"]
    assert "etag" not in post.headers
    assert (await ask_by("QUERY", **{"If-None-Match": first.headers["etag"]})).status == 304
    assert (await ask_by("POST", **{"If-None-Match": first.headers["etag"]})).status == 200
    assert "application/json" in (await fetch(server.address, "/predict", "OPTIONS")).headers["accept-query"]
    assert book.count(x) == 1
