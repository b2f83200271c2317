"""The Open Inference Protocol, asked of a real server."""

from __future__ import annotations

import asyncio
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.client import fetch
from tests.support.probe import RAISE, Book, Probe, answer, inputs, register
from tests.support.process import SLACK, resident_bytes
from tests.support.server import Server, running_server

INFER = "/v2/models/probe/infer"
FEATURES = ("x", "act", "seconds")
_numbers = count(1)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Book:
    return Book(tmp_path_factory.mktemp("probe"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, book: Book) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("served")
    register(Probe(book.directory), directory / "models", "probe")
    with running_server(directory, models_dir=directory / "models") as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, headers={"Accept-Encoding": "identity"}) as client:
        yield client


def fresh() -> float:
    """A question that has not been asked; a whole number, so that every datatype can hold it."""
    return float(next(_numbers))


def table(*xs: float, datatype: str = "FP64", **members: Any) -> dict[str, Any]:
    """A request with one row per number."""
    data = [number for x in xs for number in ((x, 0.0, 0.0) if "FP" in datatype else (int(x), 0, 0))]
    return {"inputs": [{"name": "input", "shape": [len(xs), 3], "datatype": datatype, "data": data}], **members}


def infer(client: httpx.Client, document: Any, path: str = INFER, **headers: str) -> httpx.Response:
    """As Triton's client sends it: without a Content-Type."""
    return client.post(path, content=json.dumps(document).encode(), headers=headers)


def output(response: httpx.Response, name: str) -> Any:
    assert response.status_code == 200, response.text
    (found,) = [item for item in response.json()["outputs"] if item["name"] == name]
    return found


def is_error(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    assert isinstance(response.json()["error"], str)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"


def test_the_server_says_that_it_lives_and_what_it_can(client: httpx.Client) -> None:
    assert client.get("/v2/health/live").json() == {"live": True, "ready": True}
    assert client.get("/v2/health/ready").json() == {"live": True, "ready": True}
    assert client.get("/v2/models/probe/ready").json() == {"name": "probe", "ready": True}
    for path in ("/v2", "/v2/"):
        assert "binary_tensor_data" in client.get(path).json()["extensions"]


def test_a_models_metadata_is_enough_to_ask_it(client: httpx.Client) -> None:
    metadata = client.get("/v2/models/probe").json()
    (tensor,) = metadata["inputs"]
    assert (tensor["datatype"], tensor["shape"]) == ("FP64", [-1, 3])
    asked = tensor | {"shape": [1, 3], "data": [fresh(), 0, 0]}
    outputs = [{"name": item["name"]} for item in metadata["outputs"]]
    answered = infer(client, {"inputs": [asked], "outputs": outputs}).json()
    for found, described in zip(answered["outputs"], metadata["outputs"], strict=True):
        assert found["name"] == described["name"]
        assert found["datatype"] == described["datatype"]
        assert found["shape"] == [1, *described["shape"][1:]]


def test_the_configuration_leaves_the_batch_out(client: httpx.Client) -> None:
    config = client.get("/v2/models/probe/config").json()
    assert config["max_batch_size"] == 10_000
    assert config["input"] == [{"name": "input", "data_type": "TYPE_FP64", "dims": [3], "optional": False}]
    assert [tensor["data_type"] for tensor in config["output"]] == ["TYPE_FP64", "TYPE_STRING", "TYPE_STRING"]


def test_versions_are_the_models_own_and_1(client: httpx.Client) -> None:
    (version,) = client.get("/v2/models/probe").json()["versions"]
    for known in (version, "1"):
        base = f"/v2/models/probe/versions/{known}"
        for path in (base, f"{base}/ready", f"{base}/config", f"{base}/stats"):
            assert client.get(path).status_code == 200
        assert infer(client, table(fresh()), f"{base}/infer").json()["model_version"] == version
    for unknown in ("2", "0", "01", version[:-1], version.upper() + "0", "latest"):
        is_error(client.get(f"/v2/models/probe/versions/{unknown}"), 404)
        is_error(infer(client, table(1), f"/v2/models/probe/versions/{unknown}/infer"), 404)


def test_an_answer_is_that_of_predict_in_every_output(client: httpx.Client) -> None:
    xs = [fresh(), fresh()]
    answered = infer(client, table(*xs))
    predicted = [client.get("/models/probe/predict", params=inputs(x)).json() for x in xs]
    probabilities = output(answered, "probabilities")
    assert (probabilities["datatype"], probabilities["shape"]) == ("FP64", [2, 3])
    assert probabilities["data"] == [value for x in xs for value in answer(x)]
    assert output(answered, "label")["data"] == [row["label"] for row in predicted]
    assert output(answered, "prediction")["data"] == [row["prediction"] for row in predicted]


def test_each_row_is_a_question_of_its_own(client: httpx.Client, book: Book) -> None:
    known, new = fresh(), fresh()
    client.get("/models/probe/predict", params=inputs(known))
    first = infer(client, table(known, new, new, known))
    assert first.headers["cache-status"] == 'predict; fwd=partial; detail="rows=4 hits=2 computed=1"'
    second = infer(client, table(new, known))
    assert second.headers["cache-status"] == 'predict; hit; detail="rows=2 hits=2 computed=0"'
    assert client.get("/models/probe/predict", params=inputs(new)).headers["cache-status"].startswith("predict; hit")
    assert book.count(known, new) == 2
    assert output(first, "probabilities")["data"] == [v for x in (known, new, new, known) for v in answer(x)]


def test_every_datatype_and_form_of_a_number_is_the_same_question(client: httpx.Client, book: Book) -> None:
    x = fresh()
    requests = [table(x, datatype=f"{kind}{bits}") for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)]
    requests += [table(x, datatype=f"FP{bits}") for bits in (16, 32, 64)]
    named = {name: [value] for name, value in inputs(x).items()}
    for shape in ([1], [1, 1]):
        tensors = [{"name": n, "shape": shape, "datatype": "FP64", "data": d} for n, d in named.items()]
        requests += [{"inputs": tensors}, {"inputs": tensors[::-1]}]
    nested = table(x)
    nested["inputs"][0]["data"] = [[x, 0, 0]]
    for request in (*requests, nested):
        assert output(infer(client, request), "probabilities")["data"] == list(answer(x))
    assert book.count(x) == 1


