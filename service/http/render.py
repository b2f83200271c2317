"""From an answer to its response: the JSON of ``/predict`` and the headers of HTTP caching.

The JSON is a rendering of the answer and never part of its key. The headers are Cache-Status (RFC 9211), Age,
Cache-Control, ETag and Server-Timing.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from service.cache.entry import Entry
from service.config import Settings
from service.errors import InvalidInput
from service.http.endpoint import Headers
from service.inference.manifest import Manifest
from service.inference.predictor import Question, unpack
from service.lookup import Answer, BatchAnswer, Model
from service.runtime import Runtime

DEFAULT_TOP_K = 5
MAX_REMEMBERED_BYTES = 1024
"""Longer questions and longer answers are not remembered."""


class View(NamedTuple):
    """What of an answer is shown: how many classes, and in which box around the input nothing changes."""

    top_k: int
    domain: bool

    @property
    def name(self) -> str:
        return f"predict/{self.top_k}" + "/domain" * self.domain


def take_model(params: dict[str, Any]) -> object:
    """Take the model's name out of the parameters; None when there is none."""
    if "model" in params and params["model"] is None:
        raise InvalidInput("Parameter model must be a string.", parameter="model")
    return params.pop("model", None)


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
    least = sorted(said, reverse=True)[top_k - 1]
    order = sorted([i for i, x in enumerate(said) if x >= least], key=said.__getitem__, reverse=True)[:top_k]
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


def rendering(runtime: Runtime, entry: Entry, model: Model, view: View, question: Callable[[], Question]) -> bytes:
    """The body: kept with the entry in L1, or remembered from an equal array (a forest has few), or new."""
    value, body = entry.value, entry.renderings.get(view)
    if body is None:
        remembered = (model.label, view, value)
        body = runtime.rendered.get(remembered)
        if body is None:
            body = render(value, model, view, question())
            if not view.domain and len(value) + len(body) <= MAX_REMEMBERED_BYTES:  # other cells have another domain
                runtime.rendered.keep(remembered, body)
        runtime.pipeline.l1.add_rendering(entry, view, body)
    return body


def entity_tag(model: Model, generation: bytes, question: Question, rendering: str) -> bytes:
    """The opaque tag, in quotes. It is made from model, generation, question and rendering, so it needs no look-up."""
    text = b"%s|%s|%s|%s|" % (model.predictor.fingerprint, generation, model.name.encode(), rendering.encode())
    return b'"%s"' % urlsafe_b64encode(sha256(text + question.identity).digest()[:16]).rstrip(b"=")


def cache_status(answer: Answer, now: float) -> bytes:
    """One Cache-Status member: ``hit``, or ``fwd`` with the reason and whether the answer was stored."""
    left = b"; ttl=%d" % max(0, int(answer.entry.left(now)))
    if answer.hit:
        return b"predict; hit%s; detail=%s" % (left, answer.source.upper().encode())
    reason = b"request" if answer.fresh else b"bypass" if answer.l2_down else b"uri-miss"
    kept = b"; collapsed" + left if answer.source == "collapsed" else b"; stored" + left if answer.stored else b""
    return b"predict; fwd=%s%s%s" % (reason, kept, b"; detail=L2-DOWN" if answer.l2_down else b"")


def batch_status(batch: BatchAnswer) -> bytes:
    """The Cache-Status member of a batch, which is a hit when every row is one."""
    size = len(batch.rows)
    how = b"hit" if batch.hits == size else b"fwd=partial"
    return b'predict; %s; detail="rows=%d hits=%d computed=%d"' % (how, size, batch.hits, batch.computed)


def cache_control(settings: Settings, max_age: float) -> tuple[bytes, bytes]:
    whose = "private" if settings.tenant_header else settings.cache_control
    return (b"cache-control", b"%s, max-age=%d" % (whose.encode(), int(max_age)))


def response_headers(answer: Answer, settings: Settings, now: float) -> Headers:
    headers: Headers = [
        (b"cache-status", cache_status(answer, now)),
        cache_control(settings, answer.entry.ttl),
    ]
    if answer.hit:
        headers.append((b"age", b"%d" % min(int(answer.entry.age(now)), int(answer.entry.ttl))))
    return headers


def server_timing(answer: Answer) -> tuple[bytes, bytes]:
    """The milliseconds spent in the caches, in the queue and in the model."""
    times = (answer.cache_seconds * 1e3, answer.queue_seconds * 1e3, answer.model_seconds * 1e3)
    return (b"server-timing", b"cache;dur=%.3f, queue;dur=%.3f, model;dur=%.3f" % times)
