"""The application: ``create_app(settings)``, and ``app`` for any ASGI server.

Path operations are in the routers of management/ and openinference/. The hot routes are raw ASGI endpoints. To import
``app`` opens nothing and reads no setting: its lifespan does, in the process that serves.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.middleware import Middleware
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__
from service.config import Settings, names, settings_of_process
from service.http import batch, predict
from service.http.endpoint import CURRENT, Endpoint
from service.http.operations import Observed, Operation
from service.management import admin, docs, home, status
from service.management.openapi import TITLE, describe
from service.management.problems import HANDLERS
from service.openinference import infer
from service.openinference import routes as v2
from service.runtime import Runtime, open_runtime

logger = logging.getLogger(__name__)

ACCEPT_QUERY = [(b"accept-query", ", ".join(predict.MEDIA_TYPES).encode())]
PREDICT = {"GET": predict.get, "POST": predict.post, "QUERY": predict.query}

HOT = [
    Endpoint("/predict", PREDICT, options=ACCEPT_QUERY),
    Endpoint("/predict_batch", {"POST": batch.batch}),
    Endpoint("/models/{name}/predict", PREDICT, options=ACCEPT_QUERY),
    *infer.ENDPOINTS,
]
FIXED = {endpoint.route: endpoint for endpoint in HOT if "{" not in endpoint.route}
PATTERNS = [(compile_path(endpoint.route)[0], endpoint) for endpoint in HOT if "{" in endpoint.route]

CORS_METHODS = ("GET", "HEAD", "POST", "QUERY")
CORS_HEADERS = ("Cache-Control", "Content-Type", "If-None-Match", "Inference-Header-Content-Length", "X-Request-ID")
"""What pages from elsewhere may send. No ``Authorization``: they have no business in /admin."""
CORS_EXPOSED = ("Age", "Cache-Status", "Content-Location", "ETag", "Server-Timing", "X-Request-ID")


class Service(FastAPI):
    """FastAPI, whose hot routes are found before its layers while there is no middleware in them.

    The layers alone cost as much as a look-up in L1. With middleware, every request goes through all of it.
    """

    _is_bare = False
    _described: dict[str, str] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        if b"%2" in scope.get("raw_path", b""):
            scope["path"] = _decoded(scope["raw_path"])
        app: ASGIApp = (_find(scope) if self._is_bare else None) or Observed(super().__call__)
        await app(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Called for the lifespan, and again if the settings add middleware; without a lifespan, for the first request.

        OpenTelemetry's instrumentation is no middleware but has replaced this method. FastAPI's own tracing is neither.
        """
        telemetry = getattr(self, "_native_telemetry", None)
        is_traced = "build_middleware_stack" in vars(self) or (telemetry is not None and telemetry.enabled())
        self._is_bare = not self.user_middleware and not is_traced
        return super().build_middleware_stack()

    def openapi(self) -> dict[str, Any]:
        """Made once for the models that are served, since that takes a quarter of a second."""
        runtime: Runtime = self.state.runtime
        served = {name: model.version for name, model in runtime.models.items()}
        if self.openapi_schema is None or self._described != served:
            self._described, self.openapi_schema = served, describe(self.routes, runtime)
        return self.openapi_schema


def _decoded(raw_path: bytes) -> str:
    """The path, in which a coded slash stays one: it is data, and separates nothing (RFC 3986, 2.2), so that a proxy
    and this service see the same segments."""
    return unquote(re.sub("%2[Ff]", "%252F", raw_path.decode("latin-1")))


def _find(scope: Scope) -> Endpoint | None:
    path = scope["path"]
    if (fixed := FIXED.get(path)) is not None:
        return fixed
    for pattern, endpoint in PATTERNS:
        if match := pattern.match(path):
            scope["path_params"] = match.groupdict()
            return endpoint
    return None


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application. Its lifespan opens the runtime and hands it to every request as ``request.state.runtime``.

    ``settings`` None: those of the process, read when the lifespan starts. Whoever runs the application may set
    ``app.state.settings``, and ``app.state.lost``, which is called with the reason when a model can compute no more.
    """
    app = Service(
        title=TITLE,
        version=__version__,
        lifespan=_lifespan,
        openapi_url=None,  # /openapi.json and /docs are in management/docs.py
        redirect_slashes=False,
        exception_handlers=HANDLERS,
        routes=[Route(endpoint.route, endpoint, name=endpoint.route) for endpoint in HOT],
    )
    app.router.route_class = Operation
    for router in (home.router, status.router, docs.router, admin.router, *v2.ROUTERS):
        app.include_router(router)
    app.state.settings = settings
    app.state.lost = _end_process
    return app


@asynccontextmanager
async def _lifespan(app: Service) -> AsyncIterator[dict[str, Any]]:
    settings: Settings = app.state.settings or settings_of_process()
    async with open_runtime(settings, app.state.lost) as runtime:
        app.state.runtime = runtime
        owners, ours = app.user_middleware, _middleware(settings, runtime)
        if ours:  # The layers were built for the lifespan, before there were settings.
            app.user_middleware = [*ours, *owners]
            app.middleware_stack = app.build_middleware_stack()
        try:
            yield {"runtime": runtime}
        finally:
            if ours:
                app.user_middleware, app.middleware_stack = owners, None


def _middleware(settings: Settings, runtime: Runtime) -> list[Middleware]:
    """What the settings ask for, the outermost first."""
    found: list[Middleware] = []
    if runtime.traces is not None:
        found.append(Middleware(runtime.traces.around, route_of=lambda scope: scope[CURRENT].route))
    if settings.cors_origins:
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=names(settings.cors_origins),
                allow_methods=CORS_METHODS,
                allow_headers=CORS_HEADERS,
                expose_headers=CORS_EXPOSED,
            )
        )
    return found


def _end_process(reason: str) -> None:
    """This process can answer only hits any more. It ends as if told to, so that whoever started it starts another."""
    logger.error("%s; this process ends.", reason)
    os.kill(os.getpid(), signal.SIGTERM)


app = create_app()
