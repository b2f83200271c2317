"""A server of the protocol alone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from service.config import Settings
from service.logs import Refusals
from service.metrics import Metrics
from service.server.connection import protocol_class
from tests.support.client import Address, Connection, Response
from tests.support.process import becomes

PLENTY = 60.0


class Fixture:
    """A small application behind the protocol, and what it saw.

    ``/gate…`` answers when the gate opens, ``/count`` with the length of the body, ``/refuse`` with 413 after at most
    one read, ``/raise`` raises, anything else is echoed.
    """

    def __init__(self, settings: Settings) -> None:
        self.gate = asyncio.Event()
        self.runtime = SimpleNamespace(draining=False, metrics=Metrics(), refusals=Refusals())
        self.paths: list[str] = []
        self.headers: dict[bytes, bytes] = {}
        self.cancelled: list[str] = []
        self.largest_message = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self.listener.getsockname()
        config = uvicorn.Config(
            self, http=protocol_class(settings), ws="none", lifespan="off", log_config=None, server_header=False
        )
        self.server = uvicorn.Server(config)

    @property
    def state(self) -> Any:
        return self.server.server_state

    async def connect(self) -> Connection:
        return await Connection.open(self.address)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        self.paths.append(path)
        self.headers = dict(scope["headers"])
        if path == "/raise":
            raise RuntimeError("on purpose")
        status, body = 200, path.encode()
        try:
            if path.startswith("/gate"):
                await self.gate.wait()
            elif path == "/count":
                body = str(await self._count(receive)).encode()
            elif path == "/refuse":
                status, _ = 413, scope["query_string"] == b"read" and await receive()
        except asyncio.CancelledError:
            self.cancelled.append(path)
            raise
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _count(self, receive: Any) -> int:
        count, more = 0, True
        while more:
            message = await receive()
            self.largest_message = max(self.largest_message, len(message.get("body", b"")))
            count += len(message.get("body", b""))
            more = message.get("more_body", False)
        return count


@contextlib.asynccontextmanager
async def open_fixture(**settings: Any) -> AsyncIterator[Fixture]:
    """A served fixture; afterwards every task of a request has ended."""
    fixture = Fixture(Settings(**settings))
    server = fixture.server
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    server.lifespan.state["runtime"] = fixture.runtime
    await server.startup(sockets=[fixture.listener])
    await server.on_tick(0)  # the date; uvicorn's own loop and shutdown would wait for 0.2 s
    try:
        yield fixture
    finally:
        fixture.gate.set()
        fixture.listener.close()
        for listening in server.servers:
            listening.close()
        for connection in list(fixture.state.connections):
            connection.shutdown()
        await becomes(lambda: not fixture.state.connections and not fixture.state.tasks)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Production's event loop."""
    return "asyncio", {"use_uvloop": True}


async def exchange(connection: Connection, request: bytes) -> Response:
    connection.writer.write(request)
    async with asyncio.timeout(PLENTY):
        return await connection.read()


def assert_problem(response: Response, status: int, kind: str) -> None:
    assert response.status == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["connection"] == "close"
    assert "date" in response.headers
    document = response.json()
    assert (document["status"], document["type"]) == (status, kind)
    assert document["title"] and document["detail"]
