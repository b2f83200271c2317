"""Listening to other workers: one connection per worker, for purges and for hints to followers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from service.cache.redis.client import RedisClient

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 1.0
RECONNECT_SECONDS = 0.2
DEAF_FAILURES = 3
"""So many failures in a row are logged."""

SILENCE_SECONDS = 2.0
"""After so long without a message the server gets a PING. After twice that time the connection is closed."""


class Subscriber:
    """Hands each message to its channel's handler. Messages may be lost, so whoever waits for one must also poll."""

    def __init__(
        self,
        client: RedisClient,
        handlers: Mapping[str, Callable[[str], None]],
        on_reconnect: Callable[[], None],
    ) -> None:
        self._client = client
        self._handlers = {channel.encode(): handler for channel, handler in handlers.items()}
        self._on_reconnect = on_reconnect
        self._seen_before = False
        self._listening: asyncio.Timeout | None = None
        self._failures = 0

    async def watch(self) -> None:
        """Listen, and connect again whenever the connection is lost. Runs until cancelled."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                self._failures += 1
                if self._failures == DEAF_FAILURES:
                    reason = str(error) or type(error).__name__
                    logger.warning(
                        "No messages from Redis reach this worker (%s): it polls for purges instead.", reason
                    )
            await asyncio.sleep(RECONNECT_SECONDS)

    def reconnect(self) -> None:
        """Listen on a new connection, because the server's name may lead to another server now."""
        if self._listening is not None and not self._listening.expired():
            self._listening.reschedule(0)

    async def _listen(self) -> None:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await self._client.connect()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await _send(connection, "SUBSCRIBE", *self._handlers)
                for _ in self._handlers:
                    await connection.read_response()
            if self._failures >= DEAF_FAILURES:
                logger.info("Messages from Redis reach this worker again.")
            self._failures = 0
            if self._seen_before:
                self._on_reconnect()
            self._seen_before = True
            async with asyncio.timeout(None) as self._listening:
                await self._deliver(connection)
        finally:
            self._listening = None
            await connection.disconnect(nowait=True)

    async def _deliver(self, connection: AbstractConnection) -> None:
        silences = 0
        while silences < 2:
            message = await connection.read_response(timeout=SILENCE_SECONDS)
            if message is None:
                silences += 1
                await _send(connection, "PING")
            else:
                silences = 0
                self._handle(message)

    def _handle(self, message: list[bytes]) -> None:
        if message[0] == b"message":  # anything else is the answer to a PING
            _, channel, text = message
            self._handlers[channel](text.decode(errors="replace"))


async def _send(connection: AbstractConnection, *command: str | bytes) -> None:
    await connection.send_packed_command(pack_command(command), check_health=False)  # type: ignore[arg-type]
