"""A client that does not read its answers is cut off in time, and one that reads slowly is served."""

from __future__ import annotations

import asyncio
import itertools
import socket

import pytest

from tests.process.fixture import Fixture, anyio_backend, open_fixture  # noqa: F401
from tests.support.process import becomes

pytestmark = pytest.mark.anyio


async def leave_unread(fixture: Fixture) -> socket.socket:
    """A connection whose buffers are full with answers, and one answer beyond."""
    client = socket.create_connection(fixture.address)
    client.setblocking(False)
    question = b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * 60_000)
    for count in itertools.count(1):
        await asyncio.get_running_loop().sock_sendall(client, question)
        await becomes(lambda count=count: fixture.state.total_requests == count)
        if [connection.transport.get_write_buffer_size() for connection in fixture.state.connections] != [0]:
            return client
    raise AssertionError


AND_THEN = {
    "nothing more": b"",
    "many more": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 20_000,
    "a last one": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "one that is refused": b"\x16\r\n\r\n",
    "one whose body is refused": b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n",
}


@pytest.mark.parametrize("more", AND_THEN.values(), ids=AND_THEN.keys())
async def test_a_client_that_never_reads_is_cut_off(more: bytes) -> None:
    async with open_fixture(write_timeout_seconds=0.3, keep_alive_seconds=1) as fixture:
        with await leave_unread(fixture) as client:
            sending = asyncio.create_task(asyncio.get_running_loop().sock_sendall(client, more))
            await becomes(lambda: not fixture.state.connections, within=30)
            await asyncio.gather(sending, return_exceptions=True)


async def test_a_client_that_never_reads_does_not_stop_the_shutdown() -> None:
    async with open_fixture(write_timeout_seconds=0.3) as fixture:
        client = await leave_unread(fixture)
    client.close()


async def test_a_client_that_reads_slowly_is_served() -> None:
    async with open_fixture(write_timeout_seconds=1) as fixture:
        with await leave_unread(fixture) as client:
            loop, received = asyncio.get_running_loop(), b""
            await loop.sock_sendall(client, b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            await asyncio.sleep(0.5)
            while part := await loop.sock_recv(client, 2**18):
                received = received[-100:] + part
                await asyncio.sleep(0.02)
    assert received.endswith(b"/last")
