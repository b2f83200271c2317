"""Tensors of the Open Inference Protocol: JSON and its binary extension, in and out."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedRequest, NotSupported
from service.large_json import LargeArray, LargeString, is_array, load_object

MAX_TENSORS = 1024
MAX_DIMENSIONS = 8

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

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tensor:
    """``values``: an array of ``shape``, or for BYTES a list in row-major order: of strings from JSON, of bytes
    from binary."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: NDArray[Any] | list[Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An output that is asked for. ``classes``: the most probable so many, as the classification extension has it."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True, slots=True)
class Inference:
    """A request. ``outputs`` None: all of them, in binary or not."""

    id: str | None
    inputs: list[Tensor]
    outputs: list[Wanted] | None
    binary: bool


def read_inference(body: bytes, header_length: bytes | None, max_rows: float = math.inf) -> Inference:
    """Raises MalformedRequest, or NotSupported for shared memory. ``header_length``: of the JSON before the tensors."""
    length = _header_length(body, header_length)
    document = load_object(body[:length])
    binary = memoryview(body)[length:]
    inputs = []
    for item in _items(document, "inputs"):
        tensor, used = _read_tensor(item, binary, max_rows)
        inputs.append(tensor)
        binary = binary[used:]
    if not inputs:
        raise MalformedRequest("There are no inputs.")
    if len(binary):
        raise MalformedRequest(f"The body has {len(binary)} bytes that belong to no input.")
    _refuse_repeated([tensor.name for tensor in inputs], "input")
    return Inference(
        member(document, "id", str, None),
        inputs,
        _read_outputs(document) or None,
        member(_parameters(document), "binary_data_output", bool, False),
    )


def _header_length(body: bytes, header: bytes | None) -> int:
    if header is None:
        return len(body)
    if not header.isdigit() or len(header) > 10 or int(header) > len(body):
        raise MalformedRequest(f"Inference-Header-Content-Length must be a number up to the body's {len(body)} bytes.")
    return int(header)


def _read_outputs(document: Object) -> list[Wanted]:
    outputs = []
    for item in _items(document, "outputs", required=False):
        parameters = _parameters(item)
        classes = member(parameters, "classification", int, 0)
        if classes < 0:
            raise MalformedRequest("The parameter 'classification' must not be negative.")
        outputs.append(Wanted(member(item, "name", str), member(parameters, "binary_data", bool, False), classes))
    _refuse_repeated([output.name for output in outputs], "output")
    return outputs


def _read_tensor(item: Object, binary: memoryview, max_rows: float) -> tuple[Tensor, int]:
    """A tensor, and how many bytes of ``binary`` are its own."""
    name, datatype, shape = member(item, "name", str), member(item, "datatype", str), _shape(item, max_rows)
    if datatype == BYTES and math.prod(shape) > max_rows:
        raise MalformedRequest(f"Input {name!r:.80} has more than {max_rows} strings.")
    size = member(_parameters(item), "binary_data_size", int, None)
    if size is None:
        return Tensor(name, datatype, shape, _from_json(name, datatype, shape, member(item, "data", list))), 0
    if item.get("data") is not None:
        raise MalformedRequest(f"Input {name!r:.80} has both data and a binary_data_size.")
    if not 0 <= size <= len(binary):
        raise MalformedRequest(f"Input {name!r:.80} says {size} bytes, but {len(binary)} are left of the body.")
    return Tensor(name, datatype, shape, _from_binary(name, datatype, shape, binary[:size])), size


def _shape(item: Object, max_rows: float) -> tuple[int, ...]:
    shape = member(item, "shape", list)
    if not 1 <= len(shape) <= MAX_DIMENSIONS or not all(type(size) is int and size > 0 for size in shape):
        raise MalformedRequest(f"A shape has 1 to {MAX_DIMENSIONS} dimensions, all whole numbers above 0.")
    if shape[0] > max_rows:
        raise MalformedRequest(f"A request has at most {max_rows} rows.")
    return tuple(shape)


def _from_json(
    name: str, datatype: str, shape: tuple[int, ...], data: list[Any] | LargeArray
) -> NDArray[Any] | list[Any]:
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
    nested = len(shape) > 1 and len(data) == shape[0] and is_array(next(iter(data)))
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


# JSON, member by member


def _items(document: Object, name: str, required: bool = True) -> list[Object]:
    found = member(document, name, list) if required else member(document, name, list, [])
    items: list[Object] = list(found) if len(found) <= MAX_TENSORS else []
    if len(found) > MAX_TENSORS or not all(isinstance(item, dict) for item in items):
        raise MalformedRequest(f"The member {name!r} must be at most {MAX_TENSORS} objects.")
    return items


def _parameters(item: Object) -> Object:
    parameters: Object = member(item, "parameters", dict, {})
    if parameters.get("shared_memory_region") is not None:
        raise NotSupported("Shared memory is not supported: send the tensor in the body.")
    return parameters


_NONE: Any = object()
_NAMES = {str: "a string", int: "a whole number", bool: "true or false", list: "an array", dict: "an object"}


def member(item: Object, name: str, kind: type, default: Any = _NONE) -> Any:
    """A JSON object's member of exactly this kind; null means that it is absent. Raises MalformedRequest."""
    value = item.get(name)
    if value is None:
        if default is _NONE:
            raise MalformedRequest(f"The member {name!r} is missing.")
        return default
    found = list if isinstance(value, LargeArray) else type(value)
    if found is not kind:  # a bool is an int, but no number
        raise MalformedRequest(f"The member {name!r} must be {_NAMES[kind]}.")
    return value


def _refuse_repeated(names: Sequence[str], what: str) -> None:
    if len(set(names)) != len(names):
        raise MalformedRequest(f"An {what} is given twice.")


def _datatype_refused(name: str, datatype: str, where: str) -> str:
    return f"Input {name!r:.80} is {datatype!r:.40}, which is not supported {where}."


def _product(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
