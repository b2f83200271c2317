"""What our path operations have beside FastAPI's: HEAD, ``If-Match``, ``no-store``, a request id, metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Depends
from fastapi import Request as FastAPIRequest
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.directives import check_if_match
from service.http.endpoint import CURRENT, Headers, Request, is_named
from service.runtime import Runtime

logger = logging.getLogger(__name__)

SHORT_CUTS = ("digest", "head", "respond")
"""What our protocol offers in a scope so that answers need not pass through ``send``, where middleware sees them."""


async def _current(request: FastAPIRequest) -> Request:
    current: Request = request.scope[CURRENT]
    return current


async def _runtime(request: FastAPIRequest) -> Runtime:
    runtime: Runtime = request.state.runtime
    return runtime


CurrentRequest = Annotated[Request, Depends(_current)]
CurrentRuntime = Annotated[Runtime, Depends(_runtime)]


class Operation(APIRoute):
    """The ``route_class`` of all routers. Answers say ``no-store`` unless they say something else."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(_head_as_get(scope))

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[CURRENT].route = self.path
        await super().handle(_head_as_get(scope), receive, send)

    def get_route_handler(self) -> Callable[[FastAPIRequest], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: FastAPIRequest) -> Response:
            response = await handler(request)
            response.headers.setdefault("cache-control", "no-store")
            current: Request = request.scope[CURRENT]
            if (if_match := current.header(b"if-match")) is not None:
                check_if_match(current.method, if_match, response.status_code, response.raw_headers)
            return response

        return handle


def _head_as_get(scope: Scope) -> Scope:
    """A server sends no body to HEAD, whatever it is given."""
    return {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope


class Observed:
    """Around FastAPI's layers: it names and counts each request, whichever route or middleware answers it.

    All layers find the Request as ``scope[CURRENT]``. The route that answers writes its own name into it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status, complete = time.perf_counter(), 500, False
        headers: Headers = []
        request = Request(scope, receive)
        request.enter()

        async def observed_send(message: Message) -> None:
            nonlocal status, headers, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = _with_id(request, status, list(message["headers"]))
                message = {**message, "headers": headers}
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        inner = {name: value for name, value in scope.items() if name not in SHORT_CUTS}
        try:
            await self._app({**inner, CURRENT: request}, receive, observed_send)
        except Exception:
            if not complete:
                raise
            logger.exception("%s %s failed", request.method, request.route)
        finally:
            request.release()
        request.answered(status, headers, time.perf_counter() - started)


def _with_id(request: Request, status: int, headers: Headers) -> Headers:
    named = any(name == b"x-request-id" for name, _ in headers)
    if not named and is_named(request, status, headers):
        headers.append((b"x-request-id", request.id))
    return headers
