"""One HTTP connection: uvicorn's httptools protocol, and what it leaves out.

- Deadlines for a request's head and body, limits for its target and header section, and answers to requests that
  never reach the application, as problem documents.
- A client that leaves cancels the task of its request (cycle.py), so the application need not watch for it.
- Pipelined answers stay in order when one of the requests is refused.
- A connection closed while input still arrives lingers, so that its client can read the last answer (closing.py).
- Hits that the ordinary path has vetted are answered here (hits.py).
- While the service drains, every answer carries ``Connection: close``.
- An offer to upgrade the connection is ignored, and the request served as if it had not been made.
"""

from __future__ import annotations

import asyncio
import math
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from os import write
from time import monotonic
from typing import Any

import httptools
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.closing import Lingering, refusal
from service.api.cycle import Cycle
from service.api.hits import Hit, HitTable, is_plain
from service.config import Settings
from service.errors import HeadersTooLarge, MalformedRequest, RequestTimeout, ServiceError, UriTooLong

BODY_BYTES_PER_SECOND = 64 * 2**10
FIELD_OVERHEAD = 4
"""Bytes of a header field besides name and value."""
NOTHING, HEAD, BODY, REFUSED = range(4)
"""What the next input belongs to; after a refusal none is looked at."""
NO_HEADS: Mapping[bytes, Hit] = {}


def protocol_class(settings: Settings) -> type[Connection]:
    """The protocol with the limits of these settings."""
    limits = {
        "head_seconds": settings.header_timeout_seconds,
        "body_seconds": settings.body_timeout_seconds,
        "idle_seconds": settings.keep_alive_seconds,
        "max_target_bytes": settings.max_url_bytes,
        "max_header_bytes": settings.max_header_bytes,
    }
    return type("LimitedConnection", (Connection,), limits)


