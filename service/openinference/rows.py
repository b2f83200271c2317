"""Input tensors of the Open Inference Protocol as questions, one per row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, MalformedRequest
from service.http.predict import JSON
from service.inference.manifest import Feature, Image, Manifest
from service.inference.predictor import Question, Questions, parse_table
from service.large_json import LargeString
from service.lookup import Model
from service.openinference.tensors import BYTES, Tensor

ANY_IMAGE = "image/png"
"""Any image's media type will do, because a predictor looks at the file's content."""

DATATYPES = {"number": "FP64", "integer": "INT64", "boolean": "BOOL", "text": BYTES}

Row = tuple[dict[str, Any], bytes, str]
"""The arguments of Predictor.parse."""


def questions(model: Model, tensors: Sequence[Tensor]) -> list[Question] | Questions:
    """All rows; raises MalformedRequest for the first bad one."""
    image = model.manifest.image
    table = _as_table(model.manifest, tensors)
    if table is not None and (asked := parse_table(model.predictor, table)) is not None:
        return asked
    rows = _table_rows(model.manifest, tensors) if image is None else _image_rows(image, tensors)
    parsed = []
    for number, row in enumerate(rows):
        try:
            parsed.append(model.predictor.parse(*row))
        except InvalidInput as error:
            raise bad_row(number, error) from None
    return parsed


def bad_row(number: int, error: InvalidInput) -> MalformedRequest:
    """The protocol has no errors of single rows, so a bad row makes the request malformed."""
    return MalformedRequest(f"Row {number}: {error}")


def describe_inputs(manifest: Manifest) -> list[dict[str, Any]]:
    """The metadata of each input; several are alternatives."""
    if manifest.image is None:
        if all(datatype(feature) == "FP64" for feature in manifest.features):
            return [_described("input", "FP64", len(manifest.features))]
        return [_described(feature.name, datatype(feature), 1) for feature in manifest.features]
    image = manifest.image
    return [_described("image", BYTES, 1), _described("input", "FP32", len(image.mode), *image.size)]


def datatype(feature: Feature) -> str:
    """The datatype of a tensor that holds only this feature."""
    if feature.type == "category":
        return "INT64" if isinstance(feature.values[0], int) else BYTES
    return DATATYPES[feature.type]


def example_inputs(manifest: Manifest) -> list[dict[str, Any]]:
    """The manifest's example as tensors in JSON. A missing value has no tensor."""
    tensors, inputs = describe_inputs(manifest), manifest.example.inputs
    data = inputs["input"] if "input" in inputs else [inputs.get(name) for name in _asked_by(manifest)]
    if manifest.image is None and len(tensors) == len(data) > 1:
        row = zip(tensors, data, strict=True)
        return [tensor | {"shape": [1, 1], "data": [value]} for tensor, value in row if value is not None]
    return [tensors[0] | {"shape": [1, len(data)], "data": data}]


def _asked_by(manifest: Manifest) -> list[str]:
    return [feature.name for feature in manifest.features] or ["image"]


def may_be_left_out(manifest: Manifest, name: str) -> bool:
    """Whether a request may lack this input: an image has another form, or the feature may be missing."""
    return manifest.image is not None or any(f.missing for f in manifest.features if f.name == name)


def explain_inputs(manifest: Manifest) -> str:
    """Which of the listed inputs a request has to have. The list itself cannot say it."""
    if manifest.image is None:
        names = ", ".join(feature.name for feature in manifest.features)
        one = f"one tensor of shape [rows, 1] for each of: {names}"
        if any(datatype(feature) == BYTES for feature in manifest.features):
            return f"{one}; a feature that is missing in all rows may be left out, an empty text is a missing one"
        return f"input: all features in this order; or instead {one}"
    return "either image: image files (in JSON as base64); or input: normalised channels × height × width"


def _described(name: str, datatype: str, *row: int) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [-1, *row]}


