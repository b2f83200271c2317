"""The Open Inference Protocol, version 2, as KServe's and Triton's clients speak it.

Each row is a question of its own, with the key it has under /predict. Outputs, datatypes and codings are renderings.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import orjson

from service import __version__
from service.errors import InvalidInput, MalformedRequest, NotSupported, Overloaded, ServiceError, UnknownModel
from service.http.caching import batch_status
from service.http.coding import encode, negotiate, read_content
from service.http.endpoint import NO_STORE, Endpoint, Handler, Reply, Request, error_headers
from service.http.json_body import load_object
from service.http.predict import MAX_BATCH_BYTES, MAX_BATCH_ROWS
from service.inference.predictor import Question
from service.lookup import Answer, Model
from service.openinference.model_stats import model_stats
from service.openinference.outputs import describe_outputs, render_outputs, wanted_outputs
from service.openinference.rows import bad_row, describe_inputs, explain_inputs, questions
from service.openinference.tensors import Inference, Wanted, member, read_inference

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "statistics")
CURRENT = "1"
"""The version that clients ask for which know of numbers only: whatever is served now."""
SMALL_BODY_BYTES = 64 * 2**10
"""Up to here, compressing takes less than a change of threads is worth."""
PLATFORMS = {"tabular": "sklearn_joblib", "vision": "pytorch_state_dict"}


def render_error(error: ServiceError) -> Reply:
    """``{"error": <text>}`` and nothing else, since that is what its clients read."""
    status = MalformedRequest.status if error.status == InvalidInput.status else error.status
    return Reply(orjson.dumps({"error": str(error)}), status, headers=error_headers(error))


async def server(request: Request) -> Reply:
    return _reply({"name": "cached-prediction-service", "version": __version__, "extensions": EXTENSIONS})


async def live(request: Request) -> Reply:
    return _reply({"live": True, "ready": not request.runtime.draining})


async def ready(request: Request) -> Reply:
    _refuse_draining(request)
    return _reply({"live": True, "ready": True})


async def model_ready(request: Request) -> Reply:
    model = _model(request)
    _refuse_draining(request)
    return _reply({"name": model.name, "ready": True})


async def model(request: Request) -> Reply:
    """The model's tensors. Where several inputs are listed they are alternatives: a request has one of them."""
    model = _model(request)
    return _reply(
        {
            "name": model.name,
            "versions": [model.version],
            "platform": PLATFORMS.get(model.manifest.kind, model.manifest.kind),
            "inputs": describe_inputs(model.manifest),
            "outputs": describe_outputs(model.manifest),
            "properties": {"inputs": explain_inputs(model.manifest)},
        }
    )


async def config(request: Request) -> Reply:
    """The same in the words of Triton's model configuration, whose dimensions leave the batch out."""
    model = _model(request)
    settings = request.runtime.settings
    inputs, outputs = describe_inputs(model.manifest), describe_outputs(model.manifest)
    return _reply(
        {
            "name": model.name,
            "platform": PLATFORMS.get(model.manifest.kind, model.manifest.kind),
            "backend": model.manifest.kind,
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": MAX_BATCH_ROWS,
            "input": [_configured(tensor) | {"optional": len(inputs) > 1} for tensor in inputs],
            "output": [_configured(tensor) for tensor in outputs],
            "dynamic_batching": {"preferred_batch_size": [settings.max_batch_size]},
            "response_cache": {"enable": True},
        }
    )


async def stats(request: Request) -> Reply:
    name = request.path_parameter("name")
    models = [_model(request)] if name is not None else list(request.runtime.models.values())
    request.runtime.update_metrics()
    samples = request.runtime.metrics.samples
    found = [model_stats(model, await asyncio.to_thread(samples, model.name)) for model in models]
    return _reply({"model_stats": found})


async def index(request: Request) -> Reply:
    """Every model that is served; ``{"ready": true}`` asks for those that are ready, which they all are."""
    body = await read_content(request, SMALL_BODY_BYTES)
    if body:
        member(load_object(body), "ready", bool, False)
    models = request.runtime.models.values()
    return _reply([{"name": m.name, "version": m.version, "state": "READY", "reason": ""} for m in models])


async def unsupported(request: Request) -> Reply:
    raise NotSupported("This extension of the protocol is not supported.")


