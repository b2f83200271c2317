"""What FastAPI's OpenAPI generator is told of ``…/infer``, whose routes are raw ASGI."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi.routing import APIRoute

from service.http.schemas import Schema
from service.lookup import Model
from service.openinference.infer import ENDPOINTS
from service.openinference.rows import example_inputs
from service.openinference.schemas import InferRequest, InferResponse, errors

BINARY = "application/octet-stream"
_TEXT: Schema = {"type": "string"}
_BYTES: Schema = {BINARY: {"schema": {"type": "string", "contentMediaType": BINARY}}}
_ANSWER: Schema = {
    "description": "One row of each output per row of input",
    "content": _BYTES,
    "headers": {
        "Cache-Status": {"required": True, "schema": _TEXT},
        "Inference-Header-Content-Length": {"schema": {"type": "integer"}},
    },
}


def infer_routes(example: Model) -> Iterator[APIRoute]:
    """A binary body begins with JSON, whose length is in Inference-Header-Content-Length. Any media type will do."""

    async def current(name: str, request: InferRequest) -> None: ...

    async def of_version(name: str, version: str, request: InferRequest) -> None: ...

    body = _BYTES | {"application/json": {"example": {"inputs": example_inputs(example.manifest)}}}
    described: list[Callable[..., Any]] = [current, of_version]
    for endpoint, function in zip(ENDPOINTS, described, strict=True):
        yield APIRoute(
            endpoint.route,
            function,
            methods=["POST"],
            tags=["open inference protocol"],
            summary="Ask a model many things",
            operation_id=f"POST {endpoint.route}",
            response_model=InferResponse,
            responses=errors(400, 404, 413, 415, 429, 500, 501, 503, 504) | {200: _ANSWER},
            openapi_extra={"requestBody": {"content": body}},
        )
