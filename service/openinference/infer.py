"""``…/infer`` of the Open Inference Protocol, version 2: tensors in, tensors out.

Each row is a question of its own, with the key it has under /predict. Outputs, datatypes and codings are renderings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import orjson

from service.cache.entry import Entry
from service.errors import InvalidInput, MalformedRequest, ServiceError, UnknownModel
from service.http.batch import BYTES_PER_ROW, MAX_BATCH_BYTES
from service.http.coding import encode, negotiate
from service.http.endpoint import NO_STORE, Endpoint, Hot, Reply, Request
from service.http.render import batch_status
from service.inference.predictor import Question, Questions
from service.lookup import Answer, BatchAnswer, Model, are_bytes
from service.openinference.outputs import render_outputs, wanted_outputs
from service.openinference.rows import bad_row, questions
from service.openinference.schemas import RequestedOutput
from service.openinference.tensors import Inference, read_inference

CURRENT = "1"
"""The version for clients that only know numbers. It means the model that is served now."""


def render_error(error: ServiceError) -> Reply:
    """``{"error": <text>}`` and nothing else: the protocol's clients read no more."""
    status = MalformedRequest.status if error.status == InvalidInput.status else error.status
    return Reply(orjson.dumps({"error": str(error)}), status, headers=[NO_STORE, *error.headers])


def check_version(model: Model, version: str) -> None:
    """Raises UnknownModel."""
    if version not in (CURRENT, model.version):
        raise UnknownModel(
            f"Model {model.name} has the version {model.version} ({CURRENT}: the current one), no other."
        )


async def infer(request: Request) -> Reply:
    model = request.runtime.model(request.path_parameter("name"))
    if (version := request.path_parameter("version")) is not None:
        check_version(model, version)
    body = await request.content(MAX_BATCH_BYTES)  # whatever the media type says: Triton's client sends none
    length = request.header(b"inference-header-content-length")
    most = request.runtime.settings.max_batch_rows
    inference = await request.work(partial(read_inference, body, length, most), len(body))
    size = max(len(body), inference.inputs[0].shape[0] * BYTES_PER_ROW)
    asked = await request.work(partial(questions, model, inference.inputs), size)
    wanted = wanted_outputs(model.manifest, inference)
    batch, hit = await _answer(request, model, asked)
    predictions = _predictions(batch)
    render = partial(_inferred, model, inference, wanted, predictions)
    reply = await request.work(render, len(predictions) * len(predictions[0]))
    reply.headers.append((b"cache-status", batch_status(batch)))
    if hit is not None:
        reply.hot = Hot(model.name, hit.key, hit.entry, id_at=_place_of_id(inference, body, length, reply))
    return await _encoded(request, reply)


async def _answer(
    request: Request, model: Model, asked: list[Question] | Questions
) -> tuple[BatchAnswer, Answer | None]:
    """The answers of all rows, and of a request for one row its hit in L1."""
    pipeline, directives = request.runtime.pipeline, request.directives
    if len(asked) > 1:
        return await pipeline.answer_many(model, asked, directives, _values), None
    try:
        answer = await pipeline.answer(model, asked[0], directives)
    except InvalidInput as error:
        raise bad_row(0, error) from None
    batch = BatchAnswer([answer.entry], int(answer.hit), int(answer.source == "computed"))
    return batch, answer if answer.source == "l1" else None


def _values(entries: Sequence[Entry | None]) -> Sequence[bytes | None]:
    return [None if entry is None else entry.value for entry in entries]


def _predictions(batch: BatchAnswer) -> list[bytes]:
    """The answers to all rows. Raises the first row's error, since the protocol has no errors of single rows."""
    if are_bytes(batch.rows):
        return batch.rows
    for row, said in enumerate(batch.rows):
        if isinstance(said, ServiceError):
            raise bad_row(row, said) if isinstance(said, InvalidInput) else said
    return [said.value if isinstance(said, Entry) else cast("bytes", said) for said in batch.rows]


def _inferred(model: Model, inference: Inference, wanted: list[RequestedOutput], predictions: list[bytes]) -> Reply:
    outputs, binary = render_outputs(model.manifest, predictions, wanted)
    document: dict[str, Any] = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    if inference.id is not None:
        document["id"] = inference.id
    head = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not binary:
        return Reply(head)
    length = (b"inference-header-content-length", b"%d" % len(head))
    return Reply(head + binary, content_type=b"application/octet-stream", headers=[length])


def _place_of_id(inference: Inference, body: bytes, length: bytes | None, reply: Reply) -> int | None:
    """Where the reply has the request's id; None if other text in the request could be taken for an id."""
    text = body if length is None else body[: int(length)]
    if inference.id is None or text.count(b'"id"') != 1 or b"\\" in text:
        return None
    end = dict(reply.headers).get(b"inference-header-content-length", b"%d" % len(reply.body))
    return int(end) - len(f'{inference.id}"}}')


async def _encoded(request: Request, reply: Reply) -> Reply:
    reply.headers.append((b"vary", b"accept-encoding"))
    coding = negotiate(request.header(b"accept-encoding"))
    if coding is not None:
        encoding = partial(encode, reply.body, coding)
        reply.body = await request.work(encoding, len(reply.body))
        reply.headers.append((b"content-encoding", coding.encode()))
        if reply.hot is not None:
            reply.hot.id_at = None
    return reply


ENDPOINTS = [
    Endpoint(f"/v2/models/{{name}}{version}/infer", {"POST": infer}, render_error)
    for version in ("", "/versions/{version}")
]
