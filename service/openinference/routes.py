"""The Open Inference Protocol, version 2, as KServe's and Triton's clients speak it: all but ``infer`` (infer.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from service import __version__
from service.errors import NotSupported, Overloaded
from service.http.endpoint import SMALL_BODY_BYTES
from service.http.operations import CurrentRequest, CurrentRuntime, Operation
from service.lookup import Model
from service.openinference.infer import check_version
from service.openinference.outputs import describe_outputs
from service.openinference.rows import describe_inputs, explain_inputs, may_be_left_out
from service.openinference.schemas import (
    Health,
    IndexedModel,
    IndexRequest,
    ModelMetadata,
    ModelReadiness,
    ServerMetadata,
    Statistics,
    errors,
)
from service.openinference.tensors import load_as
from service.runtime import Runtime

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "statistics"]
TAGS: list[str | Enum] = ["open inference protocol"]
HITS = ("l1", "l2")
MISSES = ("computed", "collapsed")
FAILURES = ("failed", "not_cached")

Samples = Mapping[tuple[str, str], float]
"""(sample name, ``result`` label) -> value."""
PLATFORMS = {"tabular": "sklearn_joblib", "vision": "pytorch_exported_program"}

router = APIRouter(prefix="/v2", route_class=Operation, tags=TAGS)


@router.get("", summary="The server")
@router.get("/", include_in_schema=False)
async def server() -> ServerMetadata:
    return ServerMetadata(name="cached-prediction-service", version=__version__, extensions=EXTENSIONS)


@router.get("/health/live", summary="Is the server alive")
async def live(runtime: CurrentRuntime) -> Health:
    return Health(live=True, ready=not runtime.draining)


@router.get("/health/ready", summary="Is the server ready", responses=errors(503))
async def ready(runtime: CurrentRuntime) -> Health:
    _refuse_draining(runtime)
    return Health(live=True, ready=True)


@router.get("/models/stats", summary="Statistics of all models")
async def all_stats(runtime: CurrentRuntime) -> Statistics:
    return await _statistics(runtime, list(runtime.models.values()))


async def named_model(runtime: CurrentRuntime, name: str) -> Model:
    return runtime.model(name)


NamedModel = Annotated[Model, Depends(named_model)]


async def has_version(model: NamedModel, version: str) -> None:
    check_version(model, version)


async def metadata(model: NamedModel) -> ModelMetadata:
    """The model's tensors. Where several inputs are listed they are alternatives: a request has one of them."""
    return ModelMetadata(
        name=model.name,
        versions=[model.version],
        platform=PLATFORMS.get(model.manifest.kind, model.manifest.kind),
        inputs=describe_inputs(model.manifest),
        outputs=describe_outputs(model.manifest),
        properties={"inputs": explain_inputs(model.manifest)},
    )


async def model_ready(model: NamedModel, runtime: CurrentRuntime) -> ModelReadiness:
    _refuse_draining(runtime)
    return ModelReadiness(name=model.name, ready=True)


async def config(model: NamedModel, runtime: CurrentRuntime) -> dict[str, Any]:
    """The same in the words of Triton's model configuration, whose dimensions leave the batch out."""
    inputs, outputs = describe_inputs(model.manifest), describe_outputs(model.manifest)
    most = model.manifest.max_batch_size or runtime.settings.max_batch_size
    return {
        "name": model.name,
        "platform": PLATFORMS.get(model.manifest.kind, model.manifest.kind),
        "backend": model.manifest.kind,
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": runtime.settings.max_batch_rows,
        "input": [
            _configured(tensor) | {"optional": may_be_left_out(model.manifest, tensor["name"])} for tensor in inputs
        ],
        "output": [_configured(tensor) for tensor in outputs],
        "dynamic_batching": {"preferred_batch_size": [most]},
        "response_cache": {"enable": True},
    }


async def stats(model: NamedModel, runtime: CurrentRuntime) -> Statistics:
    return await _statistics(runtime, [model])


