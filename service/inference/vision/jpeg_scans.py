"""Where the scans of a JPEG are: found as libjpeg finds them, so that none can be hidden from us."""

from __future__ import annotations

import re
from dataclasses import dataclass

from service.inference.vision.image_header import MAX_PARTS, damaged

_OTHER_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9

_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""What ends a scan: not a stuffed zero, a fill byte, a restart, or a marker that stands for nothing."""


@dataclass(frozen=True, slots=True)
class Scans:
    """``ends``: after the last byte of each scan's data. ``huffman``: whether that is how they are coded."""

    ends: list[int]
    huffman: bool


def find_scans(file: bytes, most: int) -> Scans:
    """Up to the end of the image, and at most ``most`` + 1; raises InvalidInput. A phone may append a video."""
    ends: list[int] = []
    huffman, start, in_scan = True, 2, False
    for _ in range(MAX_PARTS):
        found = _MARKER.search(file, start)
        at = len(file) if found is None else found.start()
        if in_scan:
            ends.append(at)
        if found is None or len(ends) > most or file[at + 1] == _END_OF_IMAGE:
            return Scans(ends, huffman)
        huffman = huffman and file[at + 1] not in _OTHER_FRAMES
        in_scan = file[at + 1] == _START_OF_SCAN
        start = at + 2 + max(2, int.from_bytes(file[at + 2 : at + 4], "big"))
    raise damaged("JPEG")
