"""Batches: the same answers as row by row, however the rows come and whichever way they take."""

from __future__ import annotations

import csv
import io
import json
import random
import struct
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.cache.keys import cache_key, cache_keys
from service.errors import ServiceError
from service.http.multipart import read_files
from tests.support.client import Connection, Response
from tests.support.server import ADMIN_TOKEN, Server, running_server

pytestmark = pytest.mark.anyio

NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
NUMBERS: list[Any] = [-0.0, 0, 7, 5e-324]
ODD: list[Any] = [*NUMBERS, True, "1", None, -1e300, 2**53 + 1, 10**30, 3e38, 3.5e38, []]


@pytest.fixture(scope="module")
def server(iris_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("batches"), models_dir=iris_models, max_batch_rows=3000) as server:
        yield server


async def post(connection: Connection, path: str, body: bytes, **headers: str) -> Response:
    fields = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return await connection.request("POST", path, fields, body)


def rows_of(chance: random.Random, count: int, odd: list[Any]) -> list[Any]:
    """Arrays or objects; where they are ``odd``, some with something that is no number or no valid one."""
    values = [[round(chance.uniform(0, 8), chance.choice([0, 1, 9])) for _ in NAMES] for _ in range(count)]
    for row in chance.sample(values, count // 4 if odd else 0):
        row[chance.randrange(4)] = chance.choice(odd)
        if odd is ODD and chance.random() < 0.2:
            row.append(1)
    as_objects = chance.random() < 0.5
    return [
        dict(zip(NAMES, row, strict=False)) if as_objects or (odd is ODD and chance.random() < 0.1) else row
        for row in values
    ]


@pytest.mark.parametrize("odd", [[], NUMBERS, ODD], ids=["usual", "numbers", "odd"])
async def test_a_batch_has_each_rows_own_answer(server: Server, odd: list[Any]) -> None:
    chance = random.Random(len(odd))
    async with await Connection.open(server.address) as connection:
        for _ in range(6):
            rows = rows_of(chance, 40, odd)
            rows += chance.sample(rows, 5)
            for _ in range(2):  # computed, and from L1
                batch = await post(connection, "/predict_batch", json.dumps({"inputs": rows, "top_k": 2}).encode())
                assert batch.status == 200
                alone = []
                for row in rows:
                    asked = {**(row if isinstance(row, dict) else {"input": row}), "top_k": 2}
                    answer = (await post(connection, "/models/iris/predict", json.dumps(asked).encode())).body
                    alone.append(answer if b'"status"' not in answer else b'{"error":%b}' % answer)
                assert batch.body == b'{"results":[%b]}' % b",".join(alone)
            assert odd is ODD or batch.hit


async def test_equal_rows_are_computed_and_counted_once(server: Server) -> None:
    def counts() -> list[float]:
        results = [server.metric("predict_cache_results_total", result=result) for result in ("computed", "l1")]
        return [server.metric("predict_computations_total"), *results]

    async with await Connection.open(server.address) as connection:
        purged = await post(connection, "/admin/purge", b'{"model": "iris"}', authorization=f"Bearer {ADMIN_TOKEN}")
        assert purged.status == 200
        rows = [[4.4, 2.2, 6.6, 0.2]] * 3 + [[7.7, 2.1, 1.1, 2.3]]
        for detail, grown in (("hits=0 computed=2", [2, 2, 0]), ("hits=4 computed=0", [0, 0, 2])):
            before = counts()
            answer = await post(connection, "/predict_batch", json.dumps({"inputs": rows}).encode())
            assert answer.cache["detail"] == f"rows=4 {detail}"
            assert [now - then for now, then in zip(counts(), before, strict=True)] == grown


async def test_tensors_of_many_rows_say_what_batches_say(server: Server) -> None:
    chance = random.Random(2)
    rows = [[chance.uniform(0, 8) for _ in NAMES] for _ in range(300)]
    tensor = {"name": "input", "shape": [300, 4], "datatype": "FP64"}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": 9600}}]}).encode()
    async with await Connection.open(server.address) as connection:
        batch = json.loads((await post(connection, "/predict_batch", json.dumps({"inputs": rows}).encode())).body)
        for _ in range(2):
            body = json.dumps({"inputs": [tensor | {"data": rows}]}).encode()
            in_json = json.loads((await post(connection, "/v2/models/iris/infer", body)).body)
            packed = head + struct.pack("<1200d", *np.ravel(rows))
            length = {"inference_header_content_length": str(len(head))}
            binary = json.loads((await post(connection, "/v2/models/iris/infer", packed, **length)).body)
            assert binary == in_json
            probabilities, labels, predictions = (output["data"] for output in in_json["outputs"])
            assert labels == [result["label"] for result in batch["results"]]
            assert predictions == [result["prediction"] for result in batch["results"]]
            for result, row in zip(batch["results"], np.reshape(probabilities, (-1, 3)).tolist(), strict=True):
                assert sorted(result["probabilities"].values()) == sorted(row)


async def test_a_csv_is_a_batch_with_its_columns_in_any_order(server: Server) -> None:
    text = "petal_width,sepal_width,sepal_length,petal_length\r\n0.2,3.5,5.1,1.4\r\n2.3,3.0,6.7,5.2\r\n,3,6,5\r\n"
    async with await Connection.open(server.address) as connection:
        told = await post(connection, "/predict_batch?top_k=2", text.encode(), content_type="text/csv")
        rows = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
        known = json.loads(
            (await post(connection, "/predict_batch", json.dumps({"inputs": rows, "top_k": 2}).encode())).body
        )
        assert json.loads(told.body)["results"][:2] == known["results"]
        assert json.loads(told.body)["results"][2]["error"]["parameter"] == "petal_width"
        answer = await post(connection, "/predict_batch", text.encode(), content_type="text/csv", accept="text/csv")
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        lines = list(csv.DictReader(io.StringIO(answer.body.decode())))
        assert [line["label"] for line in lines] == ["setosa", "virginica", ""]
        assert float(lines[0]["probability: setosa"]) == 1.0
        assert "petal_width" in lines[2]["error"]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("", 422),
        ("sepal_length\n", 422),
        ("x\n1\n", 422),
        ("sepal_length,sepal_length\n1,2\n", 422),
        ("sepal_length\n1,2\n", 400),
        ('sepal_length\n"1', 400),
        ("sepal_length\n\xff", 400),
    ],
)
async def test_a_csv_that_is_none_is_refused(server: Server, text: str, status: int) -> None:
    async with await Connection.open(server.address) as connection:
        body = text.encode("latin-1")
        assert (await post(connection, "/predict_batch", body, content_type="text/csv")).status == status


