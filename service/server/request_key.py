"""What the answer to a request depends on, as bytes: the key by which the hit path finds it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from service.http.endpoint import Headers

MAX_HEAD_BYTES = 4096
MAX_BODY_BYTES = 16 * 2**10

WITH_BODY = frozenset((b"POST", b"QUERY"))

Allowed = Callable[[bytes], bool]


def _never(value: bytes) -> bool:
    return False


def _is_keep_alive(value: bytes) -> bool:
    return value.lower() == b"keep-alive"


def _is_short(value: bytes) -> bool:
    return len(value) <= 5 and value.isdigit() and int(value) <= MAX_BODY_BYTES


_SPECIAL: dict[bytes, Allowed | None] = {
    **dict.fromkeys((b"cache-control", b"if-match", b"authorization", b"expect", b"upgrade", b"traceparent"), _never),
    **dict.fromkeys((b"content-length", b"transfer-encoding"), _never),
    b"connection": _is_keep_alive,
    b"if-none-match": None,
}
_OF_BODY: dict[bytes, Allowed | None] = {
    **dict.fromkeys((b"content-type", b"content-encoding", b"inference-header-content-length")),
    **dict.fromkeys((b"accept", b"accept-encoding")),
    b"content-length": _is_short,
}
_RULES: dict[bytes, Mapping[bytes, Allowed | None]] = {
    b"GET": _SPECIAL,
    b"HEAD": _SPECIAL,
    b"QUERY": _SPECIAL | _OF_BODY,
    b"POST": _SPECIAL | _OF_BODY | {b"x-request-id": _never},  # the answer repeats it
}
"""Method -> header -> None: the answer depends on its value, which is a part of the key. A function: whether the answer
is the ordinary one. Other headers change nothing."""

_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"([ !#-\[\]-~]{1,256})"')
"""The id of a request of the Open Inference Protocol, where clients write it, of characters that nobody escapes."""


def request_key(method: bytes, target: bytes, headers: Headers) -> bytes | None:
    """All that the answer depends on but the body; None where the ordinary path must see the request."""
    rules = _RULES.get(method)
    if rules is None:
        return None
    fields = b""
    for name, value in headers:
        if name in rules:
            allowed = rules[name]
            if allowed is None:
                fields += b"%b: %b\r\n" % (name, value)
            elif not allowed(value):
                return None
    return b"%b %b\r\n%b\r\n" % (method, target, fields) if fields or method != b"GET" else target


def mask_id(key: bytes, body: bytes) -> tuple[bytes, bytes | None]:
    """The body with zeros in the place of its id, and the id. Zeros are in no JSON, so no other body becomes this one;
    there are as many of them, so no length changes. ``key``: its request's."""
    found = None if b"\r\ncontent-encoding: " in key else _ID.match(body)
    if found is None:
        return body, None
    start, end = found.span(1)
    return body[:start] + bytes(end - start) + body[end:], found[1]
