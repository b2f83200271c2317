"""Limits for each client address, and the access log: off by default, here on. Each test has addresses of its own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.scenarios.conftest import Fresh, Start
from tests.support.client import Connection, Response
from tests.support.probe import target
from tests.support.process import PATIENCE, becomes
from tests.support.server import Server

pytestmark = pytest.mark.anyio

MOST_CONNECTIONS = 2


@pytest.fixture(scope="module")
def server(start: Start) -> Iterator[Server]:
    """One prediction for each address, since a hundred seconds do not pass here."""
    limits = {"client_connections": MOST_CONNECTIONS, "client_requests_per_second": 0.01}
    with start(**limits, access_log_share=1) as server:
        yield server


async def connect(server: Server, client: str) -> Connection:
    return Connection(*await asyncio.open_connection(*server.address, local_addr=(client, 0)))


async def fetch(server: Server, client: str, path: str) -> Response:
    async with await connect(server, client) as connection:
        return await connection.get(path)


async def test_an_address_that_asks_too_often_is_told_to_wait_and_others_are_not(server: Server, fresh: Fresh) -> None:
    assert (await fetch(server, "127.0.1.1", target(fresh()))).status == 200
    refused = await fetch(server, "127.0.1.1", target(fresh()))
    assert (refused.status, refused.json()["type"]) == (429, "too-many-requests")
    assert 90 <= int(refused.headers["retry-after"]) <= 100
    assert (await fetch(server, "127.0.1.2", target(fresh()))).status == 200
    for _ in range(3):
        assert (await fetch(server, "127.0.1.1", "/readyz")).status == 200, "probes are not limited"


async def test_an_address_has_so_many_connections_and_one_more_when_it_closes_one(server: Server) -> None:
    client = "127.0.2.1"
    held = [await connect(server, client) for _ in range(MOST_CONNECTIONS)]
    for connection in held:
        assert (await connection.get("/livez")).status == 200
    surplus = await connect(server, client)
    refused = await surplus.read()
    assert (refused.status, int(refused.headers["retry-after"])) == (429, 1)
    assert await surplus.is_closed(within=PATIENCE)
    assert (await fetch(server, "127.0.2.2", "/livez")).status == 200
    surplus.close()
    held.pop().close()
    await becomes(lambda: server.metric("predict_requests_total", route="unknown", status="429") >= 1)
    async with asyncio.timeout(PATIENCE):
        while (await fetch(server, client, "/livez")).status != 200:
            pass
    held.pop().close()


async def test_the_access_log_has_a_line_for_each_request_hits_too_and_no_input(server: Server, fresh: Fresh) -> None:
    asked = target(fresh())
    for number in range(4):
        assert (await fetch(server, f"127.0.3.{number}", asked)).status == 200
    await fetch(server, "127.0.3.9", "/nothing?secret")

    def lines() -> list[dict[str, object]]:
        found = map(json.loads, server.process.errors().rpartition("\n")[0].splitlines())
        return [line for line in found if str(line.get("client")).startswith("127.0.3.") and "seconds" in line]

    await becomes(lambda: len(lines()) == 5)
    *answered, last = lines()
    assert [str(line["cache"]).split(";")[1] for line in answered] == [" fwd=uri-miss", " hit", " hit", " hit"]
    for line in answered:
        assert (line["method"], line["route"], line["status"]) == ("GET", "/models/{name}/predict", 200)
        assert line["request_id"]
    assert (last["status"], last["route"]) == (404, "unknown")
    assert "secret" not in server.process.errors() and asked.partition("?")[2] not in server.process.errors()
