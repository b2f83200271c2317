"""What FastAPI's OpenAPI generator is told of /predict and /predict_batch: their inputs, from the manifests.

The routes that are served are raw ASGI; those made here are only described.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastapi.routing import APIRoute

from service.http.multipart import FILE, FORM
from service.http.predict import IMAGE_PARAMETERS, JSON
from service.http.schemas import Prediction, Responses, Results, Schema, problems
from service.inference.manifest import IMAGE_TYPES
from service.lookup import Model
from service.runtime import Runtime

_TEXT: Schema = {"type": "string"}
_FILE: Schema = {"type": "string", "contentMediaType": FILE}
_HOW: Schema = {
    "Cache-Status": {"description": "How the caches answered (RFC 9211).", "required": True, "schema": _TEXT}
}
_CACHED = _HOW | {
    "Cache-Control": {"required": True, "schema": _TEXT},
    "ETag": {
        "description": "Weak; names model, input and rendering until the next purge. Absent without a usable Redis.",
        "schema": _TEXT,
    },
    "Age": {"description": "Seconds since the answer was computed; on hits.", "schema": {"type": "integer"}},
}
_UNCHANGED: Responses = {
    304: {"description": "The client has the answer: If-None-Match names it", "headers": _HOW},
}
_FAILURES = problems(400, 404, 412, 413, 414, 415, 422, 429, 500, 503, 504)


def predict_routes(runtime: Runtime) -> Iterator[APIRoute]:
    """Of ``/predict``, ``/predict_batch``, and each model's own."""
    models = list(runtime.models.values())
    yield from _predict("/predict", runtime, models)
    for model in models:
        yield from _predict(f"/models/{model.name}/predict", runtime, [model], named=True)
    yield _route("/predict_batch", "POST", "Ask one model many things", Results, _HOW, _batch(runtime, models))


def query_parameters(runtime: Runtime, models: Sequence[Model], named: bool = False) -> list[Schema]:
    """The parameters of a GET. A request to an image model has one of them, which OpenAPI cannot say.

    Only the default model's parameters have examples, and of an image model's only the first one: /docs sends every
    parameter that has an example.
    """
    default = models[0] if named else next(iter(runtime.defaults.values()), models[0])
    schemas: dict[str, Schema] = {}
    for model in models:
        for name, schema in model.predictor.parameters.items():
            shown = model is default and name in _ways(model)[0]
            schemas.setdefault(name, _in_query(schema, shown))
    required = _required(models[0], _ways(models[0])[0]) if named and models[0].manifest.features else []
    schemas |= _views(*models)
    if not named:
        schemas["model"] = {"type": "string", "enum": [model.name for model in models], "example": default.name}
    return [
        {"name": name, "in": "query", "required": name in required, "schema": schema}
        for name, schema in schemas.items()
    ]


def _in_query(schema: Mapping[str, Any], shown: bool) -> Schema:
    """A parameter's schema. A URL reaches its own limit before ``maxLength``. Where no example is ``shown``, Swagger UI
    makes a value up, which it cannot do in base64url."""
    hidden = {"maxLength"} if shown else {"maxLength", "example", "contentEncoding"}
    return {key: value for key, value in schema.items() if key not in hidden}


def _predict(path: str, runtime: Runtime, models: Sequence[Model], named: bool = False) -> Iterator[APIRoute]:
    """GET, POST, and QUERY, which is a POST that caches may answer."""
    what = f"Ask {models[0].name if named else 'the model that is named, or else the default one for the input'}"
    parameters, body = query_parameters(runtime, models, named), _body(runtime, models, named)
    yield _route(path, "GET", what, Prediction, _CACHED, {"parameters": parameters})
    yield _route(path, "POST", f"{what}, with the input in the body", Prediction, _HOW, body)
    yield _route(path, "QUERY", f"{what}, with the input in the body", Prediction, _CACHED, body)


def _route(path: str, method: str, summary: str, answer: type, headers: Schema, extra: Schema) -> APIRoute:
    async def described() -> None: ...

    return APIRoute(
        path,
        described,
        methods=[method],
        tags=["predict"],
        summary=summary,
        operation_id=f"{method} {path}",
        response_model=answer,
        response_description="The answer",
        responses={200: {"headers": headers}} | (_UNCHANGED if headers is _CACHED else {}) | _FAILURES,
        openapi_extra=extra,
    )


