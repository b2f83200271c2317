"""The routes, in one table, and the runtime behind them: ``create_app(settings)``, and ``app`` for any ASGI server.

To import ``app`` opens nothing and reads no setting: its lifespan does, in the process that serves.
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
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from service import __version__
from service.config import Settings, settings_of_process
from service.http import predict
from service.http.endpoint import Endpoint
from service.management import admin, docs, status
from service.openinference import routes as v2
from service.runtime import open_runtime

logger = logging.getLogger(__name__)

ACCEPT_QUERY = [(b"accept-query", ", ".join(predict.MEDIA_TYPES).encode())]
PREDICT = {"GET": predict.get, "POST": predict.post, "QUERY": predict.query}

ENDPOINTS = [
    Endpoint("/predict", PREDICT, options=ACCEPT_QUERY),
    Endpoint("/predict_batch", {"POST": predict.batch}),
    Endpoint("/models", {"GET": status.models}),
    Endpoint("/models/{name}", {"GET": status.model}),
    Endpoint("/models/{name}/predict", PREDICT, options=ACCEPT_QUERY),
    Endpoint("/livez", {"GET": status.livez}),
    Endpoint("/readyz", {"GET": status.readyz}),
    Endpoint("/metrics", {"GET": status.metrics}),
    Endpoint("/openapi.json", {"GET": docs.openapi}),
    Endpoint("/docs", {"GET": docs.docs}),
    Endpoint(f"{docs.ASSETS}/{{name}}", {"GET": docs.asset}),
    Endpoint("/admin/purge", {"POST": admin.purge}, guard=admin.guard),
    Endpoint("/admin/key", {"GET": admin.key_of}, guard=admin.guard),
    Endpoint("/admin/cache/stats", {"GET": admin.cache_stats}, guard=admin.guard),
    Endpoint("/admin/cache/{key}", {"GET": admin.show, "DELETE": admin.forget}, guard=admin.guard),
    *v2.ENDPOINTS,
]
FIXED = {endpoint.route: endpoint for endpoint in ENDPOINTS if "{" not in endpoint.route}
PATTERNS = [(compile_path(endpoint.route)[0], endpoint) for endpoint in ENDPOINTS if "{" in endpoint.route]


class App(FastAPI):
    """FastAPI, with our endpoints found before any middleware.

    There is nothing in its layers that an endpoint needs, and going through them costs as much as a look-up in L1.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if b"%2" in scope.get("raw_path", b""):
            scope["path"] = _decoded(scope["raw_path"])
        endpoint = _find(scope) if scope["type"] == "http" else None
        await (endpoint or super().__call__)(scope, receive, send)


def _decoded(raw_path: bytes) -> str:
    """The path, in which a coded slash stays one: it is data, and separates nothing (RFC 3986, 2.2), so that a proxy
    and this service see the same segments."""
    return unquote(re.sub("%2[Ff]", "%252F", raw_path.decode("latin-1")))


def _find(scope: Scope) -> Endpoint | None:
    path = scope["path"]
    if path in FIXED:
        return FIXED[path]
    for pattern, endpoint in PATTERNS:
        if match := pattern.match(path):
            scope["path_params"] = match.groupdict()
            return endpoint
    return None


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application. Its lifespan opens the runtime and hands it to every request as ``state["runtime"]``.

    ``settings`` None: those of the process, read when the lifespan starts. Whoever runs the application may set
    ``app.state.settings``, and ``app.state.lost``, which is called with the reason when a model can compute no more.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        current = app.state.settings or settings_of_process()
        async with open_runtime(current, app.state.lost) as runtime:
            yield {"runtime": runtime}

    app = App(
        title="Cached prediction service",
        version=__version__,
        lifespan=lifespan,
        openapi_url=None,  # ours is made from the manifests
    )
    app.router.redirect_slashes = False
    app.router.default = Endpoint("unknown", {})
    app.state.settings = settings
    app.state.lost = _end_process
    return app


def _end_process(reason: str) -> None:
    """Only hits can be answered here any more: end as when told to, so that whoever started this process does again."""
    logger.error("%s; this process ends.", reason)
    os.kill(os.getpid(), signal.SIGTERM)


app = create_app()
