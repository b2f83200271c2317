"""Answers as output tensors of the Open Inference Protocol, in JSON or in binary."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import MalformedRequest
from service.inference.manifest import Manifest
from service.inference.predictor import unpack
from service.openinference.schemas import OutputParameters, RequestedOutput
from service.openinference.tensors import BYTES, Inference

PROBABILITIES, LABEL, PREDICTION = ("probabilities", "label", "prediction")

NONE, BINARY = OutputParameters(), OutputParameters(binary_data=True)


def describe_outputs(manifest: Manifest) -> list[dict[str, Any]]:
    """The metadata of each output: what is predicted, and of classes the label and each one's probability, if any."""
    if not manifest.output.has_classes:
        datatype = "FP64" if manifest.output.kind == "numbers" else "INT64"
        return [{"name": PREDICTION, "datatype": datatype, "shape": [-1, manifest.width]}]
    texts = [{"name": name, "datatype": BYTES, "shape": [-1, 1]} for name in (LABEL, PREDICTION)]
    if manifest.output.probabilities_from is None:
        return texts
    datatype = "FP64" if manifest.image is None else "FP32"
    return [{"name": PROBABILITIES, "datatype": datatype, "shape": [-1, len(manifest.classes)]}, *texts]


def wanted_outputs(manifest: Manifest, inference: Inference) -> list[RequestedOutput]:
    """The outputs that the request names, or all; raises MalformedRequest for an unknown one."""
    names = [output["name"] for output in describe_outputs(manifest)]
    for output in inference.outputs or ():
        if output.name not in names:
            raise MalformedRequest(f"There is no output {output.name!r:.80}; there are {', '.join(names)}.")
        if (output.parameters or NONE).classification and output.name != PROBABILITIES:
            raise MalformedRequest(f"The output {output.name!r} cannot be classified; {PROBABILITIES!r} can.")
    alike = BINARY if inference.binary else NONE
    return inference.outputs or [RequestedOutput.model_construct(name=name, parameters=alike) for name in names]


def render_outputs(
    manifest: Manifest, predictions: Sequence[bytes], wanted: list[RequestedOutput]
) -> tuple[list[Any], bytes]:
    """The output objects, and the bytes that come after the JSON."""
    answers = _stacked(predictions)
    outputs, blobs = [], []
    for output in wanted:
        tensor = _tensor(manifest, answers, output)
        if (output.parameters or NONE).binary_data:
            blob = _to_binary(tensor.pop("data"))
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        outputs.append(tensor)
    return outputs, b"".join(blobs)


def _stacked(predictions: Sequence[bytes]) -> NDArray[Any]:
    """A row for each. All have the dtype and the shape of the first: they are answers of one model."""
    first = unpack(predictions[0])
    raw = np.frombuffer(b"".join(predictions), np.uint8).reshape(len(predictions), -1)
    rows: NDArray[Any] = raw[:, raw.shape[1] - first.nbytes :].copy().view(first.dtype)
    return rows


def _tensor(manifest: Manifest, answers: NDArray[Any], output: RequestedOutput) -> dict[str, Any]:
    kind = manifest.output
    if not kind.has_classes:
        return _numbers(output.name, answers if kind.kind == "numbers" else answers.astype(np.int64))
    probabilities = answers[:, kind.probabilities_from :]
    if output.name != PROBABILITIES:
        data = _best(manifest, answers, output.name)
    elif count := (output.parameters or NONE).classification:
        data = _classified(manifest, probabilities, count)
    else:
        return _numbers(output.name, probabilities)
    rows = len(answers)
    return {"name": output.name, "datatype": BYTES, "shape": [rows, len(data) // rows], "data": data}


def _best(manifest: Manifest, answers: NDArray[Any], name: str) -> list[str]:
    """Of each row's ``best_class`` the label, or the value."""
    texts = [one.label if name == LABEL else one.value for one in manifest.classes]
    probable = manifest.output.kind == "probabilities"
    indices = answers.argmax(axis=1) if probable else answers[:, 0].astype(np.intp)
    return [texts[index] for index in indices.tolist()]


def _numbers(name: str, table: NDArray[Any]) -> dict[str, Any]:
    datatype = f"{'INT' if table.dtype.kind == 'i' else 'FP'}{8 * table.itemsize}"
    return {"name": name, "datatype": datatype, "shape": list(table.shape), "data": table.ravel()}


def _classified(manifest: Manifest, probabilities: NDArray[Any], count: int) -> list[str]:
    """The texts of the classification extension, ``probability:index:label``, row after row."""
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return [
        f"{row[index]:f}:{index}:{manifest.classes[index].label}"
        for row, indices in zip(probabilities, order.tolist(), strict=True)
        for index in indices
    ]


def _to_binary(data: NDArray[Any] | list[str]) -> bytes:
    """Little-endian numbers; or each text after its length in bytes, u32."""
    if isinstance(data, np.ndarray):
        return data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    framed = {text: _framed(text.encode()) for text in set(data)}  # many rows have one class
    return b"".join([framed[text] for text in data])


def _framed(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text
