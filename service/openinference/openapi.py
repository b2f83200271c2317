"""The Open Inference Protocol's part of the OpenAPI description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from service.http.predict import JSON
from service.http.schemas import (
    NUMBER,
    TEXT,
    Schema,
    array,
    body,
    choice,
    nullable,
    operation,
    optional,
    parameter,
    record,
    ref,
    response,
)
from service.lookup import Model
from service.openinference.rows import example_input
from service.openinference.tensors import MAX_DIMENSIONS, MAX_TENSORS

BINARY = "application/octet-stream"

_COUNT: Schema = {"type": "integer", "minimum": 0}
_BOOL: Schema = {"type": "boolean"}
_TENSOR: Schema = {"name": TEXT, "datatype": TEXT, "shape": array({"type": "integer"}, 1, MAX_DIMENSIONS)}
_REQUESTED = record({"name": TEXT, "parameters": optional({"binary_data": _BOOL, "classification": _COUNT})}, ["name"])
_INPUT = record(
    _TENSOR | {"data": nullable({"type": "array"}), "parameters": optional({"binary_data_size": _COUNT})},
    ["name", "datatype", "shape"],
)
_HEALTH = record({"live": _BOOL, "ready": _BOOL}, ["live", "ready"])
_METADATA_TENSOR = record(_TENSOR, ["name", "datatype", "shape"])


def v2_schemas() -> dict[str, Schema]:
    return {
        "V2Error": record({"error": TEXT}, ["error"]) | {"additionalProperties": False},
        "V2Server": record(
            {"name": TEXT, "version": TEXT, "extensions": array(TEXT)}, ["name", "version", "extensions"]
        ),
        "V2Model": record(
            {
                "name": TEXT,
                "versions": array(TEXT),
                "platform": TEXT,
                "inputs": array(_METADATA_TENSOR, 1),
                "outputs": array(_METADATA_TENSOR, 1),
                "properties": {"type": "object", "additionalProperties": TEXT},
            },
            ["name", "platform", "inputs", "outputs"],
        ),
        "V2InferRequest": record(
            {
                "id": nullable(TEXT),
                "inputs": array(_INPUT, 1, MAX_TENSORS),
                "outputs": nullable(array(_REQUESTED, 0, MAX_TENSORS)),
                "parameters": optional({"binary_data_output": _BOOL}),
            },
            ["inputs"],
        ),
        "V2InferResponse": record(
            {
                "model_name": TEXT,
                "model_version": TEXT,
                "id": TEXT,
                "outputs": array(record(_TENSOR | {"data": array({})}, ["name", "datatype", "shape", "data"]), 1),
            },
            ["model_name", "outputs"],
        ),
    }


def v2_paths(models: Sequence[Model]) -> dict[str, Any]:
    name = parameter("name", "path", choice([model.name for model in models]), required=True)
    version = parameter("version", "path", choice(["1", *(model.version for model in models)]), required=True)
    health = {"200": response("Yes", _HEALTH)}
    index = array(record({"name": TEXT, "version": TEXT, "state": TEXT, "reason": TEXT}, ["name", "state"]))
    paths: dict[str, Any] = {
        "/v2": {"get": operation("The server", {"200": response("OK", ref("V2Server"))})},
        "/v2/health/live": {"get": operation("Is the server alive", health)},
        "/v2/health/ready": {"get": operation("Is the server ready", health | _errors("503"))},
        "/v2/models/stats": {"get": operation("Statistics of all models", {"200": response("OK", _stats())})},
        "/v2/repository/index": {
            "post": operation(
                "The models",
                {"200": response("OK", index)} | _errors("400", "413"),
                request_body=body({JSON: {"schema": record({"ready": nullable(_BOOL)})}}, required=False),
            )
        },
    }
    paths |= _model_paths("/v2/models/{name}", [name], models[0])
    return paths | _model_paths("/v2/models/{name}/versions/{version}", [name, version], models[0])


def _model_paths(base: str, parameters: list[Schema], example: Model) -> dict[str, Any]:
    def get(summary: str, schema: Schema, *errors: str) -> Schema:
        answers = {"200": response("OK", schema)} | _errors("404", *errors)
        return {"get": operation(summary, answers, parameters=parameters)}

    return {
        base: get("The model and its tensors", ref("V2Model")),
        f"{base}/ready": get("Is the model ready", record({"name": TEXT, "ready": _BOOL}, ["name", "ready"]), "503"),
        f"{base}/config": get(
            "The model in Triton's words", record({"name": TEXT, "max_batch_size": _COUNT}, ["name"])
        ),
        f"{base}/stats": get("The model's statistics, in Triton's shape", _stats()),
        f"{base}/infer": {"post": _infer(parameters, example)},
    }


def _infer(parameters: list[Schema], example: Model) -> Schema:
    """In binary, the JSON comes first, and its length in Inference-Header-Content-Length. Any media type is taken."""
    content = {
        JSON: {"schema": ref("V2InferRequest"), "example": {"inputs": [example_input(example.manifest)]}},
        BINARY: {"schema": {"type": "string", "contentMediaType": BINARY}},
    }
    answer = response("One row of each output per row of input", ref("V2InferResponse"))
    answer["content"][BINARY] = {"schema": {"type": "string", "contentMediaType": BINARY}}
    answer["headers"] = {
        "Cache-Status": {"required": True, "schema": TEXT},
        "Inference-Header-Content-Length": {"schema": {"type": "integer"}},
    }
    statuses = ("400", "404", "413", "415", "500", "501", "503", "504")
    return operation(
        "Ask a model many things",
        {"200": answer} | _errors(*statuses),
        parameters=parameters,
        request_body=body(content),
    )


def _stats() -> Schema:
    duration = record({"count": _COUNT, "ns": _COUNT}, ["count", "ns"])
    names = ("success", "fail", "queue", "compute_infer", "cache_hit", "cache_miss")
    inference = record(dict.fromkeys(names, duration), names)
    stats = record(
        {"name": TEXT, "version": TEXT, "last_inference": NUMBER, "inference_stats": inference},
        ["name", "version", "inference_stats"],
    )
    return record({"model_stats": array(stats)}, ["model_stats"])


def _errors(*statuses: str) -> Schema:
    return {status: response("See `error`", ref("V2Error")) for status in statuses}
