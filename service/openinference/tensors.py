"""Tensors of the Open Inference Protocol: JSON and its binary extension, in and out."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from service.errors import MalformedRequest
from service.http.endpoint import load_object
from service.inference.manifest import reason
from service.large_json import ARRAY, LargeArray, LargeString
from service.openinference.schemas import InferRequest, InputTensor, RequestedOutput

Model = TypeVar("Model", bound=BaseModel)

INTEGERS = {
    f"{sign}INT{bits}": f"<{kind}{bits // 8}" for sign, kind in (("U", "u"), ("", "i")) for bits in (8, 16, 32, 64)
}
FLOATS = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}
BOOLEANS = {"BOOL": "?"}
DTYPES = {name: np.dtype(code) for name, code in (INTEGERS | FLOATS | BOOLEANS).items()}
JSON_TYPES = {name: {int, float, type(None)} for name in FLOATS} | {"BOOL": {bool}}
"""The Python types that a datatype's values have in JSON, where these are not just int. null is NaN."""
BF16, BYTES = "BF16", "BYTES"
"""BF16 is the upper half of a float32; NumPy has no such type. BYTES are strings of any bytes."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """``values``: an array of ``shape``, or for BYTES a list in row-major order: of strings from JSON, of bytes
    from binary."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Inference:
    """A request. ``outputs`` None: all of them, in binary if ``binary``."""

    id: str | None
    inputs: list[Tensor]
    outputs: list[RequestedOutput] | None
    binary: bool


def read_inference(body: bytes, header_length: bytes | None, max_rows: float = math.inf) -> Inference:
    """Raises MalformedRequest, or NotSupported for shared memory. ``header_length``: of the JSON before the tensors."""
    length = _header_length(body, header_length)
    request = load_as(InferRequest, body[:length])
    binary = memoryview(body)[length:]
    inputs = []
    for given in request.inputs:
        tensor, used = _read_tensor(given, binary, max_rows)
        inputs.append(tensor)
        binary = binary[used:]
    if len(binary):
        raise MalformedRequest(f"The body has {len(binary)} bytes that belong to no input.")
    for tensors in (inputs, request.outputs or ()):
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise MalformedRequest("An input or an output is given twice.")
    binary_outputs = request.parameters is not None and bool(request.parameters.binary_data_output)
    return Inference(request.id, inputs, request.outputs or None, binary_outputs)


def load_as(model: type[Model], text: bytes) -> Model:
    """The JSON object, checked; raises MalformedRequest."""
    try:
        return model.model_validate(load_object(text))
    except ValidationError as error:
        raise MalformedRequest(f"{reason(error)}.") from None


def _header_length(body: bytes, header: bytes | None) -> int:
    if header is None:
        return len(body)
    if not header.isdigit() or len(header) > 10 or int(header) > len(body):
        raise MalformedRequest(f"Inference-Header-Content-Length must be a number up to the body's {len(body)} bytes.")
    return int(header)


def _read_tensor(given: InputTensor, binary: memoryview, max_rows: float) -> tuple[Tensor, int]:
    """A tensor, and how many bytes of ``binary`` are its own."""
    name, datatype, shape = given.name, given.datatype, tuple(given.shape)
    if shape[0] > max_rows:
        raise MalformedRequest(f"A request has at most {max_rows} rows.")
    if datatype == BYTES and math.prod(shape) > max_rows:
        raise MalformedRequest(f"Input {name!r:.80} has more than {max_rows} strings.")
    size = given.parameters.binary_data_size if given.parameters else None
    if (size is None) == (given.data is None):
        raise MalformedRequest(f"Input {name!r:.80} must have either data or a binary_data_size.")
    if size is None:
        return Tensor(name, datatype, shape, _from_json(name, datatype, shape, given.data)), 0
    if size > len(binary):
        raise MalformedRequest(f"Input {name!r:.80} says {size} bytes, but {len(binary)} are left of the body.")
    return Tensor(name, datatype, shape, _from_binary(name, datatype, shape, binary[:size])), size


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> NDArray[Any] | list[Any]:
    if not isinstance(data, ARRAY):
        raise MalformedRequest(f"The data of input {name!r:.80} must be an array.")
    if isinstance(data, LargeArray):
        return _from_large(name, datatype, shape, data)
    flat = _flatten(name, data, shape)
    kinds = set(map(type, flat))
    if datatype == BYTES:
        if not kinds <= {str, LargeString}:
            raise MalformedRequest(f"Input {name!r:.80} is BYTES, so its data must be strings.")
        return flat
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise MalformedRequest(_datatype_refused(name, datatype, "in JSON" if datatype == BF16 else "here"))
    if not kinds <= JSON_TYPES.get(datatype, {int}):
        raise MalformedRequest(f"Input {name!r:.80} is {datatype}, which its data are not.")
    try:
        with np.errstate(over="ignore"):  # becomes inf, which no model takes
            return np.array(flat, dtype).reshape(shape)
    except OverflowError:
        raise MalformedRequest(f"Input {name!r:.80} has numbers beyond {datatype}.") from None


