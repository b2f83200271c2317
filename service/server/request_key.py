"""The key by which the hit path finds a request's answer: all that the answer depends on, as bytes.

A key begins with what matters of the head and ends with the body, or with the SHA-256 of a large body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from hashlib import sha256
from typing import NamedTuple

from service.errors import Overloaded
from service.http.endpoint import Headers
from service.runtime import Bodies

MAX_HEAD_BYTES = 4096
SMALL_BODY_BYTES = 16 * 2**10
"""A key has a body of this size as it is, and the SHA-256 of a larger one."""
MAX_BODY_BYTES = 512 * 2**10
"""A larger body is hashed by the thread for large bodies, on the ordinary path."""
START_BYTES = 4096
"""By so many first bytes a known body is found. The headers of image files are shorter, and pixels differ."""

WITH_BODY = frozenset((b"POST", b"QUERY"))

Allowed = Callable[[bytes], bool]


def _never(value: bytes) -> bool:
    return False


def _is_keep_alive(value: bytes) -> bool:
    return value.lower() == b"keep-alive"


def _is_short(value: bytes) -> bool:
    return len(value) <= 6 and value.isdigit() and int(value) <= MAX_BODY_BYTES


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
"""For each method, the headers that may change an answer. None: the header is a part of the key. A function says which
values change nothing; a request with any other value takes the ordinary path."""

HASHED = b"sha256\r\n"
"""The last line of a head whose body is hashed. No header is written so."""

_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"([ !#-\[\]-~]{1,256})"')
"""The id in a body of the Open Inference Protocol, if it comes first, as clients write it, and if no encoder of JSON
escapes one of its characters."""


def request_key(method: bytes, target: bytes, headers: Headers) -> bytes | None:
    """The beginning of the key, without the body; None if the request must take the ordinary path."""
    rules = _RULES.get(method)
    if rules is None:
        return None
    fields = hashed = b""
    for name, value in headers:
        if name in rules:
            allowed = rules[name]
            if allowed is None:
                fields += b"%b: %b\r\n" % (name, value)
            elif not allowed(value):
                return None
            elif name == b"content-length" and int(value) > SMALL_BODY_BYTES:
                hashed = HASHED
    return b"%b %b\r\n%b%b\r\n" % (method, target, fields, hashed) if fields or method != b"GET" else target


def is_hashed(head: bytes) -> bool:
    """Whether the key that begins with ``head`` ends with the SHA-256 of the body, and not with the body."""
    return head.endswith(b"\r\n" + HASHED + b"\r\n")


def mask_id(head: bytes, body: bytes) -> tuple[bytes, bytes | None]:
    """The body with zeros in the place of its id, and the id. JSON has no zero byte, so no other JSON becomes the same.
    The zeros are as many as the id's bytes, so that no length changes."""
    found = None if b"\r\ncontent-encoding: " in head else _ID.match(body)
    if found is None:
        return body, None
    start, end = found.span(1)
    return body[:start] + bytes(end - start) + body[end:], found[1]


class KnownBody(NamedTuple):
    """The large body of a hit, and its SHA-256."""

    content: bytes
    digest: bytes


class Upload:
    """The body of a request that may be a hit.

    If its hash is in the key, it is compared, as it arrives, with a ``known`` body that has the same first bytes: that
    takes a tenth of the time of a hash. From where the two differ it is hashed.
    """

    def __init__(self, head: bytes, bodies: Bodies, known: Mapping[bytes, KnownBody]) -> None:
        self.size = 0
        self._head, self._bodies, self._known = head, bodies, known
        self._parts: list[bytes] = []
        self.is_hashed = is_hashed(head)
        self._hash = sha256()
        self._equal: KnownBody | None = None

    def add(self, part: bytes) -> bool:
        """Whether there was room for one more part."""
        try:
            self._bodies.take(len(part))
        except Overloaded:
            return False
        if self.is_hashed and not self.size:
            self._equal = self._known.get(part[:START_BYTES])
        if self._equal is None or not self._equal.content.startswith(part, self.size):
            self._keep(part)
        self.size += len(part)
        return True

    def _keep(self, part: bytes) -> None:
        """What has come before has been the same as a known body, or is kept and hashed."""
        if self._equal is not None:
            same, self._equal = self._equal.content[: self.size], None
            self._keep(same)
        self._parts.append(part)
        if self.is_hashed:
            self._hash.update(part)

    @cached_property
    def digest(self) -> bytes | None:
        """The SHA-256, if it is in the key. Read it once the body has arrived."""
        known = self._equal
        if known is None:
            return self._hash.digest() if self.is_hashed else None
        return known.digest if self.size == len(known.content) else sha256(known.content[: self.size]).digest()

    def key(self) -> tuple[bytes, bytes | None]:
        """The request's key, once the body has arrived, and the id in the body."""
        if (digest := self.digest) is not None:
            return self._head + digest, None
        name, identifier = mask_id(self._head, b"".join(self._parts))
        return self._head + name, identifier

    def release(self) -> list[bytes]:
        """The parts. They are counted no more."""
        self._bodies.release(self.size)
        return self._parts if self._equal is None else [self._equal.content[: self.size]]
