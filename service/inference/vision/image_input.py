"""The ways to ask an image model, each turned into one question.

A payload is the image file itself, or ``ARRAY``, the shape and the little-endian float32 values of an array.
"""

from __future__ import annotations

import binascii
import hashlib
import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from service.errors import InvalidInput, PayloadTooLarge, UnsupportedContent
from service.inference.manifest import IMAGE_ALIASES, IMAGE_TYPES, Image
from service.inference.predictor import Question, digest_of
from service.inference.vision.images import Array, check_signature
from service.large_json import LargeArray, LargeString

MAX_IMAGE_BYTES = 10 * 2**20
FORMS = ("image", "sha256", "input")
SLACK = 0.01
"""How far a normalised value may be beyond black or white, as a part of the way between them: for rounding."""

ARRAY = b"array <f4"
"""What no image file starts with."""

_TO_STANDARD = str.maketrans("-_", "+/", "\r\n")
_DIGEST = re.compile("[0-9A-Fa-f]{64}")
_DATA_URL = re.compile(r"\Adata:[\w/+.;=-]{0,100}?;base64,", re.I | re.A)


def parse(params: Mapping[str, Any], body: bytes, content_type: str | None, spec: Image) -> Question:
    """As Predictor.parse. Nothing is decoded here beyond base64."""
    is_file = content_type in IMAGE_TYPES + IMAGE_ALIASES
    if not is_file and content_type not in (None, "application/json"):
        raise UnsupportedContent(f"This model reads {', '.join(IMAGE_TYPES)} and JSON, not {content_type}.")
    for name in params:
        if is_file or name not in FORMS:
            takes = "a file and nothing beside it" if is_file else ", ".join(FORMS)
            raise InvalidInput(f"Unknown parameter {name!r:.80}: this model takes {takes}.", parameter=name)
    if is_file:
        return image_question(body)
    if len(params) != 1:
        raise InvalidInput(f"Give one of {', '.join(FORMS)}.", parameter="image")
    ((name, value),) = params.items()
    if name == "input":
        return array_question(value, spec)
    if name == "image" and isinstance(value, str | LargeString):
        return image_question(decode_base64(value))
    if not isinstance(value, str):
        raise InvalidInput(f"Parameter {name} must be a string.", parameter=name)
    if not _DIGEST.fullmatch(value):
        raise InvalidInput("Parameter sha256 must be 64 hexadecimal digits.", parameter="sha256")
    return Question(b"i" + bytes.fromhex(value), None, value.lower())  # as the file's, without the file


def image_question(file: bytes) -> Question:
    """Raises InvalidInput for what is no image at a glance. What else may be wrong with one, decoding says."""
    if len(file) > MAX_IMAGE_BYTES:
        raise PayloadTooLarge(f"The image is larger than {MAX_IMAGE_BYTES:,} bytes.", parameter="image")
    if not file:
        raise InvalidInput("The image is empty.", parameter="image")
    check_signature(file)
    digest = digest_of(file)
    return Question(b"i" + digest, file, digest.hex())


def array_question(value: Any, spec: Image) -> Question:
    """A normalised channels × height × width array: nested lists or numpy."""
    shape = (len(spec.mode), *spec.size)
    array = _to_float32(value, shape)
    _check_normalised(array, spec)
    payload = ARRAY + struct.pack("<3I", *shape) + (array + np.float32(0)).astype("<f4").tobytes()  # -0.0 is 0.0
    return Question(b"a" + hashlib.sha256(payload).digest(), payload)


def _check_normalised(array: Array, spec: Image) -> None:
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
    decoded, rest = [], ""
    try:
        for number, piece in enumerate((text,) if isinstance(text, str) else text.pieces()):
            rest += (piece if number else _DATA_URL.sub("", piece, count=1)).translate(_TO_STANDARD)
            end = (len(rest) - 1) // 4 * 4  # something is left for the end, where padding may be
            if "=" in rest[:end]:
                raise ValueError("padding before the end")
            decoded.append(binascii.a2b_base64(rest[:end], strict_mode=True))
            rest = rest[end:]
        rest = rest.removesuffix("=").removesuffix("=")
        return b"".join((*decoded, binascii.a2b_base64(rest + "=" * (-len(rest) % 4), strict_mode=True)))
    except ValueError:
        raise InvalidInput("Parameter image is not base64.", parameter="image") from None


def array_of(payload: bytes) -> Array | None:
    """The client's array, now height × width × channels; None when the payload is an image file."""
    if not payload.startswith(ARRAY):
        return None
    shape = struct.unpack_from("<3I", payload, len(ARRAY))
    array = np.frombuffer(payload, "<f4", offset=len(ARRAY) + 12).reshape(shape)
    return np.array(array.transpose(1, 2, 0), np.float32, order="C")  # a copy: OpenVINO takes nothing read-only


def _to_float32(value: Any, shape: tuple[int, ...]) -> Array:
    with np.errstate(over="ignore"):  # becomes inf, which is refused
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.shape == shape:
            return value.astype(np.float32, copy=False)
        numbers = _numbers(value, shape)
        with suppress(OverflowError):
            if set(map(type, numbers)) <= {int, float}:  # numpy would take "1.5", true and null for numbers
                return np.array(numbers, np.float32).reshape(shape)
    raise InvalidInput("Parameter input must be an array of numbers, channels × height × width.", parameter="input")


def _numbers(value: Any, shape: tuple[int, ...]) -> list[Any]:
    """In order. Lengths are compared before any element is looked at: there may be millions of them."""
    if not isinstance(value, list | LargeArray) or len(value) != shape[0]:
        wanted = " × ".join(map(str, shape))
        raise InvalidInput(f"Parameter input has no array of {wanted} numbers where it must.", parameter="input")
    return list(value) if len(shape) == 1 else [number for part in value for number in _numbers(part, shape[1:])]
