"""The OpenAPI description: fixed routes from here and openinference/openapi.py, each model's own from its manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from service import __version__
from service.http.predict import IMAGE_TYPES, JSON, MAX_BATCH_ROWS
from service.http.schemas import (
    NUMBER,
    TEXT,
    Schema,
    array,
    body,
    choice,
    nullable,
    operation,
    parameter,
    record,
    ref,
    response,
    strict,
)
from service.lookup import Model
from service.openinference.openapi import v2_paths, v2_schemas

_ERRORS = {
    "400": "Malformed request",
    "404": "Unknown model or digest",
    "412": "If-Match does not hold",
    "413": "Body too large",
    "414": "Request target too long",
    "415": "Unsupported media type or content coding",
    "422": "Invalid input",
    "500": "The model failed on this input",
    "503": "Overloaded or draining; see Retry-After",
    "504": "Not in time, or not cached and only-if-cached",
}
_PROBLEM = record(
    {"type": TEXT, "title": TEXT, "status": {"type": "integer"}, "detail": TEXT, "parameter": TEXT},
    ["type", "title", "status", "detail"],
)
_PREDICTION = strict(
    {
        "model": TEXT,
        "version": {"type": "string", "pattern": "^[0-9a-f]{12}$"},
        "prediction": {
            "description": "A class's value, a number, a list of 0 and 1 per label, or an object of several outputs.",
            "type": ["string", "number", "array", "object"],
            "items": {"type": "integer"},
            "additionalProperties": NUMBER,
        },
        "label": TEXT,
        "probabilities": {"type": "object", "additionalProperties": NUMBER | {"minimum": 0, "maximum": 1}},
        "unchanged_within": {
            "type": "object",
            "additionalProperties": nullable(array({"type": ["number", "null"]}, 2, 2)),
        },
    },
    ["model", "version", "prediction"],
)
_RATE: Schema = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
_ECONOMICS = strict(
    {
        "asked": {"type": "integer"},
        "hits": {"type": "integer"},
        "distinct": {"type": "integer"},
        "hit_rate": _RATE,
        "best_hit_rate": _RATE,
        "cost_seconds": NUMBER,
        "saved_seconds": NUMBER,
        "spent_seconds": NUMBER,
    },
    ["asked", "hits", "hit_rate", "cost_seconds", "saved_seconds", "spent_seconds"],
)
_AUDIT = strict(
    {"share": NUMBER, "audited": {"type": "integer"}, "mismatches": {"type": "integer"}},
    ["share", "audited", "mismatches"],
)
_MODEL = record(
    {
        "name": TEXT,
        "kind": TEXT,
        "version": TEXT,
        "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "key": choice(["exact", "cells", "digest"]),
        "cells": {"type": "integer"},
        "lease": {"type": "boolean"},
        "cost_seconds": NUMBER,
        "accuracy": {"type": ["number", "null"]},
        "output": record(
            {"kind": TEXT, "names": array(TEXT), "rows_per_call": {"type": ["integer", "null"]}}, ["kind"]
        ),
        "classes": array(strict({"value": TEXT, "label": TEXT}, ["value", "label"])),
        "parameters": {"type": "object"},
        "example": {"type": "object"},
        "trained_with": {"type": "object", "additionalProperties": TEXT},
        "economics": _ECONOMICS,
        "audit": _AUDIT,
    },
    ["name", "kind", "version", "fingerprint", "key", "output", "classes", "parameters", "example"],
)
_FAILED = array(strict({"name": TEXT, "reason": TEXT}, ["name", "reason"]))
_MODELS = strict({"models": array(ref("Model")), "failed": _FAILED}, ["models", "failed"])
_HOW: Schema = {
    "Cache-Status": {"description": "How the caches answered (RFC 9211).", "required": True, "schema": TEXT}
}
_CACHED = _HOW | {
    "Cache-Control": {"required": True, "schema": TEXT},
    "ETag": {
        "description": "Weak; names model, input and rendering until the next purge. Absent without a usable Redis.",
        "schema": TEXT,
    },
    "Age": {"description": "Seconds since the answer was computed; on hits.", "schema": {"type": "integer"}},
}


_CACHED_ANSWERS = {
    "200": response("The answer", ref("Prediction"), headers=_CACHED),
    "304": {"description": "The client has it: If-None-Match names this question", "headers": _HOW},
}


def build_openapi(models: dict[str, Model]) -> Schema:
    """OpenAPI 3.2, the first that knows QUERY, of everything that is served now."""
    served = list(models.values())
    paths: dict[str, Any] = {
        "/predict": _predict(served),
        "/predict_batch": {"post": _batch(served)},
        "/models": {"get": _status("The served models", _MODELS)},
        "/models/{name}": {"get": _model(served)},
        "/livez": {"get": _status("Is the process alive", record({"status": TEXT}, ["status"]))},
        "/readyz": {"get": _readiness()},
        "/metrics": {"get": _text("Prometheus metrics", "text/plain")},
        "/openapi.json": {"get": _status("This description", {"type": "object"})},
        "/docs": {"get": _text("This description, for people", "text/html")},
    }
    for model in served:
        paths[f"/models/{model.name}/predict"] = _predict([model], named=True)
    schemas = {"Problem": _PROBLEM, "Prediction": _PREDICTION, "Model": _MODEL}
    return {
        "openapi": "3.2.0",
        "info": {
            "title": "Cached prediction service",
            "version": __version__,
            "description": "Never computes the same answer twice.",
        },
        "paths": paths | v2_paths(served),
        "components": {"schemas": schemas | v2_schemas()},
    }


def _predict(models: Sequence[Model], named: bool = False) -> Schema:
    """GET, POST and QUERY, which is a POST that caches may answer."""
    return {
        "get": _get(models, named),
        "post": _with_body(models, named, {"200": response("The answer", ref("Prediction"), headers=_HOW)}),
        "query": _with_body(models, named, _CACHED_ANSWERS),
    }


def _get(models: Sequence[Model], named: bool) -> Schema:
    """Inputs in the query string; of an image model exactly one of its parameters, which OpenAPI cannot say."""
    schemas = {name: dict(schema) for model in models for name, schema in model.predictor.parameters.items()}
    required = _features(models[0]) if named else []
    parameters = [parameter(name, "query", schema, name in required) for name, schema in schemas.items()]
    parameters += [parameter(name, "query", schema) for name, schema in _views(models, max).items()]
    if not named:
        parameters.append(parameter("model", "query", choice([model.name for model in models])))
    return operation(f"Ask {_what(models, named)}", _CACHED_ANSWERS | _errors(), parameters=parameters)


def _with_body(models: Sequence[Model], named: bool, answers: Schema) -> Schema:
    forms = [form for model in models for form in _forms(model, named)]
    content: Schema = {JSON: {"schema": {"anyOf": forms}, "example": models[0].manifest.example.inputs}}
    if any(model.manifest.image for model in models):
        file = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
        content |= dict.fromkeys(IMAGE_TYPES, file)
    return operation(
        f"Ask {_what(models, named)}, with the input in the body",
        answers | _errors(),
        request_body=body(content),
    )


def _forms(model: Model, named: bool) -> list[Schema]:
    """The objects that a body may be: one for each way to ask the model."""
    extra = _views([model], max)
    if not named:
        extra["model"] = {"const": model.name}
    schemas = {name: dict(schema) for name, schema in model.predictor.parameters.items()}
    features = _features(model)
    ways = [features] if features else [[name] for name in schemas]
    forms = [strict({name: schemas[name] for name in way} | extra, way) for way in ways]
    return [*forms, strict({"input": _input(model)} | extra, ["input"])]


def _input(model: Model) -> Schema:
    """All features in their order, or a normalised array: channels × height × width."""
    image = model.manifest.image
    if image is None:
        columns = list(map(dict, model.predictor.parameters.values()))
        return {"type": "array", "prefixItems": columns, "minItems": len(columns), "maxItems": len(columns)}
    schema = NUMBER
    for size in reversed((len(image.mode), *image.size)):
        schema = array(schema, size, size)
    return schema


def _batch(models: Sequence[Model]) -> Schema:
    forms = [
        strict({name: array({}, 1, MAX_BATCH_ROWS)} | extra, [name])
        for name in ("inputs", "batch_inputs")
        for extra in (
            _views(models, min),
            *({"model": {"const": model.name}} | _views([model], min) for model in models),
        )
    ]
    example = {"model": models[0].name, "inputs": [models[0].manifest.example.inputs]}
    row = {"anyOf": [ref("Prediction"), strict({"error": ref("Problem")}, ["error"])]}
    results = strict({"results": array(row, 1, MAX_BATCH_ROWS)}, ["results"])
    return operation(
        "Ask one model many things; each row is cached on its own, and may fail on its own",
        {"200": response("One result per row, in order", results, headers=_HOW)} | _errors(),
        request_body=body({JSON: {"schema": {"anyOf": forms}, "example": example}}),
    )


def _model(models: Sequence[Model]) -> Schema:
    name = parameter("name", "path", choice([model.name for model in models]), required=True)
    answers = {"200": response("The model", ref("Model")), "404": _problem("No such model")}
    return operation("One served model", answers, parameters=[name])


def _readiness() -> Schema:
    failed: Schema = {"type": "object", "additionalProperties": TEXT}
    state = record(
        {"status": TEXT, "cache": TEXT, "models": array(TEXT), "failed": failed}, ["status", "cache", "models"]
    )
    answers = {"200": response("Ready", state), "503": response("Draining", state)}
    return operation("May traffic be sent here", answers)


def _status(summary: str, schema: Schema) -> Schema:
    return operation(summary, {"200": response("OK", schema)})


def _text(summary: str, media_type: str) -> Schema:
    return operation(summary, {"200": response("OK", TEXT, [media_type])})


def _views(models: Sequence[Model], bound: Callable[[Iterable[int]], int]) -> Schema:
    """What chooses the rendering: ``top_k`` of models with classes, ``domain`` of models with cells."""
    views: Schema = {}
    if classes := bound(map(_classes, models)):
        views["top_k"] = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": classes}, {"const": "all"}]}
    if bound(model.predictor.key_kind == "cells" for model in models):
        views["domain"] = {"type": "boolean"}
    return views


def _classes(model: Model) -> int:
    return len(model.manifest.classes)


def _features(model: Model) -> list[str]:
    return [feature.name for feature in model.manifest.features]


def _what(models: Sequence[Model], named: bool) -> str:
    return models[0].name if named else "the model that is named, or else the default one for the input"


def _errors() -> Schema:
    return {status: _problem(text) for status, text in _ERRORS.items()}


def _problem(text: str) -> Schema:
    return response(text, ref("Problem"), ["application/problem+json"])
