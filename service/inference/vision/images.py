"""From an image file to the numbers a network is given: the one preprocessing that training and serving share."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import CDLL
from functools import cache
from typing import TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from service.errors import InvalidInput, UnsupportedContent
from service.inference.manifest import Image
from service.inference.predictor import Options

# What Pillow has to say about a stranger's file is no line for our log.
warnings.filterwarnings("ignore", module=r"PIL\.")
PIL.Image.MAX_IMAGE_PIXELS = None  # the operator's bound is kept in open_image

Array: TypeAlias = NDArray[np.float32]
"""An image, normalised, or what a network says to one: probabilities, or other numbers."""

MAX_PIXELS = Options().max_image_pixels

PREPROCESSING_VERSION = 2
"""Part of every fingerprint: raise it with any change that can move a bit of a tensor."""

MAX_READS = 20_000
"""Most pieces that a file is read in: 30 ms of Python. A PNG of 10 MiB in libpng's chunks of 8 KiB has 4,000."""
MAX_JPEG_SCANS = 100
"""A progressive JPEG may repeat its passes over all pixels; ten are usual, and thousands an attack on the CPU."""
FILLER = bytes(range(1, 65))
"""Longer than what a JPEG decoder reads ahead, and without a marker."""
MAX_RESIZED_PIXELS = 16_000_000
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
"""Pixels as Pillow names them. Of others, such as a TIFF's floats, nobody says what is black and what white."""

_SIGNATURE = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF.{4}WEBP|GIF8[79]a|BM|II\*\0|MM\0\*", re.S)
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")
"""What ends a scan: not a stuffed zero, a fill byte, a restart, or a marker that stands for nothing."""
_NO_HUFFMAN_FRAMES = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}


def reuse_memory() -> None:
    """Let the C library keep a few MiB of freed memory. Otherwise the kernel clears new pages for each image, which
    took a third of the reading time. More than these MiB, and the memory of large images, goes back at once."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        library = CDLL(None)
        library.mallopt(-3, 4 * 2**20)  # M_MMAP_THRESHOLD
        library.mallopt(-1, 16 * 2**20)  # M_TRIM_THRESHOLD


def check_signature(file: bytes) -> None:
    """By content: names and media types are only claims. Raises UnsupportedContent."""
    if not _SIGNATURE.match(file):
        raise UnsupportedContent("The image is not a PNG, JPEG, WebP, GIF, BMP or TIFF file.", parameter="image")


def read(file: bytes, spec: Image, max_pixels: int = MAX_PIXELS, out: Array | None = None) -> Array:
    """The file as the network wants it: float32, height × width × channels, normalised; raises InvalidInput."""
    return normalise(read_pixels(file, spec, max_pixels), spec, out)


def read_pixels(file: bytes, spec: Image, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """What the network sees of the file, not yet normalised; raises InvalidInput."""
    return crop(convert(decode(file, max_pixels), spec.mode), spec)


class _File(io.BytesIO):
    """A stranger's file may consist of millions of parts, so the reading stops after ``MAX_READS``."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.reads > MAX_READS:
            raise ValueError("the file has too many parts")
        return super().read(size)


@contextmanager
def _reading() -> Iterator[None]:
    """Pillow raises a dozen types of errors, and each means that the stranger's file is at fault."""
    try:
        yield
    except (MemoryError, InvalidInput):
        raise
    except Exception as error:
        raise InvalidInput("The image file is damaged or cut short.", parameter="image") from error


def open_image(file: bytes, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """The file's own statement of format, size and frames. No pixel is decoded yet. Raises InvalidInput."""
    check_signature(file)
    with _reading():
        picture = PIL.Image.open(_File(file), formats=("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"))
    # Pillow takes seconds for the pixels of a BMP that is not raw (0), nor raw with masks (3).
    if picture.format == "BMP" and picture.info.get("compression", 0) not in (0, 3):
        raise UnsupportedContent("The BMP file is compressed.", parameter="image")
    # Of a GIF the first frame is read, and to count the others takes time.
    if picture.format in ("PNG", "WEBP") and getattr(picture, "is_animated", False):
        raise InvalidInput("The image is animated; one frame is expected.", parameter="image")
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width} × {picture.height}"
        raise InvalidInput(f"The image has {size} pixels; at most {max_pixels:,} are read.", parameter="image")
    return picture


