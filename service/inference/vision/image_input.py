"""The ways to ask an image model, each turned into one question.

A payload is the image file itself, or ``ARRAY``, the shape and the little-endian float32 values of an array.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import struct
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, PayloadTooLarge, UnsupportedContent
from service.inference.manifest import IMAGE_ALIASES, IMAGE_TYPES, Image
from service.inference.predictor import Question
from service.inference.vision.image_header import read_header
from service.large_json import LargeArray, LargeString

MAX_IMAGE_BYTES = 10 * 2**20
FORMS = ("image", "sha256", "input")
SLACK = 0.01
"""How far a normalised value may be beyond black or white, as a part of the way between them: for rounding."""

ARRAY = b"array <f4"
"""What no image file starts with."""

_TO_STANDARD = str.maketrans("-_", "+/")
_DIGEST = re.compile("[0-9A-Fa-f]{64}")
_DATA_URL = re.compile(r"data:[\w/+.;=-]{0,100}?;base64,", re.I | re.A)
_LINE_BREAKS = str.maketrans("", "", "\r\n")


def parse(params: Mapping[str, Any], body: bytes, content_type: str | None, spec: Image, max_pixels: int) -> Question:
    """As Predictor.parse. Nothing is decoded here beyond base64 and the file's header."""
    if content_type in IMAGE_TYPES + IMAGE_ALIASES:
        for name in params:
            raise InvalidInput(f"Unknown parameter {name!r:.80} beside an image.", parameter=name)
        return image_question(body, max_pixels)
    if content_type not in (None, "application/json"):
        raise UnsupportedContent(f"This model reads {', '.join(IMAGE_TYPES)} and JSON, not {content_type}.")
    for name in params:
        if name not in FORMS:
            raise InvalidInput(f"Unknown parameter {name!r:.80}: this model takes {', '.join(FORMS)}.", parameter=name)
    if len(params) != 1:
        raise InvalidInput(f"Give one of {', '.join(FORMS)}.", parameter="image")
    ((name, value),) = params.items()
    if name == "input":
        return array_question(value, spec)
    if name == "image" and isinstance(value, str | LargeString):
        return image_question(decode_base64(value), max_pixels)
    if not isinstance(value, str):
        raise InvalidInput(f"Parameter {name} must be a string.", parameter=name)
    return digest_question(value)


def image_question(file: bytes, max_pixels: int) -> Question:
    """A file whose header is within the limits; raises InvalidInput."""
    if len(file) > MAX_IMAGE_BYTES:
        raise PayloadTooLarge(f"The image is larger than {MAX_IMAGE_BYTES:,} bytes.", parameter="image")
    if not file:
        raise InvalidInput("The image is empty.", parameter="image")
    header = read_header(file)
    if header.pixels > max_pixels:
        size = f"{header.width} × {header.height}"
        raise InvalidInput(f"The image has {size} pixels; at most {max_pixels:,} are read.", parameter="image")
    digest = hashlib.sha256(file)
    return Question(b"i" + digest.digest(), file, digest.hexdigest())


def digest_question(text: str) -> Question:
    """The same question as the file's, without the file."""
    if not _DIGEST.fullmatch(text):
        raise InvalidInput("Parameter sha256 must be 64 hexadecimal digits.", parameter="sha256")
    return Question(b"i" + bytes.fromhex(text), None, text.lower())


def array_question(value: Any, spec: Image) -> Question:
    """A normalised channels × height × width array: nested lists or numpy."""
    shape = (len(spec.mode), *spec.size)
    array = _to_float32(value, shape)
    _check_normalised(array, spec)
    payload = ARRAY + struct.pack("<3I", *shape) + (array + np.float32(0)).astype("<f4").tobytes()  # -0.0 is 0.0
    return Question(b"a" + hashlib.sha256(payload).digest(), payload)


def _check_normalised(array: NDArray[np.float32], spec: Image) -> None:
    """Raises InvalidInput for values that no pixel has once it is normalised: they are none, or not normalised."""
    for channel, mean, std in zip(array, spec.mean, spec.std, strict=True):
        lowest, highest = -(mean + SLACK) / std, (1 - mean + SLACK) / std
        if not lowest <= channel.min() <= channel.max() <= highest:  # nor when one is nan
            raise InvalidInput(
                "Parameter input is an array of normalised pixels, (value / 255 - mean) / std: "
                f"for a mean of {mean} and a std of {std}, of numbers from {lowest:.3f} to {highest:.3f}.",
                parameter="input",
            )


def decode_base64(text: str | LargeString) -> bytes:
    """Of either alphabet, padded or not, with line breaks or without, or as a ``data:`` URL; raises InvalidInput."""
    decoded, rest, first = [], "", True
    for piece in text.pieces() if isinstance(text, LargeString) else ():
        rest += _digits(piece, first)
        first = False
        end = (len(rest) - 1) // 4 * 4  # something is left for the end, where padding may be
        if "=" in rest[:end]:
            raise _no_base64()
        decoded.append(_decode_base64(rest[:end]))
        rest = rest[end:]
    digits = (_digits(text, True) if isinstance(text, str) else rest).removesuffix("=").removesuffix("=")
    return b"".join((*decoded, _decode_base64(digits + "=" * (-len(digits) % 4))))


def _digits(piece: str, first: bool) -> str:
    """Without line breaks, and without what a ``data:`` URL begins with."""
    url = _DATA_URL.match(piece) if first and piece.startswith("data:") else None
    return (piece[url.end() :] if url else piece).translate(_LINE_BREAKS)


def _decode_base64(digits: str) -> bytes:
    try:
        return binascii.a2b_base64(digits.translate(_TO_STANDARD) if digits.isascii() else "?", strict_mode=True)
    except binascii.Error:
        raise _no_base64() from None


def _no_base64() -> InvalidInput:
    return InvalidInput("Parameter image is not base64.", parameter="image")


def array_of(payload: bytes) -> NDArray[np.float32] | None:
    """The client's array, now height × width × channels; None when the payload is an image file."""
    if not payload.startswith(ARRAY):
        return None
    shape = struct.unpack_from("<3I", payload, len(ARRAY))
    array = np.frombuffer(payload, "<f4", offset=len(ARRAY) + 12).reshape(shape)
    return np.ascontiguousarray(array.transpose(1, 2, 0), np.float32)


def _to_float32(value: Any, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Lengths are compared before any element is looked at: outside there may be millions of them."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.shape == shape:
        with np.errstate(over="ignore"):
            return value.astype(np.float32, copy=False)
    channels, height, width = shape
    rows = [row for plane in _sized(value, channels, shape) for row in _sized(plane, height, shape)]
    flat = list(chain.from_iterable(_sized(row, width, shape) for row in rows))
    try:
        if set(map(type, flat)) <= {int, float}:  # numpy would take "1.5", true and null for numbers
            with np.errstate(over="ignore"):  # becomes inf, which is refused
                return np.array(flat, np.float32).reshape(shape)
    except OverflowError:
        pass
    raise InvalidInput("Parameter input must be an array of numbers, channels × height × width.", parameter="input")


def _sized(value: Any, length: int, shape: tuple[int, ...]) -> list[Any] | LargeArray:
    if isinstance(value, list | LargeArray) and len(value) == length:
        return value
    wanted = " × ".join(map(str, shape))
    raise InvalidInput(f"Parameter input must be an array of {wanted} numbers.", parameter="input")
