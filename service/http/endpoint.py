"""What every endpoint does: choose the handler, render errors, count, answer. Plain ASGI, for the speed of hits."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from service.cache.keys import current_tenant
from service.errors import MalformedRequest, MethodNotAllowed, PayloadTooLarge, ServiceError, UnsupportedContent
from service.http.coding import coding_of, decode
from service.http.directives import RETRIEVALS, check_if_match, parse_cache_control
from service.http.multipart import FORM, check_origin
from service.large_json import PIECE_BYTES, load_large
from service.logs import RequestId, current_request
from service.lookup import DEFAULT, CacheDirectives
from service.metrics import NO_ROUTE

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from service.cache.entry import Entry
    from service.runtime import Runtime

logger = logging.getLogger(__name__)

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]
NO_STORE = (b"cache-control", b"no-store")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
SMALL_BODY_BYTES = 64 * 2**10
"""Work on a smaller body takes less time than a change of threads."""
FILES_WORTH = 1 / 8
"""To copy or to hash a byte takes so much of the time that parsing it takes."""
CURRENT = "service.request"
"""Where a scope has the Request when it has come through FastAPI's layers (operations.py)."""


@dataclass(slots=True)
class Reply:
    body: bytes = b""
    status: int = 200
    content_type: bytes | None = b"application/json"
    headers: Headers = field(default_factory=list)
    hot: Hot | None = None
    """Set on a hit in L1 that depends on nothing but what the hit path's key has, for the hit path to enter."""


@dataclass(slots=True)
class Hot:
    """How the hit path makes the same answer again, from the entry that L1 has under ``key``.

    ``entry``: the one that the answer is from, if any. ``varying``: the headers that change with the clock's reading;
    they come before all others. ``id_at``: where the answer repeats the id that the request's body has; None: nowhere,
    or it may be another one.
    """

    model: str
    key: str
    entry: Entry | None
    varying: Callable[[float], Headers] = lambda now: []
    id_at: int | None = None


class Request:
    """What a handler needs of the ASGI scope. ``sent``: the body as it was received. ``given_id``: the client's
    X-Request-ID, if it is well-formed. ``header(name)``: a field's value, its lines joined by commas (RFC 9110, 5.3).
    """

    __slots__ = (
        *("_body_bytes", "_receive"),
        *("given_id", "header", "method", "name", "path", "query", "route", "runtime", "scope", "sent"),
    )

    def __init__(self, scope: Scope, receive: Receive, route: str = NO_ROUTE) -> None:
        self.scope = scope
        self.route = route
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.runtime: Runtime = scope["state"]["runtime"]
        self._receive = receive
        fields: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            fields[name] = value if name not in fields else fields[name] + b", " + value
        self.header = fields.get
        given = fields.get(b"x-request-id")
        self.given_id = given if given is not None and REQUEST_ID.fullmatch(given) else None
        self.name = RequestId(self.given_id)
        self._body_bytes = 0
        self.sent = b""

    def path_parameter(self, name: str) -> Any:
        return self.scope.get("path_params", {}).get(name)

    @property
    def directives(self) -> CacheDirectives:
        """What the request's ``Cache-Control`` asks for, as far as the settings allow it."""
        field = self.header(b"cache-control")
        if field is None:
            return DEFAULT
        directives = parse_cache_control(field.decode("latin-1"))
        obeyed = self.runtime.settings.client_directives == "obey"
        return directives if obeyed else CacheDirectives(compute=directives.compute)

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case; empty when the client names none."""
        value = self.header(b"content-type") or b""
        return value.partition(b";")[0].strip().lower().decode("latin-1")

    def media_type(self, known: Sequence[str]) -> str:
        """The body's media type; raises UnsupportedContent for any but these, and for a form of another origin."""
        if (content_type := self.content_type) not in known:
            raise UnsupportedContent(f"The Content-Type of a body must be {' or '.join(known)}.")
        if content_type == FORM:
            check_origin(self.header, self.runtime.settings.cors_origins)
        return content_type

    def accepts(self, media_type: str) -> bool:
        """Whether it is the first that the client names in ``Accept``."""
        first = (self.header(b"accept") or b"").partition(b",")[0].partition(b";")[0]
        return first.strip().lower().decode("latin-1") == media_type

    @property
    def id(self) -> bytes:
        """The id of this request in errors and in the log: the client's, or else a new one."""
        return self.name.text.encode()

    async def body(self, limit: int) -> bytes:
        """The whole body; raises Overloaded, or PayloadTooLarge as soon as it exceeds ``limit`` bytes."""
        too_large = f"The body exceeds {limit} bytes."
        declared = self.header(b"content-length")
        if declared is not None and int(declared) > limit:
            raise PayloadTooLarge(too_large)
        parts, size, more = [], 0, True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise MalformedRequest("The body is incomplete.")
            part = message.get("body", b"")
            self.runtime.metrics.body_bytes.inc(len(part))
            self.hold(len(part))
            parts.append(part)
            size += len(part)
            if size > limit:
                raise PayloadTooLarge(too_large)
            more = message.get("more_body", False)
        join = partial(b"".join, parts)
        self.sent = parts[0] if len(parts) == 1 else await self.work(join, size * FILES_WORTH)
        return self.sent

    async def content(self, limit: int) -> bytes:
        """The whole decoded body; raises as ``body``. ``limit`` bounds both the coded and the decoded bytes."""
        field = self.header(b"content-encoding")
        coding = None if field is None else coding_of(field)
        body = await self.body(limit)
        if coding is None:
            return body
        decoded = await self.runtime.bodies.in_thread(partial(decode, body, coding, limit))
        self.hold(len(decoded))
        return decoded

    async def work(self, work: Callable[[], T], size: float) -> T:
        """The result of ``work``, done in a thread if it is on a body of many bytes, so as not to stop the loop."""
        return work() if size <= SMALL_BODY_BYTES else await self.runtime.bodies.in_thread(work)

    @property
    def client(self) -> str | None:
        """The address that the connection comes from."""
        client = self.scope.get("client")
        return client[0] if client else None

    def refused(self, error: ServiceError) -> None:
        """Log that an error answers this request or one of its rows, if the error concerns the operator."""
        self.runtime.refusals.add(error, route=self.route, client=self.client)

    def answered(self, status: int, headers: Headers, seconds: float) -> None:
        """Count it, and log it if an access log is wanted."""
        self.runtime.metrics.answered(self.route, status, seconds)
        if (log := self.runtime.access_log) is not None:
            cache = dict(headers).get(b"cache-status", b"").decode() or None
            about = {"method": self.method, "route": self.route, "status": status, "client": self.client}
            log.add(seconds, cache=cache, **about)

    def enter(self) -> None:
        """Let the log and the cache keys of this task know whose request it is."""
        current_request.set(self.name)
        if header := self.runtime.settings.tenant_header:
            current_tenant.set(self.header(header.lower().encode()) or b"")

    def hold(self, size: int) -> None:
        """Count so many more bytes as this request's until it is answered; raises Overloaded."""
        self.runtime.bodies.take(size)
        self._body_bytes += size

    def release(self) -> None:
        if self._body_bytes:
            self.runtime.bodies.release(self._body_bytes)
            self._body_bytes = 0