def test_the_id_is_echoed_and_is_no_part_of_the_question(client: httpx.Client, book: Book) -> None:
    x = fresh()
    assert [infer(client, table(x, id=name)).json()["id"] for name in ("a", "", "ü")] == ["a", "", "ü"]
    assert "id" not in infer(client, table(x)).json()
    assert book.count(x) == 1


def test_request_directives_are_those_of_predict(client: httpx.Client, book: Book) -> None:
    x = fresh()
    is_error(infer(client, table(x), **{"Cache-Control": "only-if-cached"}), 504)
    infer(client, table(x))
    infer(client, table(x), **{"Cache-Control": "no-cache"})
    assert book.count(x) == 2


def test_outputs_come_as_they_are_asked_for_in_json_and_in_binary(client: httpx.Client) -> None:
    x = fresh()
    wanted = [
        {"name": "label", "parameters": {"binary_data": True}},
        {"name": "prediction"},
        {"name": "probabilities", "parameters": {"binary_data": True}},
    ]
    response = infer(client, table(x, outputs=wanted))
    length = int(response.headers["inference-header-content-length"])
    outputs = json.loads(response.content[:length])["outputs"]
    rest = response.content[length:]
    assert [item["name"] for item in outputs] == ["label", "prediction", "probabilities"]
    sizes = [item["parameters"]["binary_data_size"] for item in (outputs[0], outputs[2])]
    assert sum(sizes) == len(rest)
    assert "data" not in outputs[0]
    assert "parameters" not in outputs[1]
    (text_size,) = struct.unpack("<I", rest[:4])
    assert rest[4 : 4 + text_size].decode() == outputs[1]["data"][0]
    assert np.frombuffer(rest[sizes[0] :], "<f8").tolist() == list(answer(x))


