"""One connection to Redis: commands out, replies in, one round trip at a time.

redis-py opens the connection as the URL says (TLS, a socket, a password, a database). Then this class takes it over,
because redis-py's streams and parsers cost more than Redis's own work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, InvalidResponse, ResponseError


class RedisConnection(asyncio.Protocol):
    """Takes over a connected redis-py connection, which nobody else may use from then on."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection  # kept, because its writer would close the transport when it is deleted
        self._transport: asyncio.WriteTransport = connection._writer.transport  # type: ignore[union-attr]
        self._transport.set_protocol(self)
        self._parser = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError)
        self._expected = 0
        self._replies: list[Any] = []
        self._done: asyncio.Future[list[Any]] | None = None

    @property
    def usable(self) -> bool:
        """Whether the connection is open, as far as this process knows."""
        return not self._transport.is_closing()

    def send(self, commands: Sequence[bytes]) -> asyncio.Future[list[Any]]:
        """One reply per packed command, in order. An error reply is a ResponseError.

        Fails with ConnectionError or InvalidResponse. A caller that stops waiting must close the connection.
        """
        self._done = done = asyncio.get_running_loop().create_future()
        self._expected, self._replies = len(commands), []
        if self.usable:
            self._transport.write(b"".join(commands))
        else:
            self._fail(ConnectionError("the connection is closed"))
        return done

    def close(self) -> None:
        self._done = None
        self._transport.abort()

    # The event loop calls these.

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while (reply := self._parser.gets()) is not False:
                self._replies.append(reply)
        except InvalidResponse as error:
            self._fail(error)
        if self._done is None or len(self._replies) > self._expected:
            self._fail(InvalidResponse("a reply that nobody asked for"))
        elif len(self._replies) == self._expected:
            done, self._done = self._done, None
            if not done.done():
                done.set_result(self._replies)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(ConnectionError(str(error or "the server has closed the connection")))

    def _fail(self, error: Exception) -> None:
        done, self._done = self._done, None
        self._transport.abort()
        if done is not None and not done.done():
            done.set_exception(error)
