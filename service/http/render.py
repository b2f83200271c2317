"""From a packed prediction to the JSON of ``/predict``: a rendering of the answer, never part of its key."""

from __future__ import annotations

import heapq
from typing import Any

import orjson

from service.errors import InvalidInput
from service.inference.predictor import unpack
from service.lookup import Model

DEFAULT_TOP_K = 5


def default_top_k(model: Model) -> int:
    return min(DEFAULT_TOP_K, len(model.manifest.classes))


def take_top_k(params: dict[str, Any], model: Model) -> int:
    """How many classes to show, out of the parameters: 1…classes, or ``all``; raises InvalidInput."""
    classes = len(model.manifest.classes)
    value = params.pop("top_k", default_top_k(model))
    if value == "all":
        return classes
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= classes:
        raise InvalidInput(f"top_k must be a whole number from 1 to {classes}, or all.", parameter="top_k")
    return value


def render(prediction: bytes, model: Model, top_k: int) -> bytes:
    """The ``top_k`` most probable classes; of equals, the one that comes first in the manifest."""
    vector = unpack(prediction)
    # Not by NumPy: it sorts without Python's lock, and on the event loop getting the lock back from the threads that
    # decode images took up to a millisecond.
    order = heapq.nlargest(top_k, range(len(vector)), key=vector.tolist().__getitem__)
    classes = model.manifest.classes
    document: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "prediction": classes[order[0]].value,
        "label": classes[order[0]].label,
        # NumPy scalars, so that a float32 is written with the digits that a float32 has.
        "probabilities": {classes[i].label: vector[i] for i in order},
    }
    # A copy: orjson's buffers are several times as large as what is in them, and L1 counts what is in them.
    return bytes(memoryview(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)))