class Connection(HttpToolsProtocol):
    """``running`` is the request that is being answered, ``pipeline`` those behind it (newest first), ``cycle`` the
    newest of all, whose body may still be arriving.

    ``_hot``: the heads that the next read may be: all of the table after a hit that was wholly written, so that nothing
    runs, arrives or waits here, and otherwise none.
    """

    # What a hit reads: from slots, twice as fast as from the dictionary, which has more keys than Python can share.
    __slots__ = ("_deadline", "_fd", "_hot", "_idle_offset")
    _deadline: float
    _fd: int
    _hot: Mapping[bytes, Hit]
    _idle_offset: float

    head_seconds: float
    body_seconds: float
    idle_seconds: float
    max_target_bytes: int
    max_header_bytes: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hits: HitTable | None = self.app_state.get("hits")
        if self._hits is not None:
            self._hits.server_state = self.server_state
        self._hot = NO_HEADS
        # From time.monotonic() to a deadline by the loop's clock, which may start elsewhere.
        self._idle_offset = self.idle_seconds + self.loop.time() - monotonic()
        self._answered = False
        self._received = b""
        self.url = b""
        self.running: Cycle | None = None
        self._arriving = NOTHING
        self._hosts = 0
        self._header_bytes = 0
        self._reads = 0
        self._unread_head = 0
        self._body_began = 0.0
        self._body_bytes = 0
        self._last_words: bytes | None = None
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None

    # The connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._fd = transport.get_extra_info("socket").fileno()
        self._set_deadline(self.loop.time() + self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._deadline = math.inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.pipeline.clear()
        if self.running is not None:
            self.running.abandon()
            self.running = None

    def data_received(self, data: bytes) -> None:
        hot = self._hot
        hit = hot.get(data) if hot else None  # an empty table would hash every part of a body all the same
        if hit is not None:
            # As HitTable.current and _answer_by_target, in their place: calls would be a tenth of a hit.
            now, tally = monotonic(), hit.tally
            left = tally.left
            if left and now < hit.until and not hit.kept.gone:
                tally.left = left - 1
                self._deadline = now + self._idle_offset
                whole = hit.whole
                try:
                    sent = write(self._fd, whole)
                except OSError:  # a full buffer, or a lost connection: the transport's business
                    sent = 0
                if sent < len(whole):
                    self._hot = NO_HEADS
                    self.transport.write(whole[sent:])
                return
        self._received = data
        rest: bytes | memoryview = data
        try:
            while rest:
                rest = self._parse(rest)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ServiceError) else MalformedRequest(f"Not HTTP/1.1: {error}."))
        if self._arriving == HEAD:
            self._await_head(len(data))
        elif self._arriving == BODY:
            self._await_body()

    def _parse(self, data: bytes | memoryview) -> bytes | memoryview:
        """Parse to the end, or as far as an offer to upgrade the connection; what is left to parse."""
        try:
            self.parser.feed_data(data)
            return b""
        except httptools.HttpParserUpgrade as upgrade:
            # No copies, and a loop around this: one read may hold thousands of such requests.
            rest = memoryview(data)[upgrade.args[0] :]
        self._ignore_upgrade()
        return rest

    # The parser's callbacks

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._hot = NO_HEADS
        self._arriving = HEAD
        self._hosts = self._header_bytes = self._reads = self._unread_head = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.max_target_bytes:
            raise UriTooLong(f"The request target exceeds {self.max_target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + FIELD_OVERHEAD
        if self._header_bytes > self.max_header_bytes:
            raise HeadersTooLarge(f"The header section exceeds {self.max_header_bytes} bytes.")
        if self._arriving != HEAD:
            return  # Trailers, which must not become headers (RFC 9110, 6.5.1).
        name, value = name.lower(), value.rstrip(b" \t")  # llhttp strips what stands before the value only
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            return  # The parser stops here, and is given the head again.
        if method == b"GET" and version == "1.1" and self._answer_by_target():
            self._arriving = NOTHING
            return
        self._complete_scope(version, method)
        if self._hits is not None:
            # In pieces, or behind a body, what was last received may look like a head that nobody has vetted.
            self.scope["received"] = self.url, b"" if self._reads else self._received  # type: ignore[typeddict-unknown-key]
        self._arriving = BODY
        self._deadline = math.inf
        self._body_began = 0.0
        self._body_bytes = 0
        previous = self.cycle
        self.cycle = cycle = self._new_cycle(version == "1.1" and self.parser.should_keep_alive())
        self.scope["respond"] = cycle.respond  # type: ignore[typeddict-unknown-key]
        if previous is None or previous.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _new_cycle(self, keep_alive: bool) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )

    def _complete_scope(self, version: str, method: bytes) -> None:
        """Raises MalformedRequest for what llhttp lets pass and RFC 9112 does not."""
        if version not in ("1.1", "1.0") or method == b"CONNECT":
            raise MalformedRequest("Only HTTP/1.1 and HTTP/1.0 are served, and no CONNECT.")
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise MalformedRequest("A request has exactly one Host field.")
        target = httptools.parse_url(self.url)
        raw_path = target.path or b"/"
        path = raw_path.decode("ascii")
        scope = self.scope
        scope["method"] = method.decode("ascii")
        scope["http_version"] = version
        scope["path"] = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = target.query or b""

    def on_body(self, body: bytes) -> None:
        self._received = b""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._arriving == BODY:
            self._arriving = NOTHING
            self._deadline = math.inf
            super().on_message_complete()

    def _ignore_upgrade(self) -> None:
        """Parse the head again without its offer: llhttp would take the body for the other protocol's."""
        version = self.parser.get_http_version().encode()
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    def _answer_by_target(self) -> bool:
        hits = self._hits
        if hits is None or self._hosts != 1 or self.running is not None:
            return False
        hit = hits.by_target.get(self.url)
        if hit is None or not is_plain(self.headers) or self.flow.write_paused or self.transport.is_closing():
            return False
        if not hits.current(hit):
            return False
        answer = hit.whole
        self._answered = True
        sent = 0
        if not self.transport.get_write_buffer_size():
            with suppress(OSError):
                sent = write(self._fd, answer)
        if sent == len(answer):
            self._hot = hits.by_head
        else:
            self.transport.write(answer[sent:])
        self._deadline = self.loop.time() + self.idle_seconds
        if self._timer is None:
            self._set_deadline(self._deadline)
        return True

    # One request after the other

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        assert isinstance(cycle, Cycle)
        self.running = cycle
        cycle.task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        cycle, self.running = self.running, None
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if cycle is not None and cycle.lingers:
            self._linger()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_last_words()
        else:
            self.flow.resume_reading()
            if self._arriving == NOTHING:
                self._set_deadline(self.loop.time() + self.idle_seconds)

    # Deadlines: one timer that is moved only when it would ring too late, so that a request costs an assignment

    def _await_head(self, size: int) -> None:
        """The head under way continues in a later read than this one of ``size`` bytes."""
        if self._reads:
            self._unread_head += size
            if self._unread_head > self.max_target_bytes + self.max_header_bytes:
                self._refuse(HeadersTooLarge(f"The header section exceeds {self.max_header_bytes} bytes."))
        elif self.cycle is not None or self._answered:  # A first request's time runs since connecting.
            self._set_deadline(self.loop.time() + self.head_seconds)
        self._reads += 1

    def _await_body(self) -> None:
        now = self.loop.time()
        self._body_began = self._body_began or now
        whole = self._body_began + self.body_seconds + self._body_bytes / BODY_BYTES_PER_SECOND
        self._set_deadline(min(now + self.body_seconds, whole))

    def _set_deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._timer is not None and deadline < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self.loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self.loop.time() < self._deadline:  # Moved since the timer was set, perhaps to never.
            if self._deadline < math.inf:
                self._set_deadline(self._deadline)
        elif self._arriving == NOTHING:
            self.transport.close()
        elif self.flow.read_paused or (self._arriving == BODY and self.cycle.waiting_for_100_continue):
            # The client is not to blame.
            self._body_began = 0.0
            self._set_deadline(self.loop.time() + self.body_seconds)
        else:
            self._refuse(RequestTimeout("The request did not arrive in time."))

    # Refusals

    def _refuse(self, error: ServiceError) -> None:
        """Answer, after the requests before it, one that cannot be served, and close the connection."""
        if self._arriving == REFUSED:
            return
        broken_body = self._arriving == BODY
        self._arriving = REFUSED
        if broken_body and self.pipeline:
            self.pipeline.popleft()
        elif broken_body and self.running is not None:
            if self.running.response_started:
                self.transport.close()
                return
            self.running.abandon()
            self.running = None
        if (runtime := self.app_state.get("runtime")) is not None:
            runtime.metrics.refused(error.status)
        self._last_words = refusal(error, self.url, self.server_state.default_headers)
        if self.running is None:
            self._say_last_words()
        else:
            self.flow.pause_reading()

    def _say_last_words(self) -> None:
        assert self._last_words is not None
        self.server_state.total_requests += 1
        self.transport.write(self._last_words)
        self._linger()

    def _linger(self) -> None:
        self._arriving = REFUSED
        self._deadline = math.inf
        self.flow.resume_reading()
        if not self.transport.is_closing():
            self.transport.set_protocol(Lingering(self.transport, self.loop, self.connection_lost))
