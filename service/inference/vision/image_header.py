"""What an image file says about itself, read without decoding a pixel: format, size and number of frames.

A stranger's file may name any size and hold any number of parts, so the reading stops after ``MAX_PARTS`` of them.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import PIL.Image

from service.errors import InvalidInput, UnsupportedContent

MAX_PARTS = 4_000
"""Most chunks or segments; a 10 MiB PNG in libpng's 8 KiB chunks has 1,280."""

_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_ENDS = frozenset({0xD9, 0xDA})
_GIF_FRAME, _GIF_EXTENSION = 0x2C, 0x21
_RAW_BMPS = (0, 3)
"""Compression of a BMP: none, or none with masks. Pillow takes seconds for the pixels of others."""


@dataclass(frozen=True, slots=True)
class Header:
    """``format``: as Pillow calls it."""

    format: str
    width: int
    height: int
    frames: int = 1

    @property
    def pixels(self) -> int:
        return self.width * self.height


def read_header(file: bytes) -> Header:
    """The file's own statement; raises UnsupportedContent or InvalidInput."""
    try:
        header = _reader(file)(file)
    except (struct.error, IndexError):
        raise damaged("image") from None
    if header.frames > 1:
        raise InvalidInput("The image is animated; one frame is expected.", parameter="image")
    if header.width < 1 or header.height < 1:
        raise InvalidInput("The image has no pixels.", parameter="image")
    return header


def _reader(file: bytes) -> Callable[[bytes], Header]:
    """By content: names and media types are only claims."""
    for start, reader in _READERS.items():
        if file.startswith(start):
            return reader
    if file.startswith(b"RIFF") and file[8:12] == b"WEBP":
        return _webp
    raise UnsupportedContent("The image is not a PNG, JPEG, WebP, GIF, BMP or TIFF file.", parameter="image")


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


def _gif(file: bytes) -> Header:
    """Only the first frame is read. The number of blocks before it is bounded."""
    width, height, flags = struct.unpack_from("<2HB", file, 6)
    start, inside = 13 + (2 << (flags & 7)) * 3 * (flags >> 7), False
    for _ in range(MAX_PARTS):
        byte = file[start]
        if inside:  # an extension, of blocks that say how long they are; the last is empty
            start, inside = start + 1 + byte, byte > 0
        elif byte == _GIF_FRAME:
            return Header("GIF", width, height)
        elif byte == _GIF_EXTENSION:
            start, inside = start + 2, True
        else:
            break
    raise damaged("GIF")


def _by_pillow(name: str, file: bytes) -> Header:
    """BMP and TIFF: Pillow reads no more of them than a table; of several pictures it is the first that counts."""
    try:
        picture = PIL.Image.open(io.BytesIO(file), formats=(name,))
    except Exception as error:  # as in images.decode
        raise damaged(name) from error
    if name == "BMP" and picture.info.get("compression", 0) not in _RAW_BMPS:
        raise UnsupportedContent("The BMP file is compressed.", parameter="image")
    return Header(name, *picture.size)


_READERS: dict[bytes, Callable[[bytes], Header]] = {
    b"\x89PNG\r\n\x1a\n": _png,
    b"\xff\xd8\xff": _jpeg,
    b"GIF87a": _gif,
    b"GIF89a": _gif,
    b"BM": partial(_by_pillow, "BMP"),
    b"II*\0": partial(_by_pillow, "TIFF"),
    b"MM\0*": partial(_by_pillow, "TIFF"),
}


def damaged(name: str) -> InvalidInput:
    return InvalidInput(f"The {name} file is damaged or cut short.", parameter="image")
