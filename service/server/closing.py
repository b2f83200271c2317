"""The end of a connection: the answer in place of the application, and time for the client to read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.errors import ServiceError
from service.http.endpoint import NO_STORE, Headers

LINGER_BYTES = 16 * 2**20
LINGER_SECONDS = 2.0


def refusal(error: ServiceError, target: bytes, server_headers: Headers, is_head: bool, identifier: str) -> bytes:
    """The whole answer to a request that the application does not answer, in the form that an endpoint would use."""
    if target.startswith(b"/v2"):
        kind, body = b"application/json", orjson.dumps({"error": str(error)})
    else:
        kind, body = b"application/problem+json", orjson.dumps(error.describe())
    headers = [
        *server_headers,
        (b"content-type", kind),
        NO_STORE,
        *(header for header in error.headers if header[0] != b"connection"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
        (b"x-request-id", identifier.encode()),
    ]
    head = STATUS_LINE[error.status] + b"".join(b"%b: %b\r\n" % header for header in headers) + b"\r\n"
    return head if is_head else head + body


class Lingering(asyncio.Protocol):
    """Takes over a connection after its last answer, and discards input for a while and up to a limit.

    The kernel resets a socket that is closed with unread input, and a client that still sends would lose the answer.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        write_seconds: float,
        connection_lost: Callable[[Exception | None], None],
    ) -> None:
        self._transport = transport
        self._left = LINGER_BYTES
        self._lost = connection_lost
        self._timers = [loop.call_later(LINGER_SECONDS, transport.close)]
        # close() waits until the client has read everything, and a client may never do so.
        self._timers.append(loop.call_later(LINGER_SECONDS + write_seconds, transport.abort))
        if transport.can_write_eof():
            transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers:
            timer.cancel()
        self._lost(exc)
