"""Content codings of bodies: gzip and deflate (RFC 9110, 8.4), the same two ways."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator

from service.errors import MalformedRequest, PayloadTooLarge, UnsupportedContent

CODINGS = ("gzip", "deflate")
LEVEL = 1
STEP = 1024
"""Bytes that are decoded at a time: at most a thousand times as many come out."""

_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_OFFER = re.compile(r"\s*+([a-z0-9*-]++)\s*+(?:;\s*+q\s*+=\s*+([01](?:\.\d{0,3}+)?+)\s*+)?+", re.I)


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """The body without its coding; raises PayloadTooLarge.

    Decoded twice: the first time piece by piece, each forgotten at once, so that a bomb takes no memory.
    """
    if coding in ("", "identity"):
        return body
    if coding not in CODINGS:
        raise UnsupportedContent(f"The content coding {coding!r:.40} is not one of {', '.join(CODINGS)}.")
    for _ in _pieces(body, coding, limit):
        pass
    return b"".join(_pieces(body, coding, limit))


def _pieces(body: bytes, coding: str, limit: int) -> Iterator[bytes]:
    inflater = zlib.decompressobj(_GZIP if coding == "gzip" else _ZLIB)
    size = end = 0
    while end < len(body) and not inflater.eof:
        start, end = end, end + STEP
        try:
            piece = inflater.decompress(body[start:end])
        except zlib.error:
            raise MalformedRequest(f"The body is not {coding}.") from None
        size += len(piece)
        if size > limit:
            raise PayloadTooLarge(f"The body exceeds {limit} bytes when it is decoded.")
        yield piece
    if not inflater.eof or inflater.unused_data or end < len(body):
        raise MalformedRequest(f"The body is not one complete {coding} stream.")


def encode(body: bytes, coding: str) -> bytes:
    """``coding`` is one of CODINGS. The same body has the same bytes whenever it is encoded."""
    return gzip.compress(body, LEVEL, mtime=0) if coding == "gzip" else zlib.compress(body, LEVEL)


def negotiate(accept_encoding: str) -> str | None:
    """The coding of ours that the client prefers, or None for no coding."""
    offers = {
        match[1].lower(): float(match[2] or 1)
        for match in filter(None, map(_OFFER.fullmatch, accept_encoding.split(",")))
    }
    weights = {coding: offers.get(coding, offers.get("*", 0.0)) for coding in CODINGS}
    best = max(CODINGS, key=weights.__getitem__)
    return best if weights[best] > max(0.0, offers.get("identity", 0.0)) else None
