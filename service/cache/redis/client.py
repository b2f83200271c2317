"""One Redis server: a few open connections, and one deadline over each round trip.

redis-py opens a connection as the URL says (TLS, a socket, a password, a database). Its streams, parsers, pool and
timeouts are not used. They cost more CPU than the rest of a round trip, and a timeout for each reply lets a trickling
reply take any time.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, InvalidResponse, RedisError, ResponseError

from service.cache.redis.auto_pipeline import StallTolerantClock
from service.cache.redis.breaker import Breaker, State
from service.cache.redis.scripts import READ, Command, Invocation, Script
from service.errors import ConfigurationError, StoreRefused, StoreUnavailable

CONNECT_SECONDS = PING_SECONDS = 0.1

# Redis answers, but refuses to write. Redis 6 puts the code into the middle of the message.
_WRITE_REFUSALS = ("OOM", "READONLY", "MISCONF", "NOREPLICAS")

MAX_REASON = 200  # characters of an error message that are logged

NO_CLUSTER = "PREDICT_REDIS_URL names a node of a Redis Cluster, and a Redis in cluster mode is not supported."


Trip = Literal["command", "ping"]


class Observer(Protocol):
    """Who counts what Redis does. Both methods are called on the event loop."""

    def round_trip(self, kind: Trip, seconds: float, ok: bool) -> None:
        """One round trip has ended."""

    def corrupt(self) -> None:
        """A value was not what this service wrote there. It was taken for a miss."""


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


class RedisClient:
    """Round trips to one server. Each runs in its caller's task, which must not be a request's.

    There are as many connections as there ever were round trips at once; the callers bound these. ``on_move``: another
    server may take the writes from now on, so other connections to it must be opened again.
    """

    def __init__(
        self,
        url: str,
        clock: StallTolerantClock,
        on_change: Callable[[State, str], None],
        observer: Observer,
        on_move: Callable[[], None],
        probe_key: str,
    ) -> None:
        self._connect, self._options = _parsed(url)
        self._clock = clock
        self._observer = observer
        self._on_move = on_move
        # Also a read, a write that changes nothing as its key does not exist, and what only a Redis Cluster accepts.
        write: Command = ("SET", probe_key, "", "XX", "PX", 1)
        self._probe: tuple[Command, ...] = (("PING",), Invocation(READ, [probe_key]), write, ("READWRITE",))
        self._demoted = self._closed = False
        self._sent: set[Script] = set()
        self._idle: list[RedisConnection] = []
        self.breaker = Breaker(self._ping, on_change)

    async def run(self, commands: Sequence[Command], seconds: float) -> list[Any]:
        """One reply per command, in order. An error reply becomes StoreRefused. Raises StoreUnavailable."""
        if self._closed:
            raise StoreUnavailable("closed")
        if not self.breaker.closed:
            raise StoreUnavailable("the circuit breaker is open")
        replies = await self._round_trip("command", commands, seconds)
        self._judge(replies)
        return [StoreRefused(str(reply)) if isinstance(reply, ResponseError) else reply for reply in replies]

    async def connect(self) -> AbstractConnection:
        """A new connection of redis-py's, for the caller to use and disconnect."""
        connection = self._connect(**self._options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def close(self) -> None:
        self._closed = True
        self._close_idle()

    async def _ping(self) -> str:
        """Why the server refuses to write, or an empty text."""
        pong, found, written, in_cluster = await self._round_trip("ping", self._probe, PING_SECONDS)
        if in_cluster == b"OK":
            raise ConfigurationError(NO_CLUSTER)
        for reply in (pong, found):
            if isinstance(reply, ResponseError):
                raise StoreUnavailable(_reason(reply))
        if isinstance(written, ResponseError):
            self._pause_writes(written)
            return _reason(written)
        if self._demoted:
            self._demoted = False
            self._on_move()
        return ""

    async def _round_trip(self, kind: Trip, commands: Sequence[Command], seconds: float) -> list[Any]:
        started, ok = self._clock.now(), False
        try:
            replies = await self._exchange(commands, started + seconds)
            ok = True
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self.breaker.failed(_reason(error))
            raise StoreUnavailable(_reason(error)) from error
        finally:
            self._observer.round_trip(kind, self._clock.now() - started, ok)
        return replies

    async def _exchange(self, commands: Sequence[Command], until: float) -> list[Any]:
        idle, replies = self._idle, None
        connection = await self._take_connection(until)
        try:
            replies = await self._replies(connection, commands, until)
        except TimeoutError:  # the other connections may be dead, too, and each would cost a deadline
            self._close_idle()
            raise
        finally:
            # Also when cancelled: the replies may still come, and must never be taken for those of the next round trip.
            if replies is None or idle is not self._idle:
                connection.close()
            else:
                idle.append(connection)
        return replies

    async def _replies(self, connection: RedisConnection, commands: Sequence[Command], until: float) -> list[Any]:
        replies = await self._clock.wait(connection.send([self._packed(command) for command in commands]), until)
        unknown = [i for i, reply in enumerate(replies) if _is_unknown_script(reply)]
        if unknown:
            again = await self._clock.wait(
                connection.send([self._packed(commands[i], whole=True) for i in unknown]), until
            )
            for i, reply in zip(unknown, again, strict=True):
                replies[i] = reply
        return replies

    def _packed(self, command: Command, whole: bool = False) -> bytes:
        """A script goes by its hash once this server has had it in full. A hash that the server does not know would be
        sent again, and run behind the commands that were sent with it."""
        if isinstance(command, Invocation):
            script, keys, arguments = command
            which = ("EVALSHA", script.sha) if script in self._sent and not whole else ("EVAL", script.lua)
            self._sent.add(script)
            command = (*which, len(keys), *keys, *arguments)
        packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub means one-element tuples
        return packed

    def _close_idle(self) -> None:
        """Connections in use end with their round trip: they are not put into the new list."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    async def _take_connection(self, until: float) -> RedisConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return RedisConnection(await self._clock.wait(asyncio.ensure_future(self.connect()), until))

    def _judge(self, replies: Sequence[Any]) -> None:
        errors = [reply for reply in replies if isinstance(reply, ResponseError)]
        refusal = next(filter(_refuses_writes, errors), None)
        if refusal is not None:
            self._pause_writes(refusal)
        if len(errors) < len(replies):
            self.breaker.failures = 0  # an error reply to some commands, such as a missing permission, is no outage
        elif not all(map(_refuses_writes, errors)):
            self.breaker.failed(_reason(errors[0]))

    def _pause_writes(self, refusal: ResponseError) -> None:
        """After READONLY, connect again: the server is a replica now, and its name may lead to the new master."""
        if "READONLY" not in str(refusal):
            self.breaker.pause_writes(_reason(refusal))
            return
        self._demoted = True
        self.breaker.pause_writes(_reason(refusal), 0)
        self._close_idle()


def _refuses_writes(reply: object) -> bool:
    return isinstance(reply, ResponseError) and any(code in str(reply) for code in _WRITE_REFUSALS)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:MAX_REASON] or "Redis did not answer in time"


def _is_unknown_script(reply: object) -> bool:
    return isinstance(reply, ResponseError) and str(reply).startswith("NOSCRIPT")


def _parsed(url: str) -> tuple[type[AbstractConnection], dict[str, Any]]:
    # redis-py's own error messages may show a part of the password, and it takes a database that is no number for 0.
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = dict(parse_url(url))
        if parts.scheme != "unix" and not re.fullmatch("/?|/[0-9]+", parts.path):
            raise ValueError
    except ValueError:
        raise ConfigurationError(
            "PREDICT_REDIS_URL must be redis://user:password@host:port/number, rediss://…, unix://path, embedded, or "
            "empty for no Redis; in a password / # ? @ and : are written %2F %23 %3F %40 %3A."
        ) from None
    connect: type[AbstractConnection] = options.pop("connection_class", Connection)
    # Protocol 3 would skip the check for connections that the server has closed. The deadline of a round trip covers
    # connecting and replaces the socket timeout. Without driver_info no connect costs a round trip for CLIENT SETINFO.
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
    except TypeError:
        raise ConfigurationError("PREDICT_REDIS_URL has an unknown option behind its ?.") from None
    return connect, options
