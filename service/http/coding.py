"""Content codings of bodies: gzip and deflate (RFC 9110, 8.4), the same two ways."""

from __future__ import annotations

import gzip
import re
import zlib
from functools import partial

from service.errors import MalformedRequest, PayloadTooLarge, UnsupportedCoding
from service.http.endpoint import CODINGS, Request

LEVEL = 1
STEP = 1024
"""Bytes that are decoded at a time: at most a thousand times as many come out."""

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_OFFER = re.compile(r"\s*+([a-z0-9*-]++)\s*+(?:;\s*+q\s*+=\s*+([01](?:\.\d{0,3}+)?+)\s*+)?+", re.I)


async def read_content(request: Request, limit: int) -> bytes:
    """The whole body without its coding, at most ``limit`` bytes with it and without; raises InvalidInput."""
    coding = coding_of(request.header(b"content-encoding"))
    body = await request.body(limit)
    if coding is None:
        return body
    decoded = await request.runtime.bodies.work(partial(decode, body, coding, limit), limit)
    request.hold(len(decoded))
    return decoded


def coding_of(content_encoding: bytes | None) -> str | None:
    """The one of CODINGS that the field names, or None where there is none; raises UnsupportedCoding."""
    name = (content_encoding or b"").decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return None
    name = name.removeprefix("x-")  # x-gzip is gzip (RFC 9110, 8.4.1.3)
    if name not in CODINGS:
        raise UnsupportedCoding(f"The content coding {name!r:.40} is not one of {', '.join(CODINGS)}.")
    return name


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """The body without its coding, one of CODINGS; raises PayloadTooLarge or MalformedRequest.

    Decoded twice: the first time piece by piece, each forgotten at once, so that a bomb takes no memory. Then into a
    buffer that fits: to join the pieces would keep Python's lock for as long as it takes to copy them.
    """
    window = _GZIP if coding == "gzip" else _ZLIB if _is_zlib(body) else _RAW
    size = _decoded_size(body, coding, window, limit)
    return zlib.decompress(body, window, max(1, size))


def _decoded_size(body: bytes, coding: str, window: int, limit: int) -> int:
    inflater = zlib.decompressobj(window)
    size = end = 0
    while end < len(body) and not inflater.eof:
        start, end = end, end + STEP
        try:
            size += len(inflater.decompress(body[start:end]))
        except zlib.error:
            raise MalformedRequest(f"The body is not {coding}.") from None
        if size > limit:
            raise PayloadTooLarge(f"The body exceeds {limit} bytes when it is decoded.")
    if not inflater.eof or inflater.unused_data or end < len(body):
        raise MalformedRequest(f"The body is not one complete {coding} stream.")
    return size


def _is_zlib(body: bytes) -> bool:
    """Whether a deflated body has zlib's two bytes before it, as it should: some send it bare (RFC 9110, 8.4.1.2)."""
    return len(body) < 2 or (body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0)


def encode(body: bytes, coding: str, level: int = LEVEL) -> bytes:
    """``coding`` is one of CODINGS. The same body has the same bytes whenever it is encoded."""
    return gzip.compress(body, level, mtime=0) if coding == "gzip" else zlib.compress(body, level)


def negotiate(accept_encoding: bytes | None) -> str | None:
    """The coding of ours that a client with this field, or none, prefers, or None for no coding."""
    field = (accept_encoding or b"").decode("latin-1").lower()
    offers = {
        match[1].removeprefix("x-"): float(match[2] or 1)
        for match in filter(None, map(_OFFER.fullmatch, field.split(",")))
    }
    weights = {coding: offers.get(coding, offers.get("*", 0.0)) for coding in CODINGS}
    best = max(CODINGS, key=weights.__getitem__)
    return best if weights[best] > max(0.0, offers.get("identity", 0.0)) else None