def decode(file: bytes, max_pixels: int = MAX_PIXELS) -> PIL.Image.Image:
    """The picture, of several the first, upright and in whatever mode the file has; raises InvalidInput."""
    picture = open_image(file, max_pixels)
    with _reading():
        scans = ends_of_scans(file) if file.startswith(b"\xff\xd8") else []
        picture.load()
        if not _is_complete(file, picture, scans):
            raise ValueError("the decoder has made up the last pixels")
    with suppress(Exception):  # damaged EXIF data does not spoil the picture
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _is_complete(file: bytes, picture: PIL.Image.Image, scans: list[int]) -> bool:
    """Decoders say nothing of missing pixels: libjpeg leaves them grey, and Pillow leaves those of a PNG zero.

    Where the last pixels look like that, the file is decoded again with another filling, and missing pixels differ.
    """
    width, height = picture.size
    if picture.format == "PNG" and b"IEND" not in file:
        return False
    if picture.format == "PNG":
        # An interlaced picture's last row need not be the last to come.
        if not picture.info.get("interlace") and picture.crop((0, height - 1, width, height)).tobytes().strip(b"\0"):
            return True
        again = PIL.Image.open(io.BytesIO(file), formats=("PNG",))
        again.im = PIL.Image.new(again.mode, again.size, 1).im
    elif scans:
        last = picture.crop((width - 1, height - 1, width, height))
        brightness = last.getchannel("K") if last.mode == "CMYK" else last.convert("L")
        # Near to grey, not exactly: where colours are subsampled, neighbours change the pixel.
        if abs(brightness.tobytes()[0] - 127.5) > 3:
            return True
        pieces = (file[start:end] for start, end in zip([0, *scans], [*scans, len(file)], strict=True))
        again = PIL.Image.open(io.BytesIO(FILLER.join(pieces)), formats=("JPEG",))
    else:
        return True
    again.load()
    strips = ((0, top, width, min(height, top + 64)) for top in range(0, height, 64))  # a copy of the whole is large
    return all(picture.crop(strip).tobytes() == again.crop(strip).tobytes() for strip in strips)


def ends_of_scans(file: bytes) -> list[int]:
    """Where the data of each scan of a JPEG end, as libjpeg finds them; none if they are not coded by Huffman's method.
    Only up to the end of the image, since a phone may append a video. Raises InvalidInput for too many."""
    ends: list[int] = []
    huffman, start, in_scan = True, 2, False
    for _ in range(MAX_READS):
        found = _MARKER.search(file, start)
        at = len(file) if found is None else found.start()
        if in_scan:
            ends.append(at)
        if len(ends) > MAX_JPEG_SCANS:
            raise InvalidInput(f"The JPEG file has more than {MAX_JPEG_SCANS} scans.", parameter="image")
        if found is None or file[at + 1] == 0xD9:  # the end of the image
            return ends if huffman else []
        huffman = huffman and file[at + 1] not in _NO_HUFFMAN_FRAMES
        in_scan = file[at + 1] == 0xDA
        start = at + 2 + max(2, int.from_bytes(file[at + 2 : at + 4], "big"))
    raise InvalidInput(f"The JPEG file has more than {MAX_READS:,} segments.", parameter="image")


def convert(picture: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    """To 8-bit grey or colour. Transparent parts become white, as on paper; 16-bit grey keeps its high byte."""
    if picture.mode not in MODES and (picture.mode, picture.format) != ("I", "PNG"):
        raise UnsupportedContent(f"Pixels of the kind {picture.mode} are not read.", parameter="image")
    if picture.mode.startswith("I"):  # Pillow's own conversion would clip instead of scale
        picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        white = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(white, picture.convert("RGBA"))
    return picture if picture.mode == mode else picture.convert(mode)


def crop(picture: PIL.Image.Image, spec: Image) -> NDArray[np.uint8]:
    """height × width × channels, resized and cut as ``place`` says, which may raise InvalidInput."""
    height, width = spec.size
    resized, (left, top) = place(picture.size, spec)
    picture = picture.resize(resized, PIL.Image.Resampling[spec.interpolation.upper()])
    if picture.size != (width, height):
        picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture).reshape(height, width, -1)


def place(size: tuple[int, int], spec: Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """The width and height that a picture of this size is resized to, and the left and top of the cut, as torchvision
    does: the shorter side becomes ``spec.resize`` long. Raises InvalidInput if the longer side became too long."""
    height, width = spec.size
    if spec.resize is None:
        return (width, height), (0, 0)
    short, long = sorted(size)
    if spec.resize * spec.resize * long // short > MAX_RESIZED_PIXELS:
        raise InvalidInput("The image is too long and narrow.", parameter="image")
    across, down = (spec.resize * side // short for side in size)
    return (across, down), (round((across - width) / 2), round((down - height) / 2))


def normalise(pixels: NDArray[np.uint8], spec: Image, out: Array | None = None) -> Array:
    """Scaled to 0…1, less the mean, over the standard deviation, channel by channel, into ``out`` if it is given. A GPU
    does just the same."""
    height, width, channels = pixels.shape
    image = np.empty(pixels.shape, np.float32) if out is None else out
    # Row by row, not pixel by pixel: numpy's loops are as long as the last axis, and this is four times as fast.
    rows = image.reshape(height, width * channels)
    np.divide(pixels.reshape(rows.shape), np.float32(255), out=rows)
    rows -= _row(spec.mean, width)
    rows /= _row(spec.std, width)
    return image


@cache
def _row(values: tuple[float, ...], width: int) -> Array:
    return np.tile(np.asarray(values, np.float32), width)
