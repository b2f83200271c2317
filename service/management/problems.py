"""From exceptions to answers: FastAPI's exception handlers for all routes. The path decides the form of an error."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.errors import InvalidInput, MethodNotAllowed, NotFound, ServiceError
from service.http.endpoint import CURRENT, Reply, problem
from service.management import admin
from service.openinference.infer import render_error

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "QUERY")


async def _refuse(request: Request, error: ServiceError) -> Response:
    request.scope[CURRENT].refused(error)
    return _as_response(_rendered(request, error))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    return await _refuse(request, InvalidInput(f"{first['msg']}.", parameter=str(first["loc"][-1])))


async def _failed(request: Request, error: Exception) -> Response:
    return _as_response(_rendered(request, ServiceError()))


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """What FastAPI raises itself; also what a middleware or an added route may raise."""
    if error.status_code == NotFound.status and error.detail == HTTPStatus.NOT_FOUND.phrase:
        return await _refuse(request, NotFound())
    if error.status_code == MethodNotAllowed.status:
        return await _not_allowed(request)
    shown = ServiceError(str(error.detail))
    shown.status, shown.type, shown.title = error.status_code, "about:blank", HTTPStatus(error.status_code).phrase
    reply = _rendered(request, shown)
    reply.headers += [(name.encode(), value.encode()) for name, value in (error.headers or {}).items()]
    return _as_response(reply)


async def _not_allowed(request: Request) -> Response:
    """405, or the answer to OPTIONS. No operation was called, so no dependency has checked the request."""
    try:
        if request.scope["path"].startswith(f"{admin.PREFIX}/"):
            admin.check_token(request.scope[CURRENT])
    except ServiceError as error:
        return await _refuse(request, error)
    allow = (b"allow", ", ".join([*_allowed(request), "OPTIONS"]).encode())
    if request.method == "OPTIONS":
        return _as_response(Reply(status=204, content_type=None, headers=[allow]))
    reply = _rendered(request, MethodNotAllowed(f"{request.method} is not one of the methods in Allow."))
    reply.headers.append(allow)
    return _as_response(reply)


def _allowed(request: Request) -> list[str]:
    """The methods that some route has for this path."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


def _rendered(request: Request, error: ServiceError) -> Reply:
    return render_error(error) if f"{request.scope['path']}/".startswith("/v2/") else problem(error)


def _as_response(reply: Reply) -> Response:
    response = Response(reply.body, reply.status)
    if reply.content_type is not None:
        response.headers["content-type"] = reply.content_type.decode()
    response.raw_headers += reply.headers
    return response


HANDLERS: dict[Any, Any] = {
    ServiceError: _refuse,
    HTTPException: _http_exception,
    RequestValidationError: _invalid,
    Exception: _failed,
}
"""What FastAPI takes as ``exception_handlers``."""
