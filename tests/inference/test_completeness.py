"""Files that lack pixels are refused, whole ones are read whatever they end in, and no scan of a JPEG is hidden."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from service.errors import InvalidInput
from service.inference.manifest import Image
from service.inference.vision.images import decode, read_pixels
from tests.inference.pictures import cut_jpeg, encode, interlaced_png, jpeg_of_scans, picture, png

SPEC = Image(architecture="resnet18", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

KINDS_OF_JPEG = [
    {},
    {"progressive": True},
    {"mode": "L"},
    {"mode": "L", "progressive": True},
    {"mode": "CMYK"},
    {"subsampling": "4:4:4"},
    {"restart_marker_blocks": 3},
    {"optimize": True, "quality": 20},
    {"keep_rgb": True},
]


@pytest.mark.parametrize("how", KINDS_OF_JPEG, ids=repr)
@pytest.mark.parametrize("size", [(64, 64), (200, 120), (49, 65)])
def test_a_jpeg_whose_data_end_before_its_picture_is_refused(size: tuple[int, int], how: dict[str, Any]) -> None:
    assert decode(cut_jpeg(size, 1, **how)).size == size
    for share in (0.02, 0.3, 0.7):
        with pytest.raises(InvalidInput, match="cut short"):
            decode(cut_jpeg(size, share, **how))


@pytest.mark.parametrize("how", KINDS_OF_JPEG, ids=repr)
def test_a_whole_jpeg_that_ends_in_grey_is_read(how: dict[str, Any]) -> None:
    """That is what a decoder shows where data are missing."""
    for size in ((8, 8), (64, 64), (99, 61)):
        for grey in (127, 128):
            for scene in (PIL.Image.new("RGB", size, (grey,) * 3), picture(size)):
                scene.paste((grey,) * 3, (0, size[1] // 2, *size))
                file = encode(scene.convert(how.get("mode", "RGB")), "JPEG", **{k: how[k] for k in how if k != "mode"})
                assert decode(file).size == size


DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Of each colour type there is."""


@pytest.mark.parametrize(("colour", "depth"), [(colour, depth) for colour in DEPTHS for depth in DEPTHS[colour]])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (16, 9), (37, 2)])
def test_a_black_png_is_read_when_it_has_all_its_rows_and_no_fewer(
    size: tuple[int, int], depth: int, colour: int
) -> None:
    """Black, for that is what a decoder shows where rows are missing."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    palette = [(b"PLTE", bytes(3))] if colour == 3 else []
    row = 1 + -(-size[0] * depth * channels // 8)
    assert decode(png(*size, depth, colour, bytes(size[1] * row), *palette)).size == size
    for missing in (1, row):
        with pytest.raises(InvalidInput, match="cut short"):
            decode(png(*size, depth, colour, bytes(size[1] * row - missing), *palette))


def test_an_interlaced_png_is_read_when_it_has_all_its_passes_and_no_fewer() -> None:
    for width, height, passes in ((8, 8, [(1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)]), (1, 1, [(1, 1)])):
        rows = bytes(sum((1 + across) * down for across, down in passes))
        assert decode(interlaced_png(width, height, 8, 0, rows)).size == (width, height)
        for missing in (1, 1 + width):
            with pytest.raises(InvalidInput, match="cut short"):
                decode(interlaced_png(width, height, 8, 0, rows[:-missing]))


@pytest.mark.parametrize("how", KINDS_OF_JPEG, ids=repr)
def test_what_a_phone_appends_to_a_jpeg_changes_nothing(how: dict[str, Any]) -> None:
    file = cut_jpeg((64, 64), 1, **how)
    appended = file + b"\xff\xda" * 10_000 + jpeg_of_scans(20_000)
    assert np.array_equal(read_pixels(appended, SPEC), read_pixels(file, SPEC))
    thumbnail = b"\xff\xe2" + struct.pack(">H", 60_002) + b"\xff\xda" * 30_000
    assert np.array_equal(read_pixels(file[:2] + thumbnail + file[2:], SPEC), read_pixels(file, SPEC))


HIDDEN = {
    "behind the end of another picture": lambda scan: b"\xff\xe3\x00\x04\xff\xd9" + scan,
    "behind a restart": lambda scan: b"\xff\xd0" + scan,
    "behind fill bytes": lambda scan: b"\xff\xff\xff" + scan,
    "in what has no length": lambda scan: b"\xff\x01" + struct.pack(">H", len(scan) + 2) + scan,
    "in what is reserved": lambda scan: b"\xff\x02" + struct.pack(">H", len(scan) + 2) + scan,
    "behind a segment of no length": lambda scan: b"\xff\xe4\0\0" + scan,
    "behind garbage": lambda scan: b"abc\xff\0" + scan,
}


@pytest.mark.parametrize("hide", HIDDEN.values(), ids=HIDDEN)
def test_no_scan_is_hidden_from_who_counts_them(hide: Callable[[bytes], bytes]) -> None:
    file = encode(picture(), "JPEG", progressive=True)
    first = file.index(b"\xff\xda")
    second = file.index(b"\xff\xda", first + 2)
    many = file[:first] + hide(file[first:second]) * 1000 + file[second:]
    with pytest.raises(InvalidInput, match=r"scans|damaged"):
        decode(many)
