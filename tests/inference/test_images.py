"""What strangers call images: right ones become the right pixels, and all others a cheap refusal."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags
from torchvision.models import ResNet18_Weights, ResNet50_Weights

from service.errors import InvalidInput, UnsupportedContent
from service.inference.manifest import Image
from service.inference.predictor import Options
from service.inference.vision.image_input import image_question
from service.inference.vision.images import MAX_JPEG_SCANS, MAX_READS, convert, decode, open_image, read
from tests.inference.pictures import (
    animation,
    bmp,
    encode,
    gif,
    interlaced_png,
    jpeg_of_scans,
    jpeg_of_size,
    picture,
    png,
    webp_of_size,
)

SPEC = Image(architecture="resnet18", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
IMAGENET = SPEC.model_copy(update={"size": (224, 224), "resize": 256})
FORMATS = {"PNG": {}, "JPEG": {"quality": 95}, "WEBP": {"lossless": True}}
FILES = {kind: encode(picture(), kind, **how) for kind, how in FORMATS.items()}
FILES |= {kind: encode(picture(), kind) for kind in ("GIF", "BMP", "TIFF")}
SEVERAL_TIMES_A_TENTH = 0.5


def pixel(file: bytes, mode: str = "RGB") -> tuple[int, ...]:
    """The colour in the middle of an image of one colour."""
    found = convert(decode(file), mode)
    value = found.getpixel((found.width // 2, found.height // 2))
    return value if isinstance(value, tuple) else (int(value or 0),)


def transparency(colour: bytes) -> tuple[bytes, bytes]:
    return b"tRNS", colour


@pytest.mark.parametrize(
    ("file", "status"),
    [
        pytest.param(png(20_000, 20_000, 1, 0, bytes(2501 * 20_000)), 422, id="a PNG bomb"),
        pytest.param(png(2**31 - 1, 2**31 - 1, 8, 2, b""), 422, id="the largest PNG there can be"),
        pytest.param(png(0, 8, 8, 0, b""), 422, id="a PNG without width"),
        pytest.param(png(8, 8, 8, 0, bytes(72), *[(b"tEXt", b"")] * 800_000), 422, id="a PNG of 800,000 chunks"),
        pytest.param(jpeg_of_size(65_535, 65_535), 422, id="a JPEG bomb"),
        pytest.param(jpeg_of_scans(20_000), 422, id="a JPEG of 20,000 scans"),
        pytest.param(b"\xff\xd8" + b"\xff\xe5\x00\x02" * 2_000_000, 422, id="a JPEG of 2,000,000 segments"),
        pytest.param(webp_of_size(16_384, 16_384), 422, id="a WebP bomb"),
        pytest.param(gif(0)[:-1] + b"!\xfe\0" * 2_000_000, 422, id="a GIF of 2,000,000 comments"),
        pytest.param(gif(1)[:-4], 422, id="a truncated GIF"),
        pytest.param(b"GIF89a" + bytes(99), 422, id="a GIF without a picture"),
        pytest.param(b"GIF89a", 422, id="only the signature of a GIF"),
        pytest.param(encode(picture(), "BMP")[:-99], 422, id="a truncated BMP"),
        pytest.param(bmp(compression=1), 415, id="a BMP that takes seconds to unpack"),
        pytest.param(encode(picture(), "TIFF")[:-99], 422, id="a truncated TIFF"),
        pytest.param(b"II*\0\xff\xff\xff\xff", 422, id="only the signature of a TIFF"),
        pytest.param(animation("PNG"), 422, id="an animated PNG"),
        pytest.param(animation("WEBP"), 422, id="an animated WebP"),
        pytest.param(FILES["PNG"][:-20], 422, id="a truncated PNG"),
        pytest.param(jpeg_of_size(4000, 4000), 422, id="a JPEG of a 4000th of its pixels"),
        pytest.param(jpeg_of_size(4000, 4000, progressive=True), 422, id="a progressive JPEG of as few"),
        pytest.param(png(4000, 4000, 8, 0, bytes(4001 * 64)), 422, id="a PNG of a sixtieth of its rows"),
        pytest.param(interlaced_png(4000, 4000, 8, 0, bytes(2**20)), 422, id="an interlaced PNG of as few"),
        pytest.param(FILES["JPEG"][:-20], 422, id="a truncated JPEG"),
        pytest.param(FILES["WEBP"][:-20], 422, id="a truncated WebP"),
        pytest.param(b"\x89PNG\r\n\x1a\n", 422, id="only the signature of a PNG"),
        pytest.param(b"\xff\xd8\xff\xd9", 422, id="an empty JPEG"),
        pytest.param(b"RIFF\x04\0\0\0WEBP", 422, id="an empty WebP"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415, id="an SVG"),
        pytest.param(b"not an image", 415, id="a text"),
    ],
)
def test_a_file_that_is_no_single_image_of_bearable_size_is_refused_at_once(file: bytes, status: int) -> None:
    started = time.process_time()
    with pytest.raises(InvalidInput) as refused:
        decode(image_question(file).payload or b"")
    assert time.process_time() - started < SEVERAL_TIMES_A_TENTH
    assert refused.value.status == status
    assert isinstance(refused.value, UnsupportedContent) == (status == 415)
    assert refused.value.parameter == "image"


def test_an_image_too_narrow_to_be_resized_within_the_limit_is_refused() -> None:
    file = encode(PIL.Image.new("L", (4000, 4)))
    with pytest.raises(InvalidInput, match="narrow"):
        read(file, IMAGENET)
    assert read(file, SPEC).shape == (32, 32, 3)


def test_a_phones_48_megapixels_are_read_and_the_operator_may_set_another_bound() -> None:
    file = encode(PIL.Image.new("1", (8000, 6000)))
    assert decode(file, Options().max_image_pixels).size == (8000, 6000)
    with pytest.raises(InvalidInput, match="8000 × 6000 pixels; at most 47,999,999 are read"):
        decode(file, 47_999_999)


@pytest.mark.parametrize(
    "file",
    [
        encode(picture(), "BMP"),
        encode(picture(), "TIFF"),
        encode(picture(), "TIFF", compression="tiff_lzw"),
        encode(picture(), "TIFF", save_all=True, append_images=[PIL.Image.new("RGB", (90, 90), "red")]),
        encode(picture(), "TIFF", big_endian=True),
    ],
)
def test_a_bmp_and_a_tiff_have_the_pixels_of_the_same_png(file: bytes) -> None:
    assert np.array_equal(read(file, SPEC), read(FILES["PNG"], SPEC))


@pytest.mark.parametrize("kind", ["GIF87a", "GIF89a"])
def test_of_an_animated_gif_the_first_frame_is_seen(kind: str) -> None:
    first = picture().quantize(64)
    comment = {"comment": b"," * 600} if kind == "GIF89a" else {}
    file = encode(first, "GIF", save_all=True, append_images=[PIL.Image.new("P", first.size)], **comment)
    assert decode(file).size == (24, 16)
    assert np.array_equal(read(kind.encode() + file[6:], SPEC), read(encode(first.convert("RGB")), SPEC))


def test_the_parts_that_are_read_are_more_than_an_honest_file_has() -> None:
    chunks = [(b"tEXt", b"k\0v")] * (MAX_READS // 5)
    assert decode(png(8, 8, 8, 0, bytes(72), *chunks)).size == (8, 8)
    assert encode(picture((999, 999)), "JPEG", progressive=True).count(b"\xff\xda") < MAX_JPEG_SCANS / 5


OPENED = {
    **{kind: (kind, FILES[kind]) for kind in FILES},
    "lossy WebP": ("WEBP", encode(picture(), "WEBP", lossless=False)),
    "extended WebP": ("WEBP", encode(picture(), "WEBP", exact=True, xmp=b"<x/>")),
    "JPEG behind segments": ("JPEG", encode(picture(), "JPEG", progressive=True, comment=b"\xff\xc0" * 99)),
    "JPEG with fill bytes": ("JPEG", FILES["JPEG"][:2] + b"\xff\xff\xff" + FILES["JPEG"][2:]),
}


@pytest.mark.parametrize("name", OPENED)
def test_format_and_size_are_known_without_decoding(name: str) -> None:
    kind, file = OPENED[name]
    opened = open_image(file)
    assert (opened.format, opened.size) == (kind, (24, 16))


@pytest.mark.parametrize(
    ("file", "colour"),
    [
        pytest.param(encode(PIL.Image.new("1", (8, 8), 1)), (255, 255, 255), id="1 bit"),
        pytest.param(encode(PIL.Image.new("L", (8, 8), 100)), (100, 100, 100), id="grey"),
        pytest.param(png(8, 8, 16, 0, (b"\0" + b"\x80\xff" * 8) * 8), (128, 128, 128), id="16-bit grey"),
        pytest.param(png(8, 8, 16, 2, (b"\0" + b"\x80\xff\x10\xff\x20\xff" * 8) * 8), (128, 16, 32), id="16-bit RGB"),
        pytest.param(encode(PIL.Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4)), (1, 2, 3), id="palette"),
        pytest.param(
            encode(PIL.Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4), transparency=0),
            (255, 255, 255),
            id="clear palette",
        ),
        pytest.param(
            png(8, 8, 8, 0, (b"\0" + b"\x64" * 8) * 8, transparency(b"\0\x64")), (255, 255, 255), id="clear grey"
        ),
        pytest.param(encode(PIL.Image.new("LA", (8, 8), (100, 255))), (100, 100, 100), id="opaque grey"),
        pytest.param(encode(PIL.Image.new("LA", (8, 8), (0, 128))), (127, 127, 127), id="half clear grey"),
        pytest.param(encode(PIL.Image.new("RGBA", (8, 8), (9, 8, 7, 255))), (9, 8, 7), id="opaque RGBA"),
        pytest.param(encode(PIL.Image.new("RGBA", (8, 8), (9, 8, 7, 0))), (255, 255, 255), id="clear RGBA"),
        pytest.param(
            encode(PIL.Image.new("RGBA", (8, 8), (9, 8, 7, 0)), "WEBP", lossless=True, exact=True),
            (255, 255, 255),
            id="clear WebP",
        ),
        pytest.param(encode(PIL.Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), (255, 0, 0), id="CMYK"),
        pytest.param(encode(PIL.Image.new("L", (8, 8), 100), "JPEG"), (100, 100, 100), id="grey JPEG"),
    ],
)
def test_every_kind_of_pixel_gets_its_colour(file: bytes, colour: tuple[int, ...]) -> None:
    assert pixel(file) == colour
    assert pixel(file, "L") == pytest.approx((0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2],), abs=1)


CORNERS = {1: ("TL", "TR"), 2: ("TR", "TL"), 3: ("BR", "BL"), 4: ("BL", "BR")} | {
    5: ("TL", "BL"), 6: ("TR", "BR"), 7: ("BR", "TR"), 8: ("BL", "TL")
}  # fmt: skip
"""EXIF orientation -> where the file's upper left and upper right corner are to be seen."""


