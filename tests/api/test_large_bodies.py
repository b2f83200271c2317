"""Bodies that strangers send: how much of them is held at a time, and how long they stop the event loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.client import Connection, fetch
from tests.support.process import becomes
from tests.support.server import running_server

pytestmark = pytest.mark.anyio

MIB = 2**20
IRIS = b'{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}'


async def test_the_bodies_of_all_requests_are_bounded_together(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, max_bodies_bytes=32 * MIB) as server:
        connections = [await Connection.open(server.address) for _ in range(3)]
        json = {"Content-Type": "application/json"}
        for connection in connections:
            connection.send("POST", "/predict", json | {"Content-Length": str(10 * MIB)}, b" " * (10 * MIB - 1))
        await becomes(lambda: server.metric("predict_request_body_bytes_total") >= 3 * (10 * MIB - 1))
        refused = await fetch(server.address, "/predict_batch", "POST", json, b" " * 3 * MIB)
        assert (refused.status, refused.json()["type"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert (await fetch(server.address, "/predict", "POST", json, IRIS)).status == 200, (
            "there is room for small ones"
        )
        for connection in connections:
            connection.writer.write(b"x")
            assert (await connection.read()).status == 400
            connection.close()
        for _ in range(3):
            assert (await fetch(server.address, "/predict_batch", "POST", json, b" " * 31 * MIB)).status == 400