Handler = Callable[[Request], Awaitable[Reply]]
ErrorRenderer = Callable[[ServiceError], Reply]


def problem(error: ServiceError) -> Reply:
    return Reply(orjson.dumps(error.describe()), error.status, b"application/problem+json", [NO_STORE, *error.headers])


def load_object(body: bytes) -> dict[str, Any]:
    """The members of a JSON object; raises MalformedRequest. Arrays of a large body may be LargeArray."""
    try:
        document = orjson.loads(body) if len(body) <= PIECE_BYTES else load_large(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return document


class Endpoint:
    """An ASGI application for one hot route: a handler per method, with HEAD, OPTIONS and 405 added."""

    def __init__(
        self,
        route: str,
        handlers: Mapping[str, Handler],
        render_error: ErrorRenderer = problem,
        options: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        self.route = route
        self.handlers = dict(handlers)
        if "GET" in self.handlers:
            self.handlers["HEAD"] = self.handlers["GET"]
        self.render_error = render_error
        self._allow: Headers = [(b"allow", ", ".join([*self.handlers, "OPTIONS"]).encode()), *options]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        request = Request(scope, receive, self.route)
        if (current := scope.get(CURRENT)) is not None:
            current.route = self.route
        request.enter()
        try:
            reply = await self._reply(request)
        finally:
            request.release()
        headers = reply.headers
        if reply.content_type is not None:
            headers.append((b"content-type", reply.content_type))
        if reply.status not in (204, 304):
            headers.append((b"content-length", b"%d" % len(reply.body)))
        if is_named(request, reply.status, headers):
            headers.append((b"x-request-id", request.id))
        if reply.hot is not None and scope.get("head") is not None:
            scope["state"]["hits"].enter(request, reply)
        # Our protocol can write a whole answer at once. Any other server gets ASGI's messages.
        if reply.status >= 400 or "respond" not in scope or not scope["respond"](reply.status, headers, reply.body):
            await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            await send({"type": "http.response.body", "body": reply.body})
        if current is None:  # Otherwise it is counted there, with the time of its middleware.
            request.answered(reply.status, headers, time.perf_counter() - started)

    async def _reply(self, request: Request) -> Reply:
        handler = self.handlers.get(request.method)
        try:
            if (limit := request.runtime.rate_limit) is not None and request.client is not None:
                limit.check(request.client)
                limit.take(request.client)
            if handler is not None:
                reply = await handler(request)
                if (if_match := request.header(b"if-match")) is not None:
                    check_if_match(request.method, if_match, reply.status, reply.headers)
                return reply
            if request.method == "OPTIONS":
                return Reply(status=204, content_type=None, headers=list(self._allow))
            reply = self.render_error(MethodNotAllowed(f"{request.method} is not one of the methods in Allow."))
            reply.headers += self._allow
            return reply
        except ServiceError as error:
            request.refused(error)
            return self.render_error(error)
        except Exception:
            logger.exception("%s %s failed", request.method, self.route)
            return self.render_error(ServiceError())


def is_named(request: Request, status: int, headers: Headers) -> bool:
    """Whether the answer carries ``X-Request-ID``."""
    return status >= 400 or (request.given_id is not None and (request.method not in RETRIEVALS or NO_STORE in headers))
