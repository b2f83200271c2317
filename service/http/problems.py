"""From exceptions to answers: FastAPI's exception handlers for all routes. The path decides the form of an error."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.errors import InvalidInput, MethodNotAllowed, NotFound, ServiceError
from service.http.endpoint import CURRENT, ErrorRenderer, Reply
from service.http.operations import as_response

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "QUERY")


class ExceptionHandlers:
    """``renderer``: a path -> how its errors are written. ``guard``: raises for who may not know the path."""

    def __init__(self, renderer: Callable[[str], ErrorRenderer], guard: Callable[[Any], None]) -> None:
        self._renderer = renderer
        self._guard = guard

    def table(self) -> dict[Any, Any]:
        """What FastAPI takes as ``exception_handlers``."""
        return {
            ServiceError: self.refuse,
            HTTPException: self.http_exception,
            RequestValidationError: self.invalid,
            Exception: self.failed,
        }

    async def refuse(self, request: Request, error: ServiceError) -> Response:
        request.scope[CURRENT].refused(error)
        return as_response(self._rendered(request, error))

    async def invalid(self, request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return await self.refuse(request, InvalidInput(f"{first['msg']}.", parameter=str(first["loc"][-1])))

    async def failed(self, request: Request, error: Exception) -> Response:
        return as_response(self._rendered(request, ServiceError()))

    async def http_exception(self, request: Request, error: HTTPException) -> Response:
        if error.status_code == NotFound.status and error.detail == HTTPStatus.NOT_FOUND.phrase:
            return await self.refuse(request, NotFound())
        if error.status_code == MethodNotAllowed.status:
            return await self._not_allowed(request)
        reply = self._rendered(request, _as_service_error(error))
        reply.headers += [(name.encode(), value.encode()) for name, value in (error.headers or {}).items()]
        return as_response(reply)

    async def _not_allowed(self, request: Request) -> Response:
        """405, or the answer to OPTIONS. No operation was called, so no dependency has checked the request."""
        try:
            self._guard(request.scope[CURRENT])
        except ServiceError as error:
            return await self.refuse(request, error)
        allow = (b"allow", ", ".join([*_allowed(request), "OPTIONS"]).encode())
        if request.method == "OPTIONS":
            return as_response(Reply(status=204, content_type=None, headers=[allow]))
        reply = self._rendered(request, MethodNotAllowed(f"{request.method} is not one of the methods in Allow."))
        reply.headers.append(allow)
        return as_response(reply)

    def _rendered(self, request: Request, error: ServiceError) -> Reply:
        return self._renderer(request.scope["path"])(error)


def _allowed(request: Request) -> list[str]:
    """The methods that some route has for this path."""
    scopes = {method: {**request.scope, "method": method} for method in METHODS}
    return [
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    ]


def _as_service_error(error: HTTPException) -> ServiceError:
    """The service's error for FastAPI's exception, which a middleware or an added route may raise."""
    made = ServiceError(str(error.detail))
    made.status, made.type, made.title = error.status_code, "about:blank", HTTPStatus(error.status_code).phrase
    return made
