"""From a packed answer to the JSON of ``/predict``: a rendering of the answer, never part of its key."""

from __future__ import annotations

import heapq
from typing import Any, NamedTuple

import orjson

from service.errors import InvalidInput
from service.inference.manifest import Manifest
from service.inference.predictor import Question, unpack
from service.lookup import Model

DEFAULT_TOP_K = 5


class View(NamedTuple):
    """What of an answer is shown: how many classes, and in which box around the input nothing changes."""

    top_k: int
    domain: bool

    @property
    def name(self) -> str:
        return f"predict/{self.top_k}" + "/domain" * self.domain


def take_view(params: dict[str, Any], model: Model) -> View:
    """Out of the parameters; raises InvalidInput."""
    return View(_take_top_k(params, model), _take_domain(params, model))


def default_top_k(model: Model) -> int:
    return min(DEFAULT_TOP_K, len(model.manifest.classes))


def _take_top_k(params: dict[str, Any], model: Model) -> int:
    """How many classes to show, out of the parameters: 1…classes, or ``all``; raises InvalidInput."""
    classes = len(model.manifest.classes)
    value = params.pop("top_k", default_top_k(model) or None)
    if value == "all" and classes:
        return classes
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 9:
        value = int(value)
    if isinstance(value, float) and value.is_integer():  # JSON has one kind of number
        value = int(value)
    if value is None and not classes:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= classes:
        raise InvalidInput(_no_top_k(classes), parameter="top_k")
    return value


def _no_top_k(classes: int) -> str:
    if not classes:
        return "This model has no classes that top_k could choose from."
    return f"top_k must be a whole number from 1 to {classes}, or all."


def _take_domain(params: dict[str, Any], model: Model) -> bool:
    """Whether to show in which box around the input nothing changes; raises InvalidInput."""
    if "domain" not in params:
        return False
    value = params.pop("domain")
    wanted = {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value
    if not isinstance(wanted, bool):
        raise InvalidInput("domain must be true or false.", parameter="domain")
    if model.predictor.key_kind != "cells":
        raise InvalidInput("This model has no cells, so it has no domain to show.", parameter="domain")
    return wanted


def render(prediction: bytes, model: Model, view: View, question: Question) -> bytes:
    """What the model says; of a model with classes, the ``top_k`` most probable ones: of equals, the first."""
    document: dict[str, Any] = {"model": model.name, "version": model.version, **_said(prediction, model, view.top_k)}
    if view.domain:
        document["unchanged_within"] = model.predictor.unchanged_within(question)  # type: ignore[attr-defined]
    # A copy: orjson's buffers are several times as large as what is in them, and L1 counts what is in them.
    return bytes(memoryview(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)))


def _said(prediction: bytes, model: Model, top_k: int) -> dict[str, Any]:
    manifest, vector = model.manifest, unpack(prediction)
    start = manifest.output.probabilities_from
    if start is None:
        return _without_probabilities(manifest, vector.tolist())
    classes, said = manifest.classes, vector.tolist()
    own_class = manifest.best_class(said) if start else None
    if start:
        vector, said = vector[start:], said[start:]
    # Not by NumPy: it sorts without Python's lock, and on the event loop getting the lock back from the threads that
    # decode images took up to a millisecond.
    order = heapq.nlargest(top_k, range(len(said)), key=said.__getitem__)
    best = own_class or classes[order[0]]
    return {
        "prediction": best.value,
        "label": best.label,
        # NumPy scalars, so that a float32 is written with the digits that a float32 has.
        "probabilities": {classes[i].label: vector[i] for i in order},
    }


def _without_probabilities(manifest: Manifest, said: list[float]) -> dict[str, Any]:
    output = manifest.output
    if output.has_classes:
        best = manifest.best_class(said)
        return {"prediction": best.value, "label": best.label}
    numbers = said if output.kind == "numbers" else [int(x) for x in said]
    if output.kind == "labels":
        return {"prediction": numbers}
    return {"prediction": dict(zip(output.names, numbers, strict=True)) if output.names else numbers[0]}