def _model_router(path: str, *dependencies: Any) -> APIRouter:
    """What is asked of one model, with its version in the path or without."""
    about = APIRouter(prefix=path, route_class=Operation, tags=TAGS, dependencies=dependencies, responses=errors(404))
    about.add_api_route("", metadata, summary="The model and its tensors")
    about.add_api_route("/ready", model_ready, summary="Is the model ready", responses=errors(503))
    about.add_api_route("/config", config, summary="The model in Triton's words")
    about.add_api_route("/stats", stats, summary="The model's statistics, in Triton's shape")
    return about


async def _statistics(runtime: Runtime, models: list[Model]) -> Statistics:
    runtime.update_metrics()
    samples = runtime.metrics.samples
    found = [_model_stats(model, await asyncio.to_thread(samples, model.name)) for model in models]
    return Statistics.model_validate({"model_stats": found})


@router.post(
    "/repository/index",
    summary="The models",
    responses=errors(400, 413, 415),
    openapi_extra={"requestBody": {"content": {"application/json": {"schema": IndexRequest.model_json_schema()}}}},
)
async def index(request: CurrentRequest, runtime: CurrentRuntime) -> list[IndexedModel]:
    """Every model that is served; ``{"ready": true}`` asks for those that are ready, which they all are."""
    body = await request.content(SMALL_BODY_BYTES)  # whatever its media type: Triton's client names none
    if body:
        load_as(IndexRequest, body)
    return [IndexedModel(name=model.name, version=model.version) for model in runtime.models.values()]


UNSUPPORTED = (
    "/repository/models/{name}/{action}",
    "/systemsharedmemory/{rest:path}",
    "/cudasharedmemory/{rest:path}",
    "/models/{name}/trace/setting",
    "/models/{name}/generate",
    "/models/{name}/generate_stream",
    "/trace/setting",
    "/logging",
)
"""Extensions of Triton's that its client has methods for."""


async def unsupported() -> None:
    raise NotSupported("This extension of the protocol is not supported.")


for path in UNSUPPORTED:
    router.add_api_route(path, unsupported, methods=["GET", "POST"], include_in_schema=False)

ROUTERS = (
    router,
    _model_router("/v2/models/{name}"),
    _model_router("/v2/models/{name}/versions/{version}", Depends(has_version)),
)


def _model_stats(model: Model, samples: Samples) -> dict[str, Any]:
    """The counts of all workers since their start. Each row of a request counts. A hit is no inference."""
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": int(samples.get(("predict_last_computation_timestamp_seconds", ""), 0) * 1e3),
        "inference_count": int(samples.get(("predict_computations_total", ""), 0)),
        "execution_count": int(samples.get(("predict_model_seconds_count", ""), 0)),
        "inference_stats": {
            "success": _results(samples, HITS + MISSES),
            "fail": _results(samples, FAILURES),
            "queue": _times(samples, "predict_queue_seconds"),
            "compute_input": _duration(0, 0),
            "compute_infer": _times(samples, "predict_model_seconds"),
            "compute_output": _duration(0, 0),
            "cache_hit": _results(samples, HITS),
            "cache_miss": _results(samples, MISSES),
        },
        "batch_stats": [],
    }


def _results(samples: Samples, results: tuple[str, ...]) -> dict[str, int]:
    count = sum(samples.get(("predict_cache_results_total", result), 0) for result in results)
    seconds = sum(samples.get(("predict_cache_result_seconds_total", result), 0) for result in results)
    return _duration(count, seconds)


def _times(samples: Samples, family: str) -> dict[str, int]:
    return _duration(samples.get((f"{family}_count", ""), 0), samples.get((f"{family}_sum", ""), 0))


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": int(seconds * 1e9)}


def _refuse_draining(runtime: Runtime) -> None:
    if runtime.draining:
        raise Overloaded("The service is shutting down.")


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    datatype = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    return {"name": tensor["name"], "data_type": f"TYPE_{datatype}", "dims": tensor["shape"][1:]}
