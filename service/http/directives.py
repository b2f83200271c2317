"""The request headers ``Cache-Control``, ``If-Match`` and ``If-None-Match`` (RFC 9111, 9110)."""

from __future__ import annotations

import re

from service.errors import PreconditionFailed
from service.lookup import DEFAULT, CacheDirectives

RETRIEVALS = frozenset(("GET", "HEAD", "QUERY"))
"""Methods whose answers a cache may keep, unless they say no-store. Such answers carry no request id, because a cache
would give it to other requests."""

# Possessive quantifiers read a header of 32 KiB once. Others would try it in as many ways as it has characters.
_MEMBER = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.)*+"?+)++')
_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_DIRECTIVE = re.compile(rf'\s*+({_TOKEN})\s*+(?:=\s*+(?:"((?:[^"\\]++|\\.)*+)"|([^\s,;"]*+)))?+\s*+')
_ENTITY_TAG = re.compile(rb'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


def parse_cache_control(value: str) -> CacheDirectives:
    """Names are case-insensitive, unknown names are ignored, and of duplicates the strictest wins.

    A ``max-age`` or ``min-fresh`` without a number has its strictest meaning.
    """
    fresh = no_store = cached = False
    max_age: float | None = None
    min_fresh: float | None = None
    for match in filter(None, map(_DIRECTIVE.fullmatch, _MEMBER.findall(value))):
        name = match[1].lower()
        argument = match[2] if match[2] is not None else match[3]
        if name == "no-cache":
            fresh = True
        elif name == "no-store":
            no_store = True
        elif name == "only-if-cached":
            cached = True
        elif name == "max-age":
            seconds = _seconds(argument, otherwise=0.0)
            max_age = seconds if max_age is None else min(max_age, seconds)
        elif name == "min-fresh":
            seconds = _seconds(argument, otherwise=float("inf"))
            min_fresh = seconds if min_fresh is None else max(min_fresh, seconds)
    if not (fresh or no_store or cached or max_age is not None or min_fresh is not None):
        return DEFAULT
    return CacheDirectives(fresh=fresh, store=not no_store, compute=not cached, max_age=max_age, min_fresh=min_fresh)


def _seconds(argument: str | None, otherwise: float) -> float:
    return float(argument) if argument and argument.isascii() and argument.isdigit() else otherwise


def holds(if_match: bytes, etag: bytes | None) -> bool:
    """Whether ``If-Match`` holds for a representation with this ``ETag``, or without one, by strong comparison."""
    return if_match == b"*" or (
        etag is not None
        and not etag.startswith(b"W/")
        and any(match[0] == etag for match in _ENTITY_TAG.finditer(if_match))
    )


def check_if_match(method: str, if_match: bytes, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    """Raises PreconditionFailed if the request is a retrieval whose If-Match does not hold for the answer."""
    if method in RETRIEVALS and status in (200, 304) and not holds(if_match, dict(headers).get(b"etag")):
        raise PreconditionFailed


def matches(if_none_match: bytes, tag: bytes) -> bool:
    """Whether a list has this opaque tag (in quotes, without ``W/``), by weak comparison. ``*`` is not handled."""
    return any(match[1] == tag for match in _ENTITY_TAG.finditer(if_none_match))
