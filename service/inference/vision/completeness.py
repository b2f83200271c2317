"""Whether a file has all the pixels that its header claims. Decoders fill in what is missing, and say nothing.

A file that is complete is looked at twice only where its last pixels look filled in; nothing here changes a pixel.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable
from typing import Any

import PIL.Image

from service.inference.vision.image_header import Header, png_chunks
from service.inference.vision.jpeg_scans import Scans

FILLER = bytes(range(1, 65))
"""Longer than what a decoder reads ahead, and without a marker."""

STRIP_ROWS = 64
STEP = 2**16
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and the steps between them, of each pass over an interlaced picture (PNG, 8.2)."""


def jpeg_is_complete(file: bytes, scans: Scans, picture: PIL.Image.Image) -> bool:
    """libjpeg leaves grey what it has no data for. Given other data there, it makes another picture of them."""
    if not scans.huffman or not _is_middling(picture.getpixel((picture.width - 1, picture.height - 1))):
        return True
    pieces = [file[start:end] for start, end in zip([0, *scans.ends], [*scans.ends, len(file)], strict=True)]
    filled = PIL.Image.open(io.BytesIO(FILLER.join(pieces)), formats=("JPEG",))
    filled.load()
    return _are_alike(picture, filled)


def png_is_complete(file: bytes, header: Header, picture: PIL.Image.Image) -> bool:
    """Pillow leaves zero what it has no data for, and an interlaced picture's last row need not be the last to come."""
    depth, colour, _, _, interlaced = file[24:29]
    last = picture.crop((0, picture.height - 1, picture.width, picture.height))
    if not interlaced and last.tobytes().strip(b"\0"):
        return True
    bits = depth * _CHANNELS[colour]
    size = 0
    for left, top, across, down in _ADAM7 if interlaced else _WHOLE:
        width, height = -((left - header.width) // across), -((top - header.height) // down)
        if width > 0:
            size += max(0, height) * (1 + (width * bits + 7) // 8)
    data = (file[start : start + length] for kind, start, length in png_chunks(file) if kind == b"IDAT")
    return _inflates_to(data, size)


def _is_middling(pixel: Any) -> bool:
    """Near to grey, as libjpeg fills it. Not exactly: where colours are subsampled, neighbours change the pixel."""
    if not isinstance(pixel, tuple):
        brightness = pixel
    elif len(pixel) == 3:
        brightness = 0.299 * pixel[0] + 0.587 * pixel[1] + 0.114 * pixel[2]
    else:
        brightness = pixel[3]
    return bool(abs(brightness - 127.5) <= 3)


def _are_alike(one: PIL.Image.Image, other: PIL.Image.Image) -> bool:
    """Strip by strip: a copy of a whole picture is large."""
    strips = ((0, top, one.width, min(one.height, top + STRIP_ROWS)) for top in range(0, one.height, STRIP_ROWS))
    return all(one.crop(strip).tobytes() == other.crop(strip).tobytes() for strip in strips)


def _inflates_to(data: Iterable[bytes], size: int) -> bool:
    """Whether the zlib stream has at least so many bytes."""
    inflater = zlib.decompressobj()
    for piece in data:
        while piece and size > 0 and not inflater.eof:
            size -= len(inflater.decompress(piece, STEP))
            piece = inflater.unconsumed_tail
    return size <= len(inflater.flush())