def _from_large(name: str, datatype: str, shape: tuple[int, ...], data: LargeArray) -> NDArray[Any] | list[Any]:
    """Parse the data group by group, and free each group before the next."""
    nested = len(shape) > 1 and len(data) == shape[0] and isinstance(next(iter(data)), ARRAY)
    if not nested and len(data) != math.prod(shape):
        raise _miscounted(name, len(data), shape)
    inner = shape[1:] if nested else ()
    parts: list[Any] = []
    for group in data.groups():
        alone = nested and isinstance(group[0], LargeArray)
        read = _from_json(name, datatype, inner if alone else (len(group), *inner), group[0] if alone else group)
        parts.append(read.ravel() if isinstance(read, np.ndarray) else read)
    return list(chain.from_iterable(parts)) if datatype == BYTES else np.concatenate(parts).reshape(shape)


def _flatten(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Row-major values of data that are flat or nested as the shape says."""
    if data and isinstance(data[0], list):
        for size in shape[1:]:
            if not all(isinstance(part, list) and len(part) == size for part in data):
                raise MalformedRequest(f"The data of input {name!r:.80} are not nested as its shape says.")
            data = list(chain.from_iterable(data))
    if len(data) != math.prod(shape):
        raise _miscounted(name, len(data), shape)
    return data


def _miscounted(name: str, count: int, shape: tuple[int, ...]) -> MalformedRequest:
    return MalformedRequest(f"Input {name!r:.80} has {count} values, and a shape for {_product(shape)}.")


def _from_binary(name: str, datatype: str, shape: tuple[int, ...], raw: memoryview) -> NDArray[Any] | list[bytes]:
    if datatype == BYTES:
        return _split_bytes(name, math.prod(shape), raw)
    dtype = np.dtype("<u2") if datatype == BF16 else DTYPES.get(datatype)
    if dtype is None:
        raise MalformedRequest(_datatype_refused(name, datatype, "here"))
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise MalformedRequest(
            f"Input {name!r:.80} has {len(raw)} bytes, and a shape for {_product(shape)} {datatype}."
        )
    values = np.frombuffer(raw, dtype).reshape(shape)
    return (values.astype("<u4") << 16).view("<f4") if datatype == BF16 else values


def _split_bytes(name: str, count: int, raw: memoryview) -> list[bytes]:
    """Each element is its length, u32, and so many bytes."""
    elements: list[bytes] = []
    offset = 0
    while offset < len(raw) and len(elements) < count:
        if offset + 4 > len(raw):
            break
        (size,) = struct.unpack_from("<I", raw, offset)
        elements.append(bytes(raw[offset + 4 : offset + 4 + size]))
        offset += 4 + size
    if offset != len(raw) or len(elements) != count:
        raise MalformedRequest(f"Input {name!r:.80} is not {count} strings, each after its length.")
    return elements


def _datatype_refused(name: str, datatype: str, where: str) -> str:
    return f"Input {name!r:.80} is {datatype!r:.40}, which is not supported {where}."


def _product(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
