"""One Redis server: connections that are kept, and one deadline over each round trip.

Not redis-py's pool and timeouts: they cost more CPU than all the rest of a round trip, and its timeouts hold for each
reply, so that a reply that trickles in can take any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from hiredis import pack_command
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from service.cache.breaker import Breaker
from service.cache.loop_clock import LoopClock
from service.cache.observer import Observer, Silent, Trip
from service.cache.scripts import Command, Invocation
from service.cache.wire import Wire
from service.errors import ConfigurationError, StoreUnavailable

CONNECT_SECONDS = PING_SECONDS = 0.1

# Redis takes no writes now, though it answers. Redis 6 puts the code into the middle of the message.
_WRITE_REFUSALS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS")


class Node:
    """Round trips to one server, each in the task of its caller, which must not be a request's.

    It has as many connections as it ever had round trips under way at once: its callers bound them.
    """

    def __init__(
        self, url: str, clock: LoopClock, on_change: Callable[[bool], None], observer: Observer | None = None
    ) -> None:
        self._connect, self._options = _parsed(url)
        self._clock = clock
        self._observer = observer or Silent()
        self._closed = False
        self._idle: list[Wire] = []
        self.breaker = Breaker(self._ping, on_change)

    async def run(self, commands: Sequence[Command], questions: int, seconds: float) -> list[Any]:
        """One reply per command, in order; StoreUnavailable in the place of an error reply. Raises StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("closed")
        if not self.breaker.closed:
            raise StoreUnavailable("the circuit breaker is open")
        replies = await self._round_trip("command", commands, questions, seconds)
        self._judge(replies)
        return [StoreUnavailable(str(reply)) if isinstance(reply, ResponseError) else reply for reply in replies]

    def new_connection(self) -> AbstractConnection:
        """One for the caller to connect, use and disconnect; it counts among no others."""
        return self._connect(**self._options)

    async def close(self) -> None:
        self._closed = True
        self._close_idle()

    async def _ping(self) -> None:
        [reply] = await self._round_trip("ping", [("PING",)], 0, PING_SECONDS)
        if reply != b"PONG":
            raise StoreUnavailable(f"PING was answered with {reply!r}")

    async def _round_trip(self, kind: Trip, commands: Sequence[Command], questions: int, seconds: float) -> list[Any]:
        started, ok = self._clock.now(), False
        try:
            replies = await self._exchange(commands, started + seconds)
            ok = True
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self.breaker.failed()
            raise StoreUnavailable(str(error) or "Redis did not answer in time") from error
        finally:
            self._observer.round_trip(kind, questions, self._clock.now() - started, ok)
        return replies

    async def _exchange(self, commands: Sequence[Command], until: float) -> list[Any]:
        wire = await self._wire(until)
        try:
            replies = await self._clock.wait(wire.send([_packed(command) for command in commands]), until)
            unknown = [i for i, reply in enumerate(replies) if _is_unknown_script(reply)]
            if unknown:
                again = await self._clock.wait(wire.send([_packed(commands[i], whole=True) for i in unknown]), until)
                for i, reply in zip(unknown, again, strict=True):
                    replies[i] = reply
        except BaseException as error:
            # Also when cancelled: replies to this round trip may still come, and must never meet the next one.
            wire.close()
            if isinstance(error, TimeoutError):  # then the others may be as silent, and each would cost a deadline
                self._close_idle()
            raise
        self._idle.append(wire)
        return replies

    def _close_idle(self) -> None:
        for wire in self._idle:
            wire.close()
        self._idle.clear()

    async def _wire(self, until: float) -> Wire:
        while self._idle:
            wire = self._idle.pop()
            if wire.usable:
                return wire
        return await self._clock.wait(asyncio.ensure_future(self._new_wire()), until)

    async def _new_wire(self) -> Wire:
        connection = self.new_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return Wire(connection)

    def _judge(self, replies: Sequence[Any]) -> None:
        errors = [reply for reply in replies if isinstance(reply, ResponseError)]
        if any(map(_refuses_writes, errors)):
            self.breaker.pause_writes()
        if len(errors) < len(replies):
            self.breaker.succeeded()  # what errs is one command's own affair, like a permission that is missing
        elif not all(map(_refuses_writes, errors)):
            self.breaker.failed()


def _refuses_writes(error: ResponseError) -> bool:
    return any(code in str(error) for code in _WRITE_REFUSALS)


def _is_unknown_script(reply: object) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT")


def _packed(command: Command, whole: bool = False) -> bytes:
    if isinstance(command, Invocation):
        command = command.whole() if whole else command.by_hash()
    packed: bytes = pack_command(command)  # type: ignore[arg-type]  # its stub means one-element tuples
    return packed


def _parsed(url: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        # Without the URL, which may hold a password.
        raise ConfigurationError(f"The Redis URL is not valid: {error}.") from None
    connect: type[AbstractConnection] = options.pop("connection_class", Connection)
    # protocol 3 skips the check for connections that the server has closed. The deadline over each round trip takes the
    # place of the socket timeout; it covers connecting, too. No CLIENT SETINFO, a round trip at each connect.
    options |= {
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_SECONDS,
        "driver_info": None,
        "decode_responses": False,
    }
    try:
        connect(**options)  # opens nothing yet
    except TypeError as error:
        raise ConfigurationError(f"The Redis URL has an option that is none: {error}.") from None
    return connect, options
