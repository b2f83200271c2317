"""One connection to Redis: commands out, replies in, one round trip at a time.

redis-py opens it, with whatever the URL asks for (TLS, a socket, a password, a database); then this takes it over.
Its streams and parsers would cost a round trip more than Redis's own work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, InvalidResponse, ResponseError


class RedisConnection(asyncio.Protocol):
    """Made of a redis-py connection that is connected, and nobody else's from then on."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection  # its writer would close the transport with it
        self._transport: asyncio.WriteTransport = connection._writer.transport  # type: ignore[union-attr]
        self._transport.set_protocol(self)
        self._parser = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError)
        self._expected = 0
        self._replies: list[Any] = []
        self._done: asyncio.Future[list[Any]] | None = None

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as anybody knows."""
        return not self._transport.is_closing()

    def send(self, commands: Sequence[bytes]) -> asyncio.Future[list[Any]]:
        """One reply per packed command, in order, a ResponseError in the place of an error reply.

        Fails with ConnectionError, or InvalidResponse. Whoever stops waiting must close the wire.
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

    # What the event loop calls.

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
