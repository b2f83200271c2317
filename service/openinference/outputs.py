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
from service.openinference.tensors import BYTES, Inference, Wanted

PROBABILITIES, LABEL, PREDICTION = NAMES = ("probabilities", "label", "prediction")


def describe_outputs(manifest: Manifest) -> list[dict[str, Any]]:
    """The metadata of each output: probabilities per class, and label and value of the most probable one."""
    datatype = "FP64" if manifest.image is None else "FP32"
    return [
        {"name": PROBABILITIES, "datatype": datatype, "shape": [-1, len(manifest.classes)]},
        {"name": LABEL, "datatype": BYTES, "shape": [-1, 1]},
        {"name": PREDICTION, "datatype": BYTES, "shape": [-1, 1]},
    ]


def wanted_outputs(inference: Inference) -> list[Wanted]:
    """What was asked for, or everything; raises MalformedRequest for outputs that there are not."""
    for output in inference.outputs or ():
        if output.name not in NAMES:
            raise MalformedRequest(f"There is no output {output.name!r:.80}; there are {', '.join(NAMES)}.")
        if output.classes and output.name != PROBABILITIES:
            raise MalformedRequest(f"The output {output.name!r} cannot be classified; {PROBABILITIES!r} can.")
    return inference.outputs or [Wanted(name, inference.binary, 0) for name in NAMES]


def render_outputs(manifest: Manifest, predictions: Sequence[bytes], wanted: list[Wanted]) -> tuple[list[Any], bytes]:
    """The output objects, and the bytes that come after the JSON."""
    probabilities = np.stack([unpack(prediction) for prediction in predictions])
    outputs, blobs = [], []
    for output in wanted:
        tensor = _tensor(manifest, probabilities, output)
        if output.binary:
            blob = _to_binary(tensor.pop("data"))
            tensor["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        outputs.append(tensor)
    return outputs, b"".join(blobs)


def _tensor(manifest: Manifest, probabilities: NDArray[Any], output: Wanted) -> dict[str, Any]:
    if output.name == PROBABILITIES and not output.classes:
        datatype = f"FP{8 * probabilities.itemsize}"
        shape = list(probabilities.shape)
        return {"name": output.name, "datatype": datatype, "shape": shape, "data": probabilities.ravel()}
    rows = _texts(manifest, probabilities, output)
    data = [text for row in rows for text in row]
    return {"name": output.name, "datatype": BYTES, "shape": [len(rows), len(rows[0])], "data": data}


def _texts(manifest: Manifest, probabilities: NDArray[Any], output: Wanted) -> list[list[str]]:
    """Columns of texts. With ``classes``, those of the classification extension: ``probability:index:label``."""
    classes = manifest.classes
    if output.name == PROBABILITIES:
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, : output.classes]
        return [
            [f"{row[index]:f}:{index}:{classes[index].label}" for index in indices]
            for row, indices in zip(probabilities, order.tolist(), strict=True)
        ]
    best = probabilities.argmax(axis=1).tolist()
    return [[classes[index].label if output.name == LABEL else classes[index].value] for index in best]


def _to_binary(data: NDArray[Any] | list[str]) -> bytes:
    """Little-endian numbers; or each text after its length in bytes, u32."""
    if isinstance(data, np.ndarray):
        return data.astype(data.dtype.newbyteorder("<"), copy=False).tobytes()
    texts = [text.encode() for text in data]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)