@pytest.mark.parametrize("orientation", CORNERS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    stored = PIL.Image.new("L", (48, 32))
    stored.paste(255, (0, 0, 8, 8))
    stored.paste(128, (40, 0, 48, 8))
    exif = PIL.Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    seen = decode(encode(stored, kind, exif=exif, **FORMATS[kind])).convert("L")
    width, height = seen.size
    assert (width, height) == ((48, 32) if orientation < 5 else (32, 48))
    at = {"TL": (4, 4), "TR": (width - 4, 4), "BL": (4, height - 4), "BR": (width - 4, height - 4)}
    first, second = CORNERS[orientation]
    assert [seen.getpixel(at[first]), seen.getpixel(at[second])] == pytest.approx([255, 128], abs=3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_does_not_spoil_the_picture() -> None:
    file = encode(picture(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(read(file, SPEC), read(FILES["PNG"], SPEC))


LOUD = """
import sys
from service.inference.vision.images import decode
decode(open(sys.argv[1], "rb").read())
"""


def test_a_damaged_file_leaves_no_lines_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(encode(picture(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    done = subprocess.run([sys.executable, "-c", LOUD, tmp_path / "file"], capture_output=True, check=True)
    assert done.stdout + done.stderr == b""


def test_a_phones_jpeg_with_a_second_picture_inside_is_read_as_its_first() -> None:
    file = encode(picture(), "MPO", save_all=True, append_images=[PIL.Image.new("RGB", (24, 16), "red")])
    assert np.allclose(read(file, SPEC), read(encode(picture(), "JPEG"), SPEC))


@pytest.mark.parametrize("weights", [ResNet18_Weights.DEFAULT, ResNet50_Weights.DEFAULT])
@pytest.mark.parametrize("size", [(300, 200), (257, 641), (224, 224), (90, 40), (1000, 333)])
def test_preprocessing_equals_torchvisions_own_to_the_last_bit(
    weights: ResNet18_Weights, size: tuple[int, int]
) -> None:
    steps = weights.transforms()
    (crop,), (resize,) = steps.crop_size, steps.resize_size
    spec = SPEC.model_copy(
        update={"size": (crop, crop), "resize": resize, "mean": tuple(steps.mean), "std": tuple(steps.std)}
    )
    ours = read(encode(picture(size)), spec).transpose(2, 0, 1)
    assert np.array_equal(ours, steps(picture(size)).numpy())


def test_a_grey_model_gets_one_channel() -> None:
    spec = Image(architecture="resnet18", size=(8, 4), mode="L", mean=(0.5,), std=(0.25,))
    assert read(encode(PIL.Image.new("RGB", (8, 8), "white")), spec).tolist() == [[[2.0]] * 4] * 8


@settings(max_examples=300)
@given(
    kind=st.sampled_from(sorted(FILES)),
    cut=st.integers(0, 200),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=5),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(
    kind: str, cut: int, flips: list[tuple[float, int]]
) -> None:
    file = bytearray(FILES[kind])
    for where, bits in flips:
        file[int(where * len(file))] ^= bits
    try:
        assert read(bytes(file[: len(file) - cut]), SPEC).shape == (32, 32, 3)
    except InvalidInput as refused:
        assert refused.parameter == "image"