def _body(runtime: Runtime, models: Sequence[Model], named: bool) -> Schema:
    forms = [form for model in models for form in _forms(runtime, model, named)]
    first = models[0]
    which = {} if named or first in runtime.defaults.values() else {"model": first.name}
    content: Schema = {JSON: {"schema": {"anyOf": forms}, "example": which | first.manifest.example.inputs}}
    if any(model.manifest.image for model in models):
        content |= {media_type: {"schema": _FILE} for media_type in IMAGE_TYPES} | _form(models, _FILE, named)
    return {"requestBody": {"required": True, "content": content}}


def _form(models: Sequence[Model], files: Schema, named: bool = False) -> Schema:
    """An HTML form with a file, or with several in a batch. Any name of the file's field is taken."""
    images = [model for model in models if model.manifest.image]
    model = {} if named else {"model": {"enum": [model.name for model in images]}}
    return {FORM: {"schema": _strict({"file": files} | model | _views(*images), ["file"])}}


def _forms(runtime: Runtime, model: Model, named: bool) -> list[Schema]:
    """The objects that a body may be: one for each way to ask the model."""
    extra = _views(model)
    if not named:
        extra["model"] = {"const": model.name}
    required = [] if named or model in runtime.defaults.values() else ["model"]
    schemas = dict(model.predictor.parameters) | {"input": _input(model)}
    return [
        _strict({name: dict(schemas[name]) for name in way} | extra, [*_required(model, way), *required])
        for way in (*_ways(model), ["input"])
    ]


def _ways(model: Model) -> list[list[str]]:
    """The sets of parameters that ask the model: all its features, or any one of an image model's parameters."""
    names = list(model.predictor.parameters)
    return [names] if model.manifest.features else [[name] for name in names]


def _required(model: Model, way: Sequence[str]) -> list[str]:
    """Of one of these sets, the parameters that a request must have."""
    return [name for name in way if name not in {f.name for f in model.manifest.features if f.missing}]


def _input(model: Model) -> Schema:
    """All features in their order, or a normalised array: channels × height × width."""
    image = model.manifest.image
    if image is None:
        columns = list(map(dict, model.predictor.parameters.values()))
        return {"type": "array", "prefixItems": columns, "minItems": len(columns), "maxItems": len(columns)}
    schema: Schema = {"type": "number"}
    for size in reversed((len(image.mode), *image.size)):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return schema


_IMAGE_ROW: Schema = {
    "anyOf": [
        _TEXT,
        {"type": "object", "anyOf": [{"required": [name]} for name in sorted(IMAGE_PARAMETERS)]},
        {"type": "array", "minItems": 1, "prefixItems": [{"type": "array"}]},
    ]
}
"""If the first row is like this and no model is named, an image model is asked (batch.py)."""


def _batch(runtime: Runtime, models: Sequence[Model]) -> Schema:
    """The model's name, or else the first row, says which model is asked, and so how large top_k may be."""
    rows: Schema = {"type": "array", "minItems": 1, "maxItems": runtime.settings.max_batch_rows}
    forms = [
        _strict({name: rows, "model": {"const": model.name}} | _views(model), [name, "model"])
        for name in ("inputs", "batch_inputs")
        for model in models
    ]
    for is_image, model in runtime.defaults.items():
        first = rows | {"prefixItems": [_IMAGE_ROW if is_image else {"not": _IMAGE_ROW}]}
        forms.append(_strict({"inputs": first} | _views(model), ["inputs"]))
        if is_image:
            forms.append(_strict({"batch_inputs": rows} | _views(model), ["batch_inputs"]))
    example = {"model": models[0].name, "inputs": [models[0].manifest.example.inputs]}
    content = {JSON: {"schema": {"anyOf": forms}, "example": example}}
    if any(model.manifest.image for model in models):
        content |= _form(models, rows | {"items": _FILE})
    text = (
        "Each row is cached on its own, and may fail on its own. `text/csv` is taken as well: its first line names the "
        "features, `model` and `top_k` go into the query. With `Accept: text/csv` the answer is CSV."
    )
    return {"description": text, "requestBody": {"required": True, "content": content}}


def _views(*models: Model) -> dict[str, Schema]:
    """What chooses the rendering: ``top_k`` of models with classes, ``domain`` of models with cells."""
    views: dict[str, Schema] = {}
    if most := max(len(model.manifest.classes) for model in models):
        views["top_k"] = {"anyOf": [{"type": "integer", "minimum": 1, "maximum": most}, {"const": "all"}]}
    if any(model.predictor.key_kind == "cells" for model in models):
        views["domain"] = {"type": "boolean"}
    return views


def _strict(properties: Schema, required: Sequence[str]) -> Schema:
    """An object with no other members than these."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