def test_a_classification_names_the_most_probable_classes(client: httpx.Client) -> None:
    x = fresh()
    wanted = [{"name": "probabilities", "parameters": {"classification": 2}}]
    found = output(infer(client, table(x, outputs=wanted)), "probabilities")
    ordered = sorted(((p, i, c) for i, (p, c) in enumerate(zip(answer(x), Probe.classes_, strict=True))), reverse=True)
    assert (found["datatype"], found["shape"]) == ("BYTES", [1, 2])
    assert found["data"] == [f"{p:f}:{i}:{c}" for p, i, c in ordered[:2]]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(client: httpx.Client, book: Book, coding: str) -> None:
    x = fresh()
    compress = gzip.compress if coding == "gzip" else zlib.compress
    decompress = gzip.decompress if coding == "gzip" else zlib.decompress
    document = table(x, parameters={"binary_data_output": True})
    tensor = document["inputs"][0]
    blob = np.array(tensor.pop("data")).tobytes()
    tensor["parameters"] = {"binary_data_size": len(blob)}
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    plain = client.post(INFER, content=head + blob, headers=headers)
    headers |= {"Content-Encoding": coding, "Accept-Encoding": coding}
    with client.stream("POST", INFER, content=compress(head + blob), headers=headers) as response:
        raw = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == coding
    assert response.headers["vary"].lower() == "accept-encoding"
    assert "content-encoding" not in plain.headers
    assert decompress(raw) == plain.content
    assert response.headers["inference-header-content-length"] == plain.headers["inference-header-content-length"]
    assert book.count(x) == 1