async def test_a_batch_may_have_as_many_rows_as_the_setting_says(server: Server) -> None:
    """More than the queue has places for, too: they are computed a part at a time."""
    chance = random.Random(3)
    rows = [
        [chance.uniform(4, 8), chance.uniform(2, 4.5), chance.uniform(1, 7), chance.uniform(0.1, 2.5)]
        for _ in range(3000)
    ]
    async with await Connection.open(server.address) as connection:
        for _ in range(2):
            answer = await post(connection, "/predict_batch", json.dumps({"inputs": rows}).encode())
            assert not any("error" in result for result in answer.json()["results"])
        assert answer.hit
        refused = await post(connection, "/predict_batch", json.dumps({"inputs": [*rows, rows[0]]}).encode())
        assert (refused.status, "at most 3000 rows" in refused.json()["detail"]) == (422, True)


@pytest.mark.parametrize(("most", "count", "error"), [(20_000, 20_000, ""), (3, 4, "1 to 3 files"), (3, 200, "many")])
def test_a_form_may_have_as_many_files_as_the_setting_says(most: int, count: int, error: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n1\r\n'
    with pytest.raises(ServiceError, match=error) if error else nullcontext():
        assert read_files(part * count + b"--x--", b"multipart/form-data; boundary=x", most) == ({}, [b"1"] * count)


def test_many_keys_are_the_keys_of_each() -> None:
    chance = random.Random(4)
    for size in (8, 32, 33, 200):
        fingerprint, generation = chance.randbytes(32), chance.randbytes(8)
        identities = [chance.randbytes(size) for _ in range(50)]
        keys = cache_keys("a", fingerprint, generation, b"c", b"".join(identities), size)
        assert keys == [cache_key("a", fingerprint, generation, b"c" + identity) for identity in identities]
