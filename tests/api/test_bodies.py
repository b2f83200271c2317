"""What a request's body may be: in which media type and content coding, how large, and what of it an error names."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from tests.support.client import fetch, fetch_json
from tests.support.process import resident_bytes
from tests.support.server import Server

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}


def raw_deflate(body: bytes) -> bytes:
    """Without the two bytes and the checksum of zlib, as some clients understand the name."""
    return zlib.compress(body)[2:-4]


ROW = {"sepal_length": 7.5, "sepal_width": 2.1, "petal_length": 6.1, "petal_width": 1.0}
TENSOR = {"name": "input", "shape": [1, 4], "datatype": "FP64", "data": list(ROW.values())}
ASKED = [
    ("POST", "/predict", ROW),
    ("QUERY", "/predict", ROW),
    ("POST", "/models/iris/predict", ROW),
    ("POST", "/predict_batch", {"inputs": [ROW]}),
    ("POST", "/v2/models/iris/infer", {"inputs": [TENSOR]}),
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


@pytest.mark.parametrize("path", ["/predict_batch", "/v2/models/iris/infer"])
async def test_a_body_that_is_small_to_send_and_huge_to_hold_is_refused(server: Server, path: str) -> None:
    bomb = b'{"inputs":[' + b"[]," * 2_000_000 + b"[]]}"
    json = {"Content-Type": "application/json"}
    refused = [await fetch(server.address, path, "POST", json, bomb) for _ in range(3)]
    assert [answer.status for answer in refused] == [400] * 3
    assert min(answer.seconds for answer in refused) < 5 * 0.1