def _as_table(manifest: Manifest, tensors: Sequence[Tensor]) -> NDArray[np.float64] | None:
    """The rows of one tensor of all features, if there are several and all features are numbers."""
    features, tensor = manifest.features, tensors[0]
    if len(tensors) > 1 or tensor.shape[0] == 1 or not isinstance(tensor.values, np.ndarray) or not features:
        return None
    if any(f.type != "number" or f.name == tensor.name for f in features):
        return None
    _check_type_and_shape(tensor, features)
    return tensor.values.reshape(-1, len(features)).astype(np.float64, copy=False)


def _table_rows(manifest: Manifest, tensors: Sequence[Tensor]) -> Iterator[Row]:
    """The rows of one tensor with all features, or of a tensor for each feature."""
    features = manifest.features
    names = [feature.name for feature in features]
    if len(tensors) == 1 and (tensors[0].name not in names or len(names) == 1):
        rows: Iterable[Any] = _values(tensors[0], features)
    else:
        rows = _joined(features, {tensor.name: tensor for tensor in tensors})
    return (({"input": list(row)}, b"", JSON) for row in rows)


def _joined(features: Sequence[Feature], tensors: dict[str, Tensor]) -> Iterable[Any]:
    names = [feature.name for feature in features]
    for unknown in (name for name in tensors if name not in names):
        raise MalformedRequest(f"The model has no feature {unknown!r:.80}.")
    for missing in (f.name for f in features if f.name not in tensors and not f.missing):
        raise MalformedRequest(f"There is no input for the feature {missing!r}.")
    columns = {f.name: list(chain.from_iterable(_values(tensors[f.name], [f]))) for f in features if f.name in tensors}
    lengths = set(map(len, columns.values()))
    if len(lengths) != 1:
        raise MalformedRequest("The inputs differ in their number of rows.")
    absent = [None] * lengths.pop()
    return zip(*(columns.get(name, absent) for name in names), strict=True)


def _values(tensor: Tensor, features: Sequence[Feature]) -> Iterable[Sequence[Any]]:
    """Rows of values as JSON has them, a column per feature."""
    _check_type_and_shape(tensor, features)
    if isinstance(tensor.values, list):
        texts = [_decoded(tensor.name, value) for value in tensor.values]
        return zip(*[iter(texts)] * len(features), strict=True)
    values = tensor.values.reshape(-1, len(features))
    if all(feature.type == "number" for feature in features):
        rows: list[list[float]] = values.astype(np.float64).tolist()
        return rows
    columns = [_as_json(feature, values[:, place].tolist()) for place, feature in enumerate(features)]
    return zip(*columns, strict=True)


def _check_type_and_shape(tensor: Tensor, features: Sequence[Feature]) -> None:
    """Raises MalformedRequest. A single column may have the shape [rows]."""
    name, columns = tensor.name, len(features)
    are_texts = {datatype(feature) == BYTES for feature in features}
    if len(are_texts) > 1:
        raise MalformedRequest("This model takes texts and numbers: give a tensor for each feature, by its name.")
    if are_texts != {tensor.datatype == BYTES}:
        wanted = "BYTES, not numbers" if are_texts == {True} else "numbers, not BYTES"
        raise MalformedRequest(f"Input {name!r:.80} must be {wanted}.")
    if tensor.shape[1:] != (columns,) and not (columns == 1 and len(tensor.shape) == 1):
        raise MalformedRequest(f"Input {name!r:.80} must have the shape [rows, {columns}], not {list(tensor.shape)}.")


def _as_json(feature: Feature, column: list[Any]) -> list[Any]:
    """Values of the feature's type. A tensor of several features has one type, so booleans may come as numbers."""
    if feature.type == "boolean":
        return [bool(value) if value in (0, 1) else value for value in column]
    return [int(value) if isinstance(value, bool) else value for value in column]


def _decoded(name: str, value: str | LargeString | bytes) -> str | LargeString:
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise MalformedRequest(f"Input {name!r:.80} has a text that is not UTF-8.") from None


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