async def infer(request: Request) -> Reply:
    model = _model(request)
    body = await read_content(request, MAX_BATCH_BYTES)  # whatever the media type says: Triton's client sends none
    inference, asked = await request.runtime.bodies.work(
        partial(_read, model, body, request.header(b"inference-header-content-length")), len(body)
    )
    wanted = wanted_outputs(model.manifest, inference)
    answers = await request.runtime.pipeline.answer_many(model, asked, request.directives)
    predictions = _predictions(answers)
    render = partial(_inferred, model, inference, wanted, predictions)
    reply = await request.runtime.bodies.work(render, sum(map(len, predictions)))
    reply.headers.append((b"cache-status", batch_status(answers)))
    return await _encoded(request, reply)


def _predictions(answers: list[Answer | ServiceError]) -> list[bytes]:
    """Of all rows; raises the error of the first that has one, since the protocol has none for a single row."""
    for number, answer in enumerate(answers):
        if isinstance(answer, ServiceError):
            raise bad_row(number, answer) if isinstance(answer, InvalidInput) else answer
    return [answer.entry.value for answer in answers if isinstance(answer, Answer)]


def _inferred(model: Model, inference: Inference, wanted: list[Wanted], predictions: list[bytes]) -> Reply:
    outputs, binary = render_outputs(model.manifest, predictions, wanted)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if inference.id is not None:
        document["id"] = inference.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return Reply(head)
    length = (b"inference-header-content-length", b"%d" % len(head))
    return Reply(head + binary, content_type=b"application/octet-stream", headers=[length])


def _read(model: Model, body: bytes, header_length: bytes | None) -> tuple[Inference, list[Question]]:
    inference = read_inference(body, header_length)
    return inference, questions(model, inference.inputs)


async def _encoded(request: Request, reply: Reply) -> Reply:
    reply.headers.append((b"vary", b"accept-encoding"))
    coding = negotiate(request.header(b"accept-encoding"))
    if coding is not None:
        if len(reply.body) <= SMALL_BODY_BYTES:
            reply.body = encode(reply.body, coding)
        else:
            # The reply, too, is this request's own.
            reply.body = await asyncio.to_thread(encode, reply.body, coding)
        reply.headers.append((b"content-encoding", coding.encode()))
    return reply


def _model(request: Request) -> Model:
    """Of the name and version in the path; raises UnknownModel."""
    model = request.runtime.model(request.path_parameter("name"))
    version = request.path_parameter("version")
    if version not in (None, CURRENT, model.version):
        raise UnknownModel(
            f"Model {model.name} has the version {model.version} ({CURRENT}: the current one), no other."
        )
    return model


def _refuse_draining(request: Request) -> None:
    if request.runtime.draining:
        raise Overloaded("The service is shutting down.")


def _configured(tensor: dict[str, Any]) -> dict[str, Any]:
    datatype = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    return {"name": tensor["name"], "data_type": f"TYPE_{datatype}", "dims": tensor["shape"][1:]}


def _reply(document: object) -> Reply:
    return Reply(orjson.dumps(document), headers=[NO_STORE])


def _endpoint(route: str, **handlers: Handler) -> Endpoint:
    return Endpoint(route, handlers, render_error)


def _model_endpoints(base: str) -> list[Endpoint]:
    return [
        _endpoint(base, GET=model),
        _endpoint(f"{base}/ready", GET=model_ready),
        _endpoint(f"{base}/config", GET=config),
        _endpoint(f"{base}/stats", GET=stats),
        _endpoint(f"{base}/infer", POST=infer),
    ]


UNSUPPORTED = (
    "/v2/repository/models/{name}/{action}",
    "/v2/systemsharedmemory/{rest:path}",
    "/v2/cudasharedmemory/{rest:path}",
    "/v2/models/{name}/trace/setting",
    "/v2/models/{name}/generate",
    "/v2/models/{name}/generate_stream",
    "/v2/trace/setting",
    "/v2/logging",
)
"""Extensions of Triton's that its client has methods for."""

ENDPOINTS = [
    _endpoint("/v2", GET=server),
    _endpoint("/v2/", GET=server),
    _endpoint("/v2/health/live", GET=live),
    _endpoint("/v2/health/ready", GET=ready),
    _endpoint("/v2/models/stats", GET=stats),
    *_model_endpoints("/v2/models/{name}"),
    *_model_endpoints("/v2/models/{name}/versions/{version}"),
    _endpoint("/v2/repository/index", POST=index),
    *(_endpoint(route, GET=unsupported, POST=unsupported) for route in UNSUPPORTED),
    _endpoint("/v2/{rest:path}"),
]
