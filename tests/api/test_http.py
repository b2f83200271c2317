"""Headers, as HTTP caching means them, beyond what the scenarios (tests/scenarios/test_d_http.py) count."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import http_sf
import httpx
import pytest

from service.app import FIXED, create_app
from service.config import load_settings
from tests.support.client import Connection, Response, fetch, fetch_json
from tests.support.process import resident_bytes
from tests.support.server import Server, running_server

pytestmark = pytest.mark.anyio

FAR = {"sepal_length": 7.5, "sepal_width": 2.1, "petal_length": 6.1}
"""From what the other tests ask about, in a cell of its own for each petal width."""
OTHERS = "sepal_length=5.1&sepal_width=3.5&petal_length=1.4"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, iris_models: Path) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("server"), models_dir=iris_models, lease="never") as server:
        yield server


async def ask(server: Server, width: float, method: str = "GET", **headers: str) -> Response:
    return await fetch(server.address, f"/predict?{OTHERS}&petal_width={width}", method, headers)


async def ask_with_body(server: Server, width: float, method: str, **headers: str) -> Response:
    body = b'{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":%r}' % width
    return await fetch(server.address, "/predict", method, {**JSON, **headers}, body)


def example_input(row: list[float]) -> dict[str, object]:
    return {"name": "input", "shape": [1, 4], "datatype": "FP64", "data": row}


def timing(answer: Response) -> dict[str, float]:
    """The metrics of Server-Timing and their durations, parsed as RFC 9651 says."""
    members = http_sf.parse(answer.headers["server-timing"].encode(), tltype="list")
    return {str(name): float(parameters["dur"]) for name, parameters in members}


async def test_a_computed_answer_says_what_took_its_time_and_a_hit_does_not(server: Server) -> None:
    computed, hit = await ask(server, 0.05), await ask(server, 0.05)
    assert computed.cache["fwd"] == "uri-miss"
    assert timing(computed).keys() == {"cache", "queue", "model"}
    assert 0 < timing(computed)["model"] <= computed.seconds * 1e3
    assert "server-timing" not in hit.headers
    assert "age" not in computed.headers
    assert hit.headers["age"] == "0"


async def test_a_request_id_is_echoed_when_it_is_one_and_made_for_errors(server: Server) -> None:
    for known in ("a", "A.b_c-9", "x" * 64):
        for method in ("POST", "OPTIONS"):
            echoed = await ask_with_body(server, 0.1, method, **{"X-Request-ID": known})
            assert echoed.headers["x-request-id"] == known
    for strange in ("", "x" * 65, "a b", "a,b", "<script>", "é"):
        assert "x-request-id" not in (await ask_with_body(server, 0.1, "POST", **{"X-Request-ID": strange})).headers
        refused = await fetch(server.address, "/predict?x=1", headers={"X-Request-ID": strange})
        assert refused.headers["x-request-id"] not in ("", strange)
    made = {(await fetch(server.address, "/nothing")).headers["x-request-id"] for _ in range(2)}
    assert len(made) == 2


async def test_no_answer_that_a_cache_may_keep_has_a_request_id(server: Server) -> None:
    """A cache would give it to others with the answer."""
    headers = {"X-Request-ID": "mine"}
    async with await Connection.open(server.address) as connection:
        tag = (await connection.get(f"/predict?{OTHERS}&petal_width=0.1")).headers["etag"]
        kept = [await connection.get(f"/predict?{OTHERS}&petal_width=0.1", headers) for _ in range(5)]
    kept += [
        await ask(server, 0.12, **headers),
        await ask(server, 0.1, "HEAD", **headers),
        await ask(server, 0.1, **headers, **{"If-None-Match": tag}),
        await ask(server, 0.1, **headers, **{"If-None-Match": "*"}),
        await ask_with_body(server, 0.1, "QUERY", **headers),
        *[await fetch(server.address, path, headers=headers) for path in ("/docs", "/openapi.json")],
    ]
    for answer in kept:
        assert "x-request-id" not in answer.headers
        assert "no-store" not in answer.headers["cache-control"]
    for path in ("/models", "/livez", "/v2", "/nothing"):
        answer = await fetch(server.address, path, headers=headers)
        assert (answer.headers["x-request-id"], answer.headers["cache-control"]) == ("mine", "no-store")


async def test_nothing_varies_where_nothing_is_negotiated(server: Server) -> None:
    plain = await ask(server, 0.1)
    picky = await ask(server, 0.1, **{"Accept": "text/html", "Accept-Encoding": "gzip", "Accept-Language": "eo"})
    for answer in (plain, picky):
        assert answer.status == 200
        assert not {"vary", "content-encoding"} & answer.headers.keys()
    assert picky.body == plain.body


async def test_a_post_says_how_it_was_answered_and_is_for_no_cache(server: Server) -> None:
    tag = (await ask(server, 0.1)).headers["etag"]
    for condition in (tag, "*"):
        answer = await ask_with_body(server, 0.1, "POST", **{"If-None-Match": condition})
        assert (answer.status, answer.hit) == (200, True)
        assert not {"etag", "age"} & answer.headers.keys()


async def test_a_query_is_revalidated_like_the_get_that_asks_the_same(server: Server) -> None:
    get = await ask(server, 0.15)
    answer = await ask_with_body(server, 0.15, "QUERY")
    assert {name: answer.headers[name] for name in ("etag", "cache-control")} == {
        name: get.headers[name] for name in ("etag", "cache-control")
    }
    assert (await ask_with_body(server, 0.15, "QUERY", **{"If-None-Match": get.headers["etag"]})).status == 304
    assert (await ask_with_body(server, 0.15, "QUERY", **{"If-None-Match": "*"})).status == 304


async def test_a_304_carries_what_the_200_would_have(server: Server) -> None:
    get = await ask(server, 0.2)
    for condition in (get.headers["etag"], "*"):
        unchanged = await ask(server, 0.2, **{"If-None-Match": condition})
        assert unchanged.status == 304
        assert unchanged.headers["etag"] == get.headers["etag"]
        assert unchanged.headers["cache-control"].startswith("public, max-age=")
        assert unchanged.hit
        assert not {"content-length", "content-type"} & unchanged.headers.keys()


async def test_options_and_405_name_methods_and_query_formats(server: Server) -> None:
    for path in ("/predict", "/models/iris/predict"):
        for method, status in (("OPTIONS", 204), ("DELETE", 405)):
            answer = await fetch(server.address, path, method)
            assert answer.status == status
            assert answer.headers["allow"] == "GET, POST, QUERY, HEAD, OPTIONS"
            types = [media_type.strip() for media_type in answer.headers["accept-query"].split(",")]
            assert types == ["application/json", "image/png", "image/jpeg", "image/webp"]
    assert (await fetch(server.address, "/predict_batch", "OPTIONS")).headers["allow"] == "POST, OPTIONS"
    assert (await fetch(server.address, "/livez", "OPTIONS")).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_a_batch_is_a_hit_when_every_row_was_one(server: Server) -> None:
    rows = [{**FAR, "petal_width": width} for width in (0.3, 2.3, 0.3)]
    first = await fetch_json(server.address, "/predict_batch", {"inputs": rows})
    again = await fetch_json(server.address, "/predict_batch", {"inputs": rows})
    with_a_bad_one = await fetch_json(server.address, "/predict_batch", {"inputs": [*rows, {"x": 1}]})
    assert [row["label"] for row in first.json()["results"]] == [row["label"] for row in again.json()["results"]]
    assert first.cache == {"fwd": "partial", "detail": "rows=3 hits=0 computed=2"}
    assert again.cache == {"hit": True, "detail": "rows=3 hits=3 computed=0"}
    assert with_a_bad_one.cache == {"fwd": "partial", "detail": "rows=4 hits=3 computed=0"}


def raw_deflate(body: bytes) -> bytes:
    """Without the two bytes and the checksum of zlib, as some clients understand the name."""
    return zlib.compress(body)[2:-4]


ROW = {**FAR, "petal_width": 1.0}
ASKED = [
    ("POST", "/predict", ROW),
    ("QUERY", "/predict", ROW),
    ("POST", "/models/iris/predict", ROW),
    ("POST", "/predict_batch", {"inputs": [ROW]}),
    ("POST", "/v2/models/iris/infer", {"inputs": [example_input([*FAR.values(), 1.0])]}),
]
EACH_WITH_A_BODY = pytest.mark.parametrize(("method", "path", "document"), ASKED)


@EACH_WITH_A_BODY
async def test_a_body_is_read_in_each_coding_whatever_its_case(
    server: Server, method: str, path: str, document: object
) -> None:
    plain = json.dumps(document).encode()
    coded = {
        "identity": plain, "Identity": plain, "gzip": gzip.compress(plain), "GZip": gzip.compress(plain),
        "x-gzip": gzip.compress(plain), "deflate": zlib.compress(plain), "DEFLATE": raw_deflate(plain),
    }  # fmt: skip
    answers = [await fetch(server.address, path, method, JSON, plain)]
    answers += [
        await fetch(server.address, path, method, {**JSON, "Content-Encoding": coding}, body)
        for coding, body in coded.items()
    ]
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}


@EACH_WITH_A_BODY
@pytest.mark.parametrize("coding", ["br", "gzip, gzip", "*", "é"])
async def test_a_coding_that_is_not_read_is_refused_and_those_that_are_named(
    server: Server, method: str, path: str, document: object, coding: str
) -> None:
    refused = await fetch(server.address, path, method, {**JSON, "Content-Encoding": coding}, b"{}")
    assert (refused.status, refused.headers["accept-encoding"]) == (415, "gzip, deflate")
    assert "accept-encoding" not in (await fetch(server.address, path, method, JSON, b"[]")).headers


@EACH_WITH_A_BODY
async def test_a_body_is_bounded_as_it_is_decoded_too(server: Server, method: str, path: str, document: object) -> None:
    (worker,) = server.workers()
    bomb = {**JSON, "Content-Encoding": "gzip"}, gzip.compress(bytes(40 * 2**20))
    for _ in range(3):
        assert (await fetch(server.address, path, method, *bomb)).status == 413
    memory = resident_bytes(worker)
    for _ in range(10):
        assert (await fetch(server.address, path, method, *bomb)).status == 413
    assert resident_bytes(worker) - memory < 24 * 2**20, "of the 400 MiB that they would inflate to"
    for coding, broken in (("gzip", b"abc"), ("deflate", b"\x78\x9cabc"), ("deflate", b"abc"), ("gzip", b"")):
        refused = await fetch(server.address, path, method, {**JSON, "Content-Encoding": coding}, broken)
        assert refused.status == 400


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", "image/png", None])
async def test_a_batch_that_a_page_of_another_origin_could_send_unasked_is_refused(
    server: Server, media_type: str | None
) -> None:
    """A browser asks before it sends ``application/json`` to another origin, and sends these at once."""
    headers = {} if media_type is None else {"Content-Type": media_type}
    body = json.dumps({"inputs": [ROW]}).encode()
    assert (await fetch(server.address, "/predict_batch", "POST", headers, body)).status == 415
    charset = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert (await fetch(server.address, "/predict_batch", "POST", charset, body)).status == 200


@pytest.mark.parametrize("names", ["zay", "yza", "azy"])
async def test_of_several_members_in_the_wrong_place_the_first_in_the_request_is_named(
    server: Server, names: str
) -> None:
    query = "/predict?" + "&".join(f"{name}=1" for name in names)
    foreign = await fetch_json(server.address, query, {})
    repeated = await fetch_json(server.address, query, dict.fromkeys(sorted(names), 1))
    tensors = [{"name": name, "shape": [1, 1], "datatype": "FP64", "data": [1]} for name in names]
    unknown = await fetch_json(server.address, "/v2/models/iris/infer", {"inputs": tensors})
    missing = await fetch_json(
        server.address, "/v2/models/iris/infer", {"inputs": [tensors[0] | {"name": "sepal_width"}]}
    )
    assert (foreign.json()["parameter"], repeated.json()["parameter"]) == (names[0], names[0])
    assert repr(names[0]) in unknown.json()["error"]
    assert "'sepal_length'" in missing.json()["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [("/predict", b'{"%b":1}'), ("/predict?%b=1", b"{}"), ("/predict_batch", b'{"inputs":[[1]],"%b":1}')],
)
async def test_an_error_repeats_no_more_than_the_beginning_of_a_long_name(
    server: Server, path: str, body: bytes
) -> None:
    name = "k" * 20_000
    path, body = path.replace("%b", name), body.replace(b"%b", name.encode())
    refused = await fetch(server.address, path, "POST", JSON, body)
    assert (refused.status, len(refused.body) < 1000) == (422, True)


async def test_answers_are_private_and_untimed_where_the_operator_says_so(tmp_path: Path, iris_models: Path) -> None:
    settings = {"cache_control": "private", "server_timing": False, "ttl_seconds": 40}
    with running_server(tmp_path, models_dir=iris_models, **settings) as server:
        for answer in (await ask(server, 0.1), await ask(server, 0.1)):
            visibility, _, max_age = answer.headers["cache-control"].partition(", max-age=")
            assert visibility == "private"
            assert 36 <= int(max_age) <= 40
            assert "server-timing" not in answer.headers


@pytest.mark.parametrize("path", ["/predict_batch", "/v2/models/iris/infer"])
async def test_a_body_that_is_small_to_send_and_huge_to_hold_is_refused(server: Server, path: str) -> None:
    bomb = b'{"inputs":[' + b"[]," * 2_000_000 + b"[]]}"
    json = {"Content-Type": "application/json"}
    refused = [await fetch(server.address, path, "POST", json, bomb) for _ in range(3)]
    assert [answer.status for answer in refused] == [400] * 3
    assert min(answer.seconds for answer in refused) < 5 * 0.1


DOCUMENTS = ["/docs", "/openapi.json", "/docs/assets/swagger-ui-bundle.js", "/docs/assets/favicon.png"]


@pytest.mark.parametrize("path", DOCUMENTS)
async def test_a_document_may_be_kept_and_is_revalidated_in_each_coding(server: Server, path: str) -> None:
    plain = await fetch(server.address, path)
    tags = {plain.headers["etag"]}
    for accepted, decompress in (("gzip", gzip.decompress), ("gzip;q=0, deflate;q=0.5", zlib.decompress)):
        picky = {"Accept-Encoding": accepted}
        coded, head = await fetch(server.address, path, headers=picky), await fetch(server.address, path, "HEAD", picky)
        assert coded.headers.keys() == head.headers.keys()
        assert coded.headers["content-length"] == head.headers["content-length"]
        if "content-encoding" in coded.headers:
            assert len(coded.body) < len(plain.body) / 2 or path == "/docs"
            assert decompress(coded.body) == plain.body
        else:
            assert (path, coded.body) == ("/docs/assets/favicon.png", plain.body)
        tags.add(coded.headers["etag"])
        for condition in (coded.headers["etag"], f'"a", W/{coded.headers["etag"]}', "*"):
            unchanged = await fetch(server.address, path, headers={**picky, "If-None-Match": condition})
            assert (unchanged.status, unchanged.body) == (304, b"")
            for name in ("etag", "cache-control", "vary"):
                assert unchanged.headers[name] == coded.headers[name]
        assert (await fetch(server.address, path, headers={**picky, "If-None-Match": '"a"'})).status == 200
        assert (await fetch(server.address, path, headers={**picky, "If-Match": coded.headers["etag"]})).status == 200
        assert (await fetch(server.address, path, headers={**picky, "If-Match": '"a", W/"b"'})).status == 412
    assert plain.headers["vary"] == "accept-encoding"
    assert len(tags) == (1 if path.endswith(".png") else 3), "strong tags differ where the bytes do"
    assert (
        "content-encoding" not in (await fetch(server.address, path, headers={"Accept-Encoding": "br, *;q=0"})).headers
    )


async def test_what_is_no_file_of_the_documentation_is_not_found(server: Server) -> None:
    for name in ("", "nothing.js", "../docs.py", "%2e%2e%2fdocs.py", "swagger-ui.css/"):
        missing = await fetch(server.address, f"/docs/assets/{name}")
        assert (missing.status, missing.headers["content-type"]) == (404, "application/problem+json")


async def test_nobody_has_stored_answers_computed_where_the_operator_ignores_directives(
    tmp_path: Path, iris_models: Path
) -> None:
    with running_server(tmp_path, models_dir=iris_models, client_directives="ignore") as server:
        missing = await ask(server, 0.1, **{"Cache-Control": "only-if-cached, no-cache"})
        tag = (await ask(server, 0.1, **{"Cache-Control": "no-store"})).headers["etag"]
        for directive in ("no-cache", "no-store", "max-age=0", "min-fresh=1000", "only-if-cached"):
            asked = {"Cache-Control": directive}
            row = {"inputs": [[5.1, 3.5, 1.4, 0.1]]}
            tensor = {"inputs": [example_input([5.1, 3.5, 1.4, 0.1])]}
            answers = [
                await ask(server, 0.1, **asked),
                await ask_with_body(server, 0.1, "POST", **asked),
                await ask_with_body(server, 0.1, "QUERY", **asked),
                await ask(server, 0.1, **asked, **{"If-None-Match": tag}),
                await fetch_json(server.address, "/predict_batch", row, asked),
                await fetch_json(server.address, "/v2/models/iris/infer", tensor, asked),
            ]
            assert [(answer.status, answer.hit) for answer in answers] == [
                (304 if index == 3 else 200, True) for index in range(len(answers))
            ]
        assert missing.status == 504
        assert server.metric("predict_computations_total", model="iris") == 1


async def test_an_unexpected_error_stands_in_the_log_with_the_id_that_its_client_was_told(
    iris_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(request: object) -> None:
        raise RuntimeError

    monkeypatch.setitem(FIXED["/livez"].handlers, "GET", fail)
    app = create_app(load_settings({"PREDICT_MODELS_DIR": str(iris_models)}))
    async with app.router.lifespan_context(app) as state:
        transport = httpx.ASGITransport(partial(_with_state, app, state))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for headers in ({}, {"X-Request-ID": "mine"}):
                failed = await client.get("/livez", headers=headers)
                assert failed.headers["x-request-id"] == caplog.records[-1].request_id  # type: ignore[attr-defined]
    assert caplog.records[-1].request_id == "mine"  # type: ignore[attr-defined]


async def _with_state(app: Any, state: object, scope: dict[str, object], receive: object, send: object) -> None:
    await app({**scope, "state": state}, receive, send)


async def test_the_documentation_page_needs_nothing_from_elsewhere(server: Server) -> None:
    page = await fetch(server.address, "/docs")
    needed = re.findall(r'(?:src|href|url)\s*[=:]\s*[\'"]([^\'"]+)', page.body.decode())
    assert {"/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css", "/openapi.json"} <= set(needed)
    assert [(url, (await fetch(server.address, url)).status) for url in needed] == [(url, 200) for url in needed]
