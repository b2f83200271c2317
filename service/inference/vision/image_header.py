"""What an image file says about itself, read without decoding a pixel: format, size and number of frames.

A stranger's file may name any size and hold any number of parts, so the reading stops after ``MAX_PARTS`` of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from service.errors import InvalidInput, UnsupportedContent

MAX_PIXELS = 16_000_000
MAX_PARTS = 4_000
"""Most chunks or segments; a 10 MiB PNG in libpng's 8 KiB chunks has 1,280."""

_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_ENDS = frozenset({0xD9, 0xDA})


@dataclass(frozen=True, slots=True)
class Header:
    format: Literal["PNG", "JPEG", "WEBP"]
    width: int
    height: int
    frames: int = 1


def read_header(file: bytes) -> Header:
    """The file's own statement, checked against the limits; raises UnsupportedContent or InvalidInput."""
    header = _reader(file)(file)
    if header.frames > 1:
        raise InvalidInput("The image is animated; one frame is expected.", parameter="image")
    if not 0 < header.width * header.height <= MAX_PIXELS:
        size = f"{header.width} × {header.height}"
        raise InvalidInput(f"The image has {size} pixels; 1 to {MAX_PIXELS:,} are expected.", parameter="image")
    return header


def _reader(file: bytes) -> Callable[[bytes], Header]:
    """By content: names and media types are only claims."""
    if file.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png
    if file.startswith(b"\xff\xd8\xff"):
        return _jpeg
    if file.startswith(b"RIFF") and file[8:12] == b"WEBP":
        return _webp
    raise UnsupportedContent("The image is not a PNG, JPEG or WebP file.", parameter="image")


def _png(file: bytes) -> Header:
    if file[12:16] != b"IHDR" or len(file) < 33:
        raise damaged("PNG")
    width, height = struct.unpack_from(">2I", file, 16)
    frames = 1
    for kind, start, length in png_chunks(file):
        if kind == b"acTL" and length >= 4:
            (frames,) = struct.unpack_from(">I", file, start)
    return Header("PNG", width, height, frames)


def png_chunks(file: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and length of the contents of each chunk up to the last, IEND; raises InvalidInput."""
    start = 8
    for _ in range(MAX_PARTS):
        if start + 12 > len(file):
            break
        length, kind = struct.unpack_from(">I4s", file, start)
        if kind == b"IEND":
            return
        yield kind, start + 8, length
        start += 12 + length
    raise damaged("PNG")


def _jpeg(file: bytes) -> Header:
    start = 2
    for _ in range(MAX_PARTS):
        if start + 9 > len(file) or file[start] != 0xFF:
            break
        marker = file[start + 1]
        if marker in _JPEG_SIZES:
            height, width = struct.unpack_from(">2H", file, start + 5)
            return Header("JPEG", width, height)
        if marker in _JPEG_ENDS:
            break
        if marker == 0xFF:  # a fill byte
            start += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            start += 2
        else:
            start += 2 + int.from_bytes(file[start + 2 : start + 4], "big")
    raise damaged("JPEG")


def _webp(file: bytes) -> Header:
    if len(file) < 30:
        raise damaged("WebP")
    kind = file[12:16]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<2H", file, 26))
        return Header("WEBP", width, height)
    if kind == b"VP8L":
        bits = int.from_bytes(file[21:25], "little")
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        width, height = (int.from_bytes(file[at : at + 3], "little") + 1 for at in (24, 27))
        animated = file[20] & 0x02
        return Header("WEBP", width, height, _webp_frames(file) if animated else 1)
    raise damaged("WebP")


def _webp_frames(file: bytes) -> int:
    frames, start = 0, 12
    for _ in range(MAX_PARTS):
        if start + 8 > len(file):
            break
        kind, size = struct.unpack_from("<4sI", file, start)
        frames += kind == b"ANMF"
        start += 8 + size + size % 2
    return frames


def damaged(name: str) -> InvalidInput:
    return InvalidInput(f"The {name} file is damaged or cut short.", parameter="image")