def test_a_body_is_limited_as_it_is_sent_and_as_it_is_decoded(server: Server, client: httpx.Client) -> None:
    (worker,) = server.workers()
    bomb = gzip.compress(bytes(40 * 2**20))
    for _ in range(3):
        is_error(client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"}), 413)
    memory = resident_bytes(worker)
    for _ in range(10):
        is_error(client.post(INFER, content=bomb, headers={"Content-Encoding": "gzip"}), 413)
    assert resident_bytes(worker) - memory < 24 * 2**20, "of the 400 MiB that they would inflate to"
    announced = asyncio.run(fetch(server.address, INFER, "POST", {"Content-Length": str(33 * 2**20)}, b""))
    assert (announced.status, list(announced.json())) == (413, ["error"])
    is_error(client.post(INFER, content=b"abc", headers={"Content-Encoding": "br"}), 415)
    is_error(client.post(INFER, content=b"abc", headers={"Content-Encoding": "gzip"}), 400)


ROW = {"name": "input", "shape": [1, 3], "datatype": "FP64", "data": [1, 0, 0]}
COLUMN = {"name": "x", "shape": [1, 1], "datatype": "FP64", "data": [1]}
BAD: dict[str, Any] = {
    "nothing": {},
    "no object": [],
    "too few columns": {"inputs": [ROW | {"shape": [1, 2], "data": [1, 0]}]},
    "no batch dimension": {"inputs": [ROW | {"shape": [3]}]},
    "too many dimensions": {"inputs": [ROW | {"shape": [1, 3, 1]}]},
    "too many rows": {"inputs": [ROW | {"shape": [10_001, 3], "data": [0] * 30_003}]},
    "huge shape": {"inputs": [ROW | {"shape": [2**62, 2**62], "data": []}]},
    "huge shape in binary": {"inputs": [ROW | {"shape": [2, 2**62], "parameters": {"binary_data_size": 0}}]},
    "strings": {"inputs": [ROW | {"datatype": "BYTES", "data": ["1", "0", "0"]}]},
    "one feature of three": {"inputs": [COLUMN]},
    "an unknown feature": {"inputs": [COLUMN | {"name": name} for name in (*FEATURES, "y")]},
    "features of different lengths": {
        "inputs": [COLUMN | {"name": n, "shape": [i, 1], "data": [0] * i} for i, n in enumerate(FEATURES, 1)]
    },
    "beyond the model's numbers": {"inputs": [ROW | {"datatype": "FP32", "data": [1e39, 0, 0]}]},
    "unknown output": {"inputs": [ROW], "outputs": [{"name": "logits"}]},
    "output twice": {"inputs": [ROW], "outputs": [{"name": "label"}, {"name": "label"}]},
    "classified label": {"inputs": [ROW], "outputs": [{"name": "label", "parameters": {"classification": 1}}]},
}


@pytest.mark.parametrize("document", BAD.values(), ids=BAD)
def test_bad_tensors_are_refused_at_once_and_reach_no_model(client: httpx.Client, book: Book, document: Any) -> None:
    before = book.count()
    responses = [infer(client, document) for _ in range(3)]
    for response in responses:
        is_error(response, 400)
    assert min(response.elapsed.total_seconds() for response in responses) < 0.1 * SLACK
    assert book.count() == before


def test_a_row_that_fails_fails_the_request_and_says_so(client: httpx.Client, book: Book) -> None:
    x = fresh()
    failing = table(x)
    failing["inputs"][0]["data"][1] = RAISE
    is_error(infer(client, failing), 500)


def test_what_is_unknown_or_unsupported_has_the_protocols_error_too(client: httpx.Client) -> None:
    is_error(infer(client, table(1), "/v2/models/nobody/infer"), 404)
    is_error(client.get("/v2/models/nobody"), 404)
    is_error(client.get("/v2/nothing/here"), 404)
    is_error(client.get("/v2/models"), 404)
    is_error(client.post("/v2/repository/models/probe/load", content=b"{}"), 501)
    is_error(client.get("/v2/systemsharedmemory/status"), 501)
    is_error(client.get("/v2/trace/setting"), 501)
    shared = [ROW | {"parameters": {"shared_memory_region": "a"}}]
    is_error(infer(client, {"inputs": shared}), 501)
    refused = client.get(INFER)
    is_error(refused, 405)
    assert refused.headers["allow"] == "POST, OPTIONS"


def test_the_index_lists_what_is_served(client: httpx.Client) -> None:
    (version,) = client.get("/v2/models/probe").json()["versions"]
    expected = [{"name": "probe", "version": version, "state": "READY", "reason": ""}]
    for body in (b"", b"{}", b'{"ready": true}'):
        assert client.post("/v2/repository/index", content=body).json() == expected
    assert client.post("/v2/repository/index", content=b'{"ready": null}').json() == expected
    is_error(client.post("/v2/repository/index", content=b'{"ready": 1}'), 400)


def test_statistics_tell_hits_from_misses_and_count_failures(client: httpx.Client) -> None:
    def stats() -> dict[str, Any]:
        (found,) = client.get("/v2/models/probe/stats").json()["model_stats"]
        assert client.get("/v2/models/stats").json()["model_stats"][0]["name"] == "probe"
        return dict(found)

    before = stats()
    x, y, failing = fresh(), fresh(), table(fresh())
    failing["inputs"][0]["data"][1] = RAISE
    for document in (table(x, y), table(x), table(y, x), failing):
        infer(client, document)
    after = stats()
    grown = {
        name: after["inference_stats"][name]["count"] - before["inference_stats"][name]["count"]
        for name in ("success", "fail", "cache_hit", "cache_miss")
    }
    assert grown == {"success": 5, "fail": 1, "cache_hit": 3, "cache_miss": 2}
    for name in ("cache_hit", "cache_miss", "compute_infer", "queue"):
        assert after["inference_stats"][name]["ns"] > before["inference_stats"][name]["ns"]
    assert after["execution_count"] > before["execution_count"]
    assert after["last_inference"] > before["last_inference"]


def test_a_draining_server_is_alive_but_not_ready(tmp_path: Path, iris_models: Path) -> None:
    with (
        running_server(tmp_path, models_dir=iris_models, drain_seconds=3) as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        assert client.get("/v2/health/ready").status_code == 200
        server.process.terminate()
        while (response := client.get("/v2/health/ready")).status_code == 200:
            pass
        is_error(response, 503)
        is_error(client.get("/v2/models/iris/ready"), 503)
        assert client.get("/v2/health/live").status_code == 200
        assert server.process.wait(60) == 0
