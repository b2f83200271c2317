"""Headers, as HTTP caching means them, beyond what the scenarios (tests/scenarios/test_d_http.py) count."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import http_sf
import httpx
import pytest

from service.app import create_app
from service.config import load_settings
from service.logs import JsonFormatter
from tests.support.client import Connection, Response, fetch, fetch_json
from tests.support.process import free_port
from tests.support.server import Server, running_server

pytestmark = pytest.mark.anyio

FAR = {"sepal_length": 7.5, "sepal_width": 2.1, "petal_length": 6.1}
"""From what the other tests ask about, in a cell of its own for each petal width."""
OTHERS = "sepal_length=5.1&sepal_width=3.5&petal_length=1.4"
JSON = {"Content-Type": "application/json"}


async def ask(server: Server, width: float, method: str = "GET", **headers: str) -> Response:
    return await fetch(server.address, f"/predict?{OTHERS}&petal_width={width}", method, headers)


async def ask_with_body(server: Server, width: float, method: str, **headers: str) -> Response:
    body = b'{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":%r}' % width
    return await fetch(server.address, "/predict", method, {**JSON, **headers}, body)


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


async def test_while_nobody_can_tell_what_was_purged_there_is_no_tag_and_no_304_by_one(
    server: Server, iris_models: Path, tmp_path: Path
) -> None:
    tag = (await ask(server, 0.1)).headers["etag"]
    with running_server(tmp_path, models_dir=iris_models, redis_url=f"redis://127.0.0.1:{free_port()}") as cut_off:
        for condition in ({}, {"If-None-Match": tag}):
            answer = await ask(cut_off, 0.1, **condition)
            assert (answer.status, "etag" in answer.headers) == (200, False)
        assert (await ask(cut_off, 0.1, **{"If-None-Match": "*"})).status == 304


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
            images = [f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "bmp", "tiff")]
            assert types == ["application/json", *images, "multipart/form-data"]
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


async def test_answers_are_private_and_untimed_where_the_operator_says_so(tmp_path: Path, iris_models: Path) -> None:
    settings = {"cache_control": "private", "server_timing": False, "ttl_seconds": 40}
    with running_server(tmp_path, models_dir=iris_models, **settings) as server:
        for answer in (await ask(server, 0.1), await ask(server, 0.1)):
            visibility, _, max_age = answer.headers["cache-control"].partition(", max-age=")
            assert visibility == "private"
            assert 36 <= int(max_age) <= 40
            assert "server-timing" not in answer.headers


async def test_nobody_has_stored_answers_computed_where_the_operator_ignores_directives(
    tmp_path: Path, iris_models: Path
) -> None:
    with running_server(tmp_path, models_dir=iris_models, client_directives="ignore") as server:
        missing = await ask(server, 0.1, **{"Cache-Control": "only-if-cached, no-cache"})
        tag = (await ask(server, 0.1, **{"Cache-Control": "no-store"})).headers["etag"]
        for directive in ("no-cache", "no-store", "max-age=0", "min-fresh=1000", "only-if-cached"):
            asked = {"Cache-Control": directive}
            row = [5.1, 3.5, 1.4, 0.1]
            tensor = {"name": "input", "shape": [1, 4], "datatype": "FP64", "data": row}
            answers = [
                await ask(server, 0.1, **asked),
                await ask_with_body(server, 0.1, "POST", **asked),
                await ask_with_body(server, 0.1, "QUERY", **asked),
                await ask(server, 0.1, **asked, **{"If-None-Match": tag}),
                await fetch_json(server.address, "/predict_batch", {"inputs": [row]}, asked),
                await fetch_json(server.address, "/v2/models/iris/infer", {"inputs": [tensor]}, asked),
            ]
            assert [(answer.status, answer.hit) for answer in answers] == [
                (304 if index == 3 else 200, True) for index in range(len(answers))
            ]
        assert missing.status == 504
        assert server.metric("predict_computations_total", model="iris") == 1


async def test_an_unexpected_error_stands_in_the_log_with_the_id_that_its_client_was_told(
    iris_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonFormatter())
    app = create_app(load_settings({"PREDICT_MODELS_DIR": str(iris_models)}))

    @app.get("/fails")
    async def fail() -> None:
        raise RuntimeError

    async with app.router.lifespan_context(app) as state:
        transport = httpx.ASGITransport(partial(_with_state, app, state))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for headers in ({}, {"X-Request-ID": "mine"}):
                failed = await client.get("/fails", headers=headers)
                line = json.loads(next(line for line in reversed(caplog.text.splitlines()) if "/fails" in line))
                assert failed.json()["type"] == "internal-error"
                assert line["request_id"] == failed.headers["x-request-id"]
    assert line["request_id"] == "mine"


async def _with_state(app: Any, state: object, scope: dict[str, object], receive: object, send: object) -> None:
    await app({**scope, "state": state}, receive, send)


@pytest.mark.parametrize(
    "target",
    [
        "/models%2Firis",
        "/models%2firis",
        "/models%2Firis/predict",
        "/admin%2Fpurge",
        "/v2%2Fhealth/live",
        "/v2/models%2Firis",
    ],
)
async def test_a_coded_slash_separates_nothing(server: Server, target: str) -> None:
    assert (await fetch(server.address, target)).status == 404
    assert (await fetch(server.address, "/%6Dodels/%69ris")).status == 200, "other codings mean the same"
