"""Reading requests: from what a client sends to a complete scope, on uvicorn's httptools protocol.

- Limits for a target and a header section.
- What RFC 9110 and 9112 ask of a head beyond what the parser checks (request_line.py).
- An offer to upgrade the connection is ignored: the request is served as if the client had not made it.
"""

from __future__ import annotations

import math
import urllib.parse
from typing import Any

import httptools

from service.errors import HeadersTooLarge, MalformedRequest, ServiceError, UriTooLong
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
from service.server.timeouts import BODY, HEAD, NOTHING, TimedProtocol

FIELD_OVERHEAD = 4
"""Bytes of a header field besides name and value."""
NOT_ONE = 2
"""A Host field that names no host counts as two, because a request must have exactly one."""
SMALL = 4096
"""Bytes of a read in which looking for a word costs less than comparing the start line."""


class RequestReader(TimedProtocol):
    """``_received``: the read in which the head ends, and the reads before it that hold parts of its start line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = new_parser(self)
        self._received = b""
        self._behind_body = False
        self.url = b""
        self._hosts = 0
        self._codings = b""
        self._header_bytes = 0
        self._reads = 0
        self._unread_head = 0
        self._answered = False

    # What a connection does with a request that has been read.

    def _answer_at_once(self, method: bytes) -> bool:
        """Answer the request whose head was read, if it has no body and its answer is ready; or return False."""
        raise NotImplementedError

    def _begin(self, version: str) -> None:
        """Start to serve the request that was read. Its body may still be arriving."""
        raise NotImplementedError

    # Input

    def data_received(self, data: bytes) -> None:
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
        """Parse to the end, or up to an offer to upgrade the connection; returns what is left to parse."""
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
        self._arriving = HEAD
        self._hosts = self._header_bytes = self._reads = self._unread_head = 0
        self._codings = b""

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self.settings.max_url_bytes:
            raise UriTooLong(f"The request target exceeds {self.settings.max_url_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value) + FIELD_OVERHEAD
        if self._header_bytes > self.settings.max_header_bytes:
            raise HeadersTooLarge(f"The header section exceeds {self.settings.max_header_bytes} bytes.")
        if self._arriving != HEAD:
            return  # Trailers, which must not become headers (RFC 9110, 6.5.1).
        if not self.headers and (len(self._received) > SMALL or b"RTSP/" in self._received):
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
            return  # The parser stops here. _ignore_upgrade gives it the head again.
        if not self.headers:  # else on_header has looked
            check_protocol(method, self.url, self._received)
        if "1.0" < version < "2" and self._answer_at_once(method):
            self._arriving = NOTHING
            self._answered = True
            return
        self._complete_scope(version, method)
        self._arriving = BODY
        self._deadline = math.inf
        self._body_due = math.inf
        self._body_bytes = 0
        self._begin(version)

    def _complete_scope(self, version: str, method: bytes) -> None:
        """Raises ServiceError for what llhttp lets pass and HTTP or this service does not."""
        if version != "1.1":
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
        self._collect(body)

    def _collect(self, body: bytes) -> None:
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._arriving == BODY:
            self._arriving = NOTHING
            self._deadline = math.inf
            super().on_message_complete()

    def _ignore_upgrade(self) -> None:
        """Parse the head again without its offer, because llhttp takes the body for the other protocol's."""
        version = self.parser.get_http_version().encode()
        fields = [b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (self.parser.get_method(), self.url, version, b"".join(fields))
        self.parser = new_parser(self)
        self.parser.feed_data(head)

    def _await_head(self, size: int) -> None:
        """The head goes on in a later read. ``size``: the bytes of this read."""
        if self._reads:
            self._unread_head += size
            if self._unread_head > self.settings.max_url_bytes + self.settings.max_header_bytes:
                self._refuse(HeadersTooLarge(f"The header section exceeds {self.settings.max_header_bytes} bytes."))
        elif self.cycle is not None or self._answered:  # The time for the first head began with the connection.
            self._set_deadline(self.loop.time() + self.settings.header_timeout_seconds)
        self._reads += 1
