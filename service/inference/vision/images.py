"""From an image file to the numbers a network is given: the one preprocessing that training and serving share."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from ctypes import CDLL

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps

from service.errors import InvalidInput, UnsupportedContent
from service.inference.manifest import Image
from service.inference.vision.completeness import jpeg_is_complete, png_is_complete
from service.inference.vision.image_header import damaged, read_header
from service.inference.vision.jpeg_scans import find_scans

# What Pillow has to say about a stranger's file is no line for our log.
warnings.filterwarnings("ignore", module=r"PIL\.")
PIL.Image.MAX_IMAGE_PIXELS = None  # the operator's bound is kept where an image is parsed

PREPROCESSING_VERSION = 2
"""Part of every fingerprint: raise it with any change that can move a bit of a tensor."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h names them
MAX_RESIZED_PIXELS = 16_000_000
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16B", "I;16L"})
"""Pixels as Pillow names them. Of others, such as a TIFF's floats, nobody says what is black and what white."""

MAX_JPEG_SCANS = 100
"""A progressive JPEG may repeat its passes over all pixels; ten are usual, and thousands an attack on the CPU."""


def reuse_memory() -> None:
    """Let the C library keep a few MiB of freed memory. Otherwise the kernel clears new pages for each image, which
    took a third of the reading time. More than these MiB, and the memory of large images, goes back at once."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        library = CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 4 * 2**20)
        library.mallopt(_TRIM_THRESHOLD, 16 * 2**20)


def read(file: bytes, spec: Image) -> NDArray[np.float32]:
    """The file as the network wants it: float32, height × width × channels, normalised; raises InvalidInput."""
    return normalise(read_pixels(file, spec), spec)


def read_pixels(file: bytes, spec: Image) -> NDArray[np.uint8]:
    """What the network sees of the file, not yet normalised; raises InvalidInput."""
    return crop(convert(decode(file), spec.mode), spec)


def decode(file: bytes) -> PIL.Image.Image:
    """The picture, of several the first, upright and in whatever mode the file has; raises InvalidInput."""
    header = read_header(file)
    scans = find_scans(file, MAX_JPEG_SCANS) if header.format == "JPEG" else None
    if scans is not None and len(scans.ends) > MAX_JPEG_SCANS:
        raise InvalidInput(f"The JPEG file has more than {MAX_JPEG_SCANS} scans.", parameter="image")
    try:
        picture = PIL.Image.open(io.BytesIO(file), formats=(header.format,))
        if picture.size != (header.width, header.height):
            raise ValueError("the decoder reads another size than the header says")
        picture.load()
        if scans is not None and not jpeg_is_complete(file, scans, picture):
            raise ValueError("the decoder has made up the last pixels")
        if header.format == "PNG" and not png_is_complete(file, header, picture):
            raise ValueError("the decoder has made up the last pixels")
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises a dozen types, and each means that the stranger's file is at fault
        raise damaged(header.format) from error
    with suppress(Exception):  # damaged EXIF data does not spoil the picture
        ImageOps.exif_transpose(picture, in_place=True)
    return picture


def convert(picture: PIL.Image.Image, mode: str) -> PIL.Image.Image:
    """To 8-bit grey or colour. Transparent parts become white, as on paper; 16-bit grey keeps its high byte."""
    if picture.mode not in MODES and (picture.mode, picture.format) != ("I", "PNG"):
        raise UnsupportedContent(f"Pixels of the kind {picture.mode} are not read.", parameter="image")
    if picture.mode.startswith("I"):  # Pillow's own conversion would clip instead of scale
        picture = PIL.Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = PIL.Image.new("RGBA", picture.size, "white")
        picture = PIL.Image.alpha_composite(white, picture)
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
    """The size that a picture of this size (both as width, height) is resized to, and the left and top of the cut.

    The shorter side becomes ``spec.resize`` long and the centre is cut out, as torchvision does. Raises InvalidInput
    when the longer side would become too long.
    """
    height, width = spec.size
    if spec.resize is None:
        return (width, height), (0, 0)
    short, long = sorted(size)
    if spec.resize * spec.resize * long // short > MAX_RESIZED_PIXELS:
        raise InvalidInput("The image is too long and narrow.", parameter="image")
    across, down = (spec.resize * side // short for side in size)
    return (across, down), (round((across - width) / 2), round((down - height) / 2))


def normalise(pixels: NDArray[np.uint8], spec: Image) -> NDArray[np.float32]:
    """Scaled to 0…1, less the mean, over the standard deviation, channel by channel. A GPU does just the same."""
    height, width, channels = pixels.shape
    # Row by row, not pixel by pixel: numpy's loops are as long as the last axis, and this is four times as fast.
    rows = pixels.reshape(height, width * channels).astype(np.float32)
    rows /= np.float32(255)
    rows -= np.tile(np.asarray(spec.mean, np.float32), width)
    rows /= np.tile(np.asarray(spec.std, np.float32), width)
    return rows.reshape(pixels.shape)
