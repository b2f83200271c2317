"""What RFC 9110 and 9112 ask of a head beyond what llhttp checks: method, version, target, Host, transfer codings."""

from __future__ import annotations

import re
from bisect import bisect_left
from contextlib import suppress
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address

import httptools

from service.errors import MalformedRequest, NotSupported, ServiceError, VersionNotSupported

METHODS = frozenset((b"GET", b"HEAD", b"POST", b"QUERY", b"OPTIONS", b"DELETE", b"PUT", b"PATCH", b"TRACE"))
"""What is recognized: 405 where a target does not allow it. Any other method, and CONNECT, is implemented nowhere."""
SCHEMES = (b"http", b"https")

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?: |\Z)")
_RTSP = re.compile(rb"((?:GET|POST|OPTIONS) [^ ]+ ) *RTSP/")
_HOST = re.compile(
    rb"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]"  # IP-literal (RFC 3986, 3.2.2) ...
    rb"|\[v[0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\]"
    rb"|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)"  # ... or reg-name, which takes IPv4 in and may be empty
    rb"(?::[0-9]*)?"
)


@lru_cache(256)
def is_host(value: bytes) -> bool:
    """Whether a Host field's value is ``uri-host [":" port]``. Remembered: a service has few names."""
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    try:
        return match["v6"] is None or bool(IPv6Address(match["v6"].decode()))
    except AddressValueError:
        return False


def new_parser(protocol: object) -> httptools.HttpRequestParser:
    """Requests behind one that says close are parsed, and versions that check_version judges."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True, lenient_version=True)
    return parser


def check_method(method: bytes) -> None:
    """Raises NotSupported."""
    if method not in METHODS:
        raise NotSupported(f"The method {method.decode()} is implemented nowhere here.")


def check_protocol(method: bytes, target: bytes, received: bytes) -> None:
    """llhttp reads GET, POST and OPTIONS of RTSP/1.x, too, and does not say so; raises MalformedRequest.

    ``received``: the read in which the head ended, and those before it in which its start line arrived.
    """
    line = b"%b %b " % (method, target)
    if not received.startswith(line + b"HTTP/") and line in _rtsp_lines(received):
        raise MalformedRequest("This is RTSP; only HTTP is served.")


@lru_cache(1)
def _rtsp_lines(received: bytes) -> frozenset[bytes]:
    """Remembered, because one read may hold thousands of requests."""
    return frozenset(match[1] for match in _RTSP.finditer(received))


def check_version(version: str) -> None:
    """A later minor version is served as HTTP/1.1 (RFC 9110, 2.5); raises VersionNotSupported for another major one."""
    if not version.startswith("1."):
        raise VersionNotSupported("Only HTTP/1.1 and HTTP/1.0 are served.")


def check_codings(coding: bytes, version: str) -> None:
    """Of a body's transfer codings only chunked is understood, once (RFC 9112, 6.1); raises NotSupported or
    MalformedRequest. That chunked comes last, and without a length, llhttp has checked."""
    if version == "1.0":
        raise MalformedRequest("HTTP/1.0 has no Transfer-Encoding.")
    codings = [name.strip(b" \t").lower() for name in coding.split(b",")]
    if codings != [b"chunked"]:
        if codings[-1] != b"chunked" or codings.count(b"chunked") != 1:
            raise MalformedRequest("The last transfer coding, and only the last, is chunked.")
        raise NotSupported("Of the transfer codings only chunked is supported.")


def split_target(target: bytes, method: bytes) -> tuple[bytes, bytes]:
    """Path and query of a target in origin, absolute or, for OPTIONS, asterisk form; raises MalformedRequest."""
    if b"#" in target:
        raise MalformedRequest("A request target has no fragment.")
    if target.startswith(b"/"):  # llhttp has checked its characters
        path, _, query = target.partition(b"?")
        return path, query
    try:
        parsed = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise MalformedRequest("The request target is no URL.") from None
    if target == b"*":
        if method != b"OPTIONS":
            raise MalformedRequest("The target * is for OPTIONS alone.")
        return target, b""
    if parsed.schema is None or parsed.schema.lower() not in SCHEMES or not parsed.host or parsed.userinfo is not None:
        raise MalformedRequest("The target is neither a path nor the URL of a web server.")
    return parsed.path or b"/", parsed.query or b""


def refused_by_parser(
    error: httptools.HttpParserError, parser: httptools.HttpRequestParser, data: bytes
) -> ServiceError:
    """What llhttp means by an error of its own. ``data``: what was read from the beginning of a request, or empty."""
    if isinstance(error, httptools.HttpParserInvalidMethodError) and _TOKEN.match(data, _last_begin(data)):
        return NotSupported("The method is implemented nowhere here.")
    if parser.get_method() == b"PRI":  # how HTTP/2 begins
        return VersionNotSupported("Only HTTP/1.1 and HTTP/1.0 are served.")
    return MalformedRequest(f"Not HTTP/1.1: {error}.")


class _Begins:
    """Counts the requests that begin."""

    def __init__(self, data: memoryview) -> None:
        self.count = 0
        with suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            new_parser(self).feed_data(data)

    def on_message_begin(self) -> None:
        self.count += 1


def _last_begin(data: bytes) -> int:
    """Where the last request of ``data`` begins: llhttp does not say."""
    view = memoryview(data)
    count = _Begins(view).count
    return bisect_left(range(len(data) + 1), count, key=lambda end: _Begins(view[:end]).count) - 1 if count else 0
