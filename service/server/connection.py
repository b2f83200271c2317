"""One HTTP connection: uvicorn's httptools protocol, and what it leaves out.

- Deadlines for reading and writing (timeouts.py), limits for a target and a header section, and answers to requests
  that never reach the application, as problem documents.
- What RFC 9110 and 9112 ask of a head beyond what the parser checks (request_line.py).
- A client that leaves cancels the task of its request (cycle.py), so the application need not watch for it.
- Pipelined answers stay in order when one of the requests is refused.
- A connection closed while input still arrives lingers, so that its client can read the last answer (closing.py).
- Hits that the ordinary path has vetted are answered here (hit_table.py).
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
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.config import Settings
from service.errors import HeadersTooLarge, MalformedRequest, ServiceError, UriTooLong
from service.server.closing import Lingering, refusal
from service.server.cycle import Cycle
from service.server.hit_table import Hit, HitTable, is_plain
from service.server.request_line import (
    check_codings,
    check_method,
    check_protocol,
    check_version,
    is_host,
    new_parser,
    refused_by_parser,
    split_target,
)
from service.server.timeouts import BODY, HEAD, NOTHING, REFUSED, TimedProtocol

FIELD_OVERHEAD = 4
"""Bytes of a header field besides name and value."""
NOT_ONE = 2
"""What a Host field that names no host adds to their number, which must be one."""
NO_HEADS: Mapping[bytes, Hit] = {}


def protocol_class(settings: Settings) -> type[Connection]:
    """The protocol with the limits of these settings."""
    limits = {
        "head_seconds": settings.header_timeout_seconds,
        "body_seconds": settings.body_timeout_seconds,
        "write_seconds": settings.write_timeout_seconds,
        "idle_seconds": settings.keep_alive_seconds,
        "max_target_bytes": settings.max_url_bytes,
        "max_header_bytes": settings.max_header_bytes,
    }
    return type("LimitedConnection", (Connection,), limits)


class Connection(TimedProtocol):
    """``running`` is the request that is being answered, ``pipeline`` those behind it (newest first), ``cycle`` the
    newest of all, whose body may still be arriving.

    ``_hot``: the heads that the next read may be: all of the table after a hit that was wholly written, so that nothing
    runs, arrives or waits here, and otherwise none.
    """

    # What a hit reads: from slots, twice as fast as from the dictionary, which has more keys than Python can share.
    __slots__ = ("_fd", "_hot", "_idle_offset")
    _fd: int
    _hot: Mapping[bytes, Hit]
    _idle_offset: float

    max_target_bytes: int
    max_header_bytes: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = new_parser(self)
        self._hits: HitTable | None = self.app_state.get("hits")
        if self._hits is not None:
            self._hits.server_state = self.server_state
        self._hot = NO_HEADS
        # From time.monotonic() to a deadline by the loop's clock, which may start elsewhere.
        self._idle_offset = self.idle_seconds + self.loop.time() - monotonic()
        self._answered = False
        self._received = b""
        self._behind_body = False
        self.url = b""
        self.running: Cycle | None = None
        self._hosts = 0
        self._codings = b""
        self._header_bytes = 0
        self._reads = 0
        self._unread_head = 0
        self._last_words: bytes | None = None

    # The connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._fd = transport.get_extra_info("socket").fileno()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
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
            if left and now < hit.until and not hit.kept.evicted:
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
        within, behind_body = self._arriving, self._behind_body
        # A start line may arrive in pieces.
        self._received = self._received + data if within == HEAD and not self.headers else data
        self._behind_body = False
        rest: bytes | memoryview = data
        try:
            while rest:
                rest = self._parse(rest)
        except httptools.HttpParserError as error:
            if not isinstance(cause := error.__context__, ServiceError):
                begun = data if within == NOTHING or behind_body else self._received
                cause = refused_by_parser(error, self.parser, b"" if within == BODY or self.url else begun)
            self._refuse(cause)
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
        self._codings = b""

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
        if not self.headers:
            check_protocol(self.parser.get_method(), self.url, self._received)
        name, value = name.lower(), value.rstrip(b" \t")  # llhttp strips what stands before the value only
        if name == b"host":
            self._hosts += 1 if is_host(value) else NOT_ONE
        elif name == b"transfer-encoding":
            self._codings += b"," + value if self._codings else value
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        version, method = self.parser.get_http_version(), self.parser.get_method()
        if self.parser.should_upgrade() and method != b"CONNECT":
            return  # The parser stops here, and is given the head again.
        if not self.headers:
            check_protocol(method, self.url, self._received)
        if method == b"GET" and "1.0" < version < "2" and self._answer_by_target():
            self._arriving = NOTHING
            return
        self._complete_scope(version, method)
        if self._hits is not None:
            # In pieces, or behind a body, what was last received may look like a head that nobody has vetted.
            head = b"" if self._reads or self._behind_body else self._received
            self.scope["received"] = self.url, head  # type: ignore[typeddict-unknown-key]
        self._arriving = BODY
        self._deadline = math.inf
        self._body_due = math.inf
        self._body_bytes = 0
        previous = self.cycle
        self.cycle = cycle = self._new_cycle(version, self.parser.should_keep_alive())
        self.scope["respond"] = cycle.respond  # type: ignore[typeddict-unknown-key]
        if previous is None or previous.response_complete:
            self._start_asgi_task(cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _new_cycle(self, version: str, keep_alive: bool) -> Cycle:
        return Cycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue and version != "1.0",  # RFC 9110, 10.1.1
            keep_alive=keep_alive and version != "1.0",
            on_response=self.on_response_complete,
        )

    def _complete_scope(self, version: str, method: bytes) -> None:
        """Raises ServiceError for what llhttp lets pass and HTTP or this service does not."""
        check_version(version)
        check_method(method)
        if self._hosts != 1 and (self._hosts or version != "1.0"):
            raise MalformedRequest("A request has exactly one Host field, and it names a host.")
        if self._codings:
            check_codings(self._codings, version)
        raw_path, query = split_target(self.url, method)
        path = raw_path.decode("ascii")
        scope = self.scope
        scope["method"] = method.decode("ascii")
        scope["http_version"] = "1.0" if version == "1.0" else "1.1"
        scope["path"] = self.root_path + (urllib.parse.unquote(path) if "%" in path else path)
        scope["raw_path"] = self.root_path.encode("ascii") + raw_path
        scope["query_string"] = query

    def on_body(self, body: bytes) -> None:
        self._behind_body = True
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
        self.parser = new_parser(self)
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
            self._start_write_timer()
        elif cycle is not None and cycle.lingers:
            self._linger()
        elif self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_last_words()
        else:
            self.flow.resume_reading()
            if self._arriving == NOTHING:
                self._set_deadline(self.loop.time() + self.idle_seconds)

    # Refusals

    def _await_head(self, size: int) -> None:
        """The head under way continues in a later read than this one of ``size`` bytes."""
        if self._reads:
            self._unread_head += size
            if self._unread_head > self.max_target_bytes + self.max_header_bytes:
                self._refuse(HeadersTooLarge(f"The header section exceeds {self.max_header_bytes} bytes."))
        elif self.cycle is not None or self._answered:  # A first request's time runs since connecting.
            self._set_deadline(self.loop.time() + self.head_seconds)
        self._reads += 1

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
                self._close()
                return
            self.running.abandon()
            self.running = None
        if (runtime := self.app_state.get("runtime")) is not None:
            runtime.metrics.refused(error.status)
            runtime.refusals.add(error, client=self.client[0] if self.client else None)
        self._last_words = refusal(error, self.url, self.server_state.default_headers)
        if self.url and self.parser.get_method() == b"HEAD":
            self._last_words = self._last_words[: self._last_words.index(b"\r\n\r\n") + 4]
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
        self._stop_write_timer()  # Lingering has its own.
        self.flow.resume_reading()
        if not self.transport.is_closing():
            self.transport.set_protocol(Lingering(self.transport, self.loop, self.write_seconds, self.connection_lost))
