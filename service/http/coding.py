"""Content codings of request and response bodies: gzip and deflate (RFC 9110, 8.4)."""

from __future__ import annotations

import gzip
import re
import zlib

from service.errors import CODINGS, MalformedRequest, PayloadTooLarge, UnsupportedCoding

LEVEL = 1
STEP = 1024
"""Bytes that are decoded at a time. At most a thousand times as many come out."""

_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
_OFFER = re.compile(r"\s*+([a-z0-9*-]++)\s*+(?:;\s*+q\s*+=\s*+([01](?:\.\d{0,3}+)?+)\s*+)?+", re.I)


def coding_of(content_encoding: bytes) -> str | None:
    """The coding of CODINGS that the field names, or None for none; raises UnsupportedCoding."""
    name = content_encoding.decode("latin-1").strip().lower()
    if name in ("", "identity"):
        return None
    name = name.removeprefix("x-")  # x-gzip is gzip (RFC 9110, 8.4.1.3)
    if name not in CODINGS:
        raise UnsupportedCoding(f"The content coding {name!r:.40} is not one of {', '.join(CODINGS)}.")
    return name


def decode(body: bytes, coding: str, limit: int) -> bytes:
    """The decoded body; raises PayloadTooLarge or MalformedRequest.

    It is decoded twice. The first time, each piece is dropped at once, so a bomb takes no memory. The second time fills
    one buffer of the right size, because joining the pieces would keep Python's lock while they are copied.
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
    """Whether a deflated body begins with zlib's two bytes. Some clients omit them (RFC 9110, 8.4.1.2)."""
    return len(body) < 2 or (body[0] & 0x0F == zlib.DEFLATED and int.from_bytes(body[:2], "big") % 31 == 0)


def encode(body: bytes, coding: str, level: int = LEVEL) -> bytes:
    """Encode the body. Equal bodies become equal bytes."""
    return gzip.compress(body, level, mtime=0) if coding == "gzip" else zlib.compress(body, level)


def negotiate(accept_encoding: bytes | None) -> str | None:
    """The coding of CODINGS that a client with this field prefers, or None for no coding."""
    field = (accept_encoding or b"").decode("latin-1").lower()
    offers = {
        match[1].removeprefix("x-"): float(match[2] or 1)
        for match in filter(None, map(_OFFER.fullmatch, field.split(",")))
    }
    weights = {coding: offers.get(coding, offers.get("*", 0.0)) for coding in CODINGS}
    best = max(CODINGS, key=weights.__getitem__)
    return best if weights[best] > max(0.0, offers.get("identity", 0.0)) else None
