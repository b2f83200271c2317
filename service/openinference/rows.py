"""Input tensors of the Open Inference Protocol as questions, one per row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, MalformedRequest
from service.http.predict import JSON
from service.inference.manifest import Image, Manifest
from service.inference.predictor import Question
from service.large_json import LargeString
from service.lookup import Model
from service.openinference.tensors import BYTES, Tensor

ANY_IMAGE = "image/png"
"""Which one does not matter: a predictor looks at the file, not at what it is called."""

Row = tuple[dict[str, Any], bytes, str]
"""The arguments of Predictor.parse."""


def questions(model: Model, tensors: Sequence[Tensor]) -> list[Question]:
    """All rows; raises MalformedRequest for the first bad one."""
    image = model.manifest.image
    rows = _table_rows(model.manifest, tensors) if image is None else _image_rows(image, tensors)
    parsed = []
    for number, row in enumerate(rows):
        try:
            parsed.append(model.predictor.parse(*row))
        except InvalidInput as error:
            raise bad_row(number, error) from None
    return parsed


def bad_row(number: int, error: InvalidInput) -> MalformedRequest:
    """Whatever is wrong with a row, to this protocol it is a bad tensor."""
    return MalformedRequest(f"Row {number}: {error}")


def describe_inputs(manifest: Manifest) -> list[dict[str, Any]]:
    """The metadata of each input; several are alternatives."""
    if manifest.image is None:
        return [_described("input", "FP64", len(manifest.features))]
    image = manifest.image
    return [_described("image", BYTES, 1), _described("input", "FP32", len(image.mode), *image.size)]


def example_input(manifest: Manifest) -> dict[str, Any]:
    """The manifest's example as a tensor in JSON."""
    tensor = describe_inputs(manifest)[0]
    inputs = manifest.example.inputs
    data = inputs["input"] if "input" in inputs else [inputs[name] for name in _asked_by(manifest)]
    return tensor | {"shape": [1, len(data)], "data": data}


def _asked_by(manifest: Manifest) -> list[str]:
    return [feature.name for feature in manifest.features] or ["image"]


def explain_inputs(manifest: Manifest) -> str:
    """What the list of inputs cannot say: which of them a request has."""
    if manifest.image is None:
        names = ", ".join(feature.name for feature in manifest.features)
        return f"input: all features in this order; or instead one tensor of shape [rows, 1] for each of: {names}"
    return "either image: PNG, JPEG or WebP files (in JSON as base64); or input: normalised channels × height × width"


def _described(name: str, datatype: str, *row: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *row]}


def _table_rows(manifest: Manifest, tensors: Sequence[Tensor]) -> Iterator[Row]:
    """From one tensor of all features, or one for each by its name."""
    names = [feature.name for feature in manifest.features]
    if len(tensors) == 1 and (tensors[0].name not in names or len(names) == 1):
        table = _numbers(tensors[0], len(names))
    else:
        table = _joined(names, {tensor.name: tensor for tensor in tensors})
    return (({"input": row}, b"", JSON) for row in table.tolist())


def _joined(names: Sequence[str], tensors: dict[str, Tensor]) -> NDArray[np.float64]:
    for unknown in (name for name in tensors if name not in names):
        raise MalformedRequest(f"The model has no feature {unknown!r:.80}.")
    for missing in (name for name in names if name not in tensors):
        raise MalformedRequest(f"There is no input for the feature {missing!r}.")
    columns = [_numbers(tensors[name], 1) for name in names]
    if len(set(map(len, columns))) != 1:
        raise MalformedRequest("The inputs differ in their number of rows.")
    return np.hstack(columns)


def _numbers(tensor: Tensor, columns: int) -> NDArray[np.float64]:
    """Rows × columns; a single column may go without its dimension."""
    if not isinstance(tensor.values, np.ndarray):
        raise MalformedRequest(f"Input {tensor.name!r:.80} must be numbers, not BYTES.")
    if tensor.shape[1:] != (columns,) and not (columns == 1 and len(tensor.shape) == 1):
        raise MalformedRequest(
            f"Input {tensor.name!r:.80} must have the shape [rows, {columns}], not {list(tensor.shape)}."
        )
    return tensor.values.reshape(-1, columns).astype(np.float64)


def _image_rows(spec: Image, tensors: Sequence[Tensor]) -> Iterator[Row]:
    if len(tensors) != 1:
        raise MalformedRequest("This model takes one input: image files (BYTES), or normalised arrays (FP32).")
    tensor = tensors[0]
    if tensor.datatype == "FP32":
        return _array_rows(spec, tensor)
    if tensor.datatype != BYTES:
        raise MalformedRequest(f"This model takes BYTES or FP32, not {tensor.datatype}.")
    if tensor.shape[1:] not in ((), (1,)):
        raise MalformedRequest(f"Images must have the shape [rows, 1], not {list(tensor.shape)}.")
    return map(_image_row, tensor.values)


def _image_row(file: str | LargeString | bytes) -> Row:
    """JSON holds no bytes, so there a file is base64."""
    return ({}, file, ANY_IMAGE) if isinstance(file, bytes) else ({"image": file}, b"", JSON)


def _array_rows(spec: Image, tensor: Tensor) -> Iterator[Row]:
    wanted = (len(spec.mode), *spec.size)
    if tensor.shape[1:] != wanted:
        raise MalformedRequest(f"Arrays must have the shape {['rows', *wanted]}, not {list(tensor.shape)}.")
    return (({"input": row}, b"", JSON) for row in tensor.values)
