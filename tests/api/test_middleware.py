"""Whoever adds a middleware finds every request in it: the hot ones, and the hits that would be answered below ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from opentelemetry import trace
from uvicorn.config import Config
from uvicorn.server import ServerState

from service import traces
from service.app import create_app
from service.config import load_settings
from service.server.connection import protocol_class
from service.server.worker import Lifespan
from tests.support.client import Connection, Response, fetch
from tests.support.server import running_server

pytestmark = pytest.mark.anyio

PAGE = "https://page.example"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
ROW = "sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2"
HIT = f"/predict?{ROW}"
FIELDS = [
    b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % tuple(pair.encode().split(b"="))
    for pair in ROW.split("&")
]
IRIS_FORM = b"".join(FIELDS) + b"--b--\r\n"
TARGETS = [*5 * [HIT], *5 * [HIT.replace("/predict", "/models/iris/predict")], "/livez", "/v2/models/iris", "/nothing"]
ROUTES = ["/predict", "/models/{name}/predict", "/livez", "/v2/models/{name}", "unknown"]


class NoSpans(trace.NoOpTracerProvider):
    def shutdown(self) -> None:
        """Nothing is exported."""


class Tracing:
    """As OpenTelemetry's ASGI middleware: a span around each request."""

    def __init__(self, app: Any, spans: list[tuple[str, str, int]]) -> None:
        self._app, self._spans = app, spans
        self._tracer = trace.get_tracer(__name__)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def traced_send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._spans.append((scope["method"], scope["path"], message["status"]))
            await send(message)

        with self._tracer.start_as_current_span(scope["path"]):
            await self._app(dict(scope), receive, traced_send)


def added(app: FastAPI, spans: list[tuple[str, str, int]]) -> None:
    app.add_middleware(Tracing, spans=spans)


def instrumented(app: FastAPI, spans: list[tuple[str, str, int]]) -> None:
    """As OpenTelemetry's FastAPIInstrumentor: around all layers, and none of the app's ``user_middleware``."""
    build = app.build_middleware_stack
    app.build_middleware_stack = MethodType(lambda self: Tracing(build(), spans), app)  # type: ignore[method-assign]


@asynccontextmanager
async def served(app: FastAPI, state: dict[str, Any]) -> AsyncIterator[Connection]:
    """A connection to the app behind our own protocol, whose ``state`` has the table of the hit path."""
    settings = app.state.settings
    config = Config(app, http=protocol_class(settings), interface="asgi3", ws="none", log_config=None)
    config.load()
    lifespan = Lifespan(config.loaded_app)
    await lifespan.startup()
    state |= lifespan.state

    def connect() -> asyncio.Protocol:
        return protocol_class(settings)(config=config, server_state=ServerState(), app_state=lifespan.state)

    accepting = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    async with accepting, await Connection.open(accepting.sockets[0].getsockname()) as client:
        yield client
    await lifespan.shutdown()


async def ask_all(client: Connection) -> list[tuple[str, str, int]]:
    """Method, path and status of every target's answer, and of as many POSTs of the same question."""
    row = b'{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}'
    answers = [("GET", target, await client.get(target)) for target in TARGETS]
    answers += [("POST", "/predict", await client.request("POST", "/predict", JSON, row)) for _ in range(5)]
    return [(method, target.partition("?")[0], answer.status) for method, target, answer in answers]


@pytest.mark.parametrize("add", [added, instrumented])
async def test_every_request_is_traced_and_counted_once(add: Callable[..., None], iris_models: Path) -> None:
    app = create_app(load_settings({"PREDICT_MODELS_DIR": str(iris_models), "PREDICT_AUDIT_SHARE": "0"}))
    spans: list[tuple[str, str, int]] = []
    state: dict[str, Any] = {}
    add(app, spans)
    async with served(app, state) as client:
        told = await ask_all(client)
        metrics = (await client.get("/metrics")).body.decode()
    assert spans[:-1] == told
    assert not state["hits"].by_key
    for route in ROUTES:
        status = 404 if route == "unknown" else 200
        count = {"/predict": 10, "/models/{name}/predict": 5}.get(route, 1)
        assert f'predict_requests_total{{route="{route}",status="{status}"}} {count}' in metrics


async def test_fastapis_own_tracing_sees_every_request(iris_models: Path) -> None:
    app = create_app(load_settings({"PREDICT_MODELS_DIR": str(iris_models)}))
    app._native_telemetry.config["tracer_provider"] = trace.NoOpTracerProvider()
    state: dict[str, Any] = {}
    async with served(app, state) as client:
        await ask_all(client)
    assert not state["hits"].by_key


async def test_without_any_the_hit_path_is_entered(iris_models: Path) -> None:
    """So that the test above would see it."""
    state: dict[str, Any] = {}
    async with served(create_app(load_settings({"PREDICT_MODELS_DIR": str(iris_models)})), state) as client:
        await ask_all(client)
        assert len(state["hits"].by_key) == 3


async def test_starlettes_cors_middleware_sees_every_answer(iris_models: Path) -> None:
    app = create_app(load_settings({"PREDICT_MODELS_DIR": str(iris_models)}))
    app.add_middleware(CORSMiddleware, allow_origins=[PAGE])
    async with served(app, {}) as client:
        for target in TARGETS:
            assert (await client.get(target, {"Origin": PAGE})).headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("asked", [{}, {"PREDICT_CORS_ORIGINS": PAGE, "PREDICT_TRACES": "on"}])
async def test_every_lifespan_of_an_app_has_each_middleware_once(
    asked: dict[str, str], iris_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the settings' own, the layers are made once more for each lifespan, since they are not known before it."""
    monkeypatch.setattr(traces, "_exporting", NoSpans)
    app = create_app(load_settings({"PREDICT_MODELS_DIR": str(iris_models)} | asked))
    made: list[Any] = []

    def keep(inner: Any) -> Any:
        made.append(inner)
        return inner

    app.add_middleware(keep)
    for count in (2, 4) if asked else (1, 1):
        async with served(app, {}) as client:
            assert (await client.get(HIT)).status == 200
            ours = [CORSMiddleware] if asked else []
            assert [one.cls for one in app.user_middleware][-2:] == [*ours, keep]
            assert len(app.user_middleware) == (3 if asked else 1)
        assert len(made) == count


async def test_pages_of_the_allowed_origins_alone_may_ask(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, cors_origins=f"{PAGE}, https://b.example") as server:

        async def preflight(origin: str, header: str, path: str = "/predict") -> Response:
            asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": header}
            return await fetch(server.address, path, "OPTIONS", {"Origin": origin, **asked})

        for target in TARGETS:
            answer = await fetch(server.address, target, headers={"Origin": PAGE})
            assert answer.headers["access-control-allow-origin"] == PAGE
            stranger = await fetch(server.address, target, headers={"Origin": "https://c.example"})
            assert "access-control-allow-origin" not in stranger.headers
        form = await fetch(server.address, "/predict", "POST", {**FORM, "Origin": PAGE}, IRIS_FORM)
        foreign = {**FORM, "Origin": "https://c.example"}
        assert (form.status, form.headers["access-control-allow-origin"]) == (200, PAGE)
        assert (await fetch(server.address, "/predict", "POST", foreign, IRIS_FORM)).status == 415
        assert (await preflight(PAGE, "content-type")).status == 200
        assert (await preflight("https://c.example", "content-type")).status == 400
        assert (await preflight(PAGE, "authorization", "/admin/purge")).status == 400


async def test_a_page_may_ask_nothing_by_default(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models) as server:
        answer = await fetch(server.address, HIT, headers={"Origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers
