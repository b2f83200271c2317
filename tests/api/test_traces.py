"""PREDICT_TRACES=on: spans under the caller's ``traceparent``."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from fastapi.testclient import TestClient
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, StatusCode, TraceFlags, Tracer, TracerProvider

from service import traces
from service.app import create_app
from service.config import Settings
from tests.support.server import running_server

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ASKED = "/predict?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2"


class Recorded(NonRecordingSpan):
    def __init__(self, name: str, parent: SpanContext, number: int, spans: list[Recorded]) -> None:
        super().__init__(SpanContext(parent.trace_id or number, number, False, TraceFlags(TraceFlags.SAMPLED)))
        self.name, self.parent, self._spans = name, parent, spans
        self.attributes: dict[str, Any] = {}
        self.is_error = False

    def update_name(self, name: str) -> None:
        self.name = name

    def set_attribute(self, key: str, value: Any) -> None:
        self.attributes[key] = value

    def set_attributes(self, attributes: Any) -> None:
        self.attributes |= attributes

    def set_status(self, status: Any, description: str | None = None) -> None:
        self.is_error = status is StatusCode.ERROR

    def end(self, end_time: int | None = None) -> None:
        self._spans.append(self)


@dataclass
class Memory(TracerProvider, Tracer):
    """Ended spans, in the order of their ends."""

    spans: list[Recorded] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def get_tracer(self, *_: Any, **__: Any) -> Tracer:
        return self

    def start_span(self, name: str, context: Context | None = None, *_: Any, **options: Any) -> Span:
        parent = trace.get_current_span(context).get_span_context()
        span = Recorded(name, parent, next(self.numbers), self.spans)
        span.set_attributes(options.get("attributes") or {})
        return span

    def start_as_current_span(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def shutdown(self) -> None:
        """Nothing is exported."""


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(traces, "_exporting", lambda: memory)
    return memory


def test_each_request_and_question_has_spans_under_the_callers(iris_models: Path, memory: Memory) -> None:
    with TestClient(create_app(Settings(models_dir=iris_models, traces=True, audit_share=0))) as client:
        client.get(ASKED, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        computed = list(memory.spans)
        client.get(ASKED)
        client.get("/models")
    *parts, question, request = computed
    assert [part.name for part in parts] == ["look-up", "queue", "model"]
    assert (request.name, request.attributes["http.response.status_code"]) == ("GET /predict", 200)
    assert {f"{span.get_span_context().trace_id:032x}" for span in computed} == {TRACE}
    assert f"{request.parent.span_id:016x}" == PARENT
    assert question.parent == request.get_span_context()
    assert all(part.parent == question.get_span_context() for part in parts)
    assert question.attributes == {"predict.model": "iris", "predict.cache": "computed"}
    hit = memory.spans[len(computed) :]
    assert [span.name for span in hit] == ["look-up", "question", "GET /predict", "GET /models"]
    assert hit[1].attributes["predict.cache"] == "l1"


def test_a_failure_and_a_request_that_is_cancelled_or_has_no_route_have_spans_too(
    iris_models: Path, memory: Memory
) -> None:
    app = create_app(Settings(models_dir=iris_models, traces=True, cors_origins="https://page.example"))

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError

    async def cancel(client: TestClient) -> None:
        """A question whose body never comes."""
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "state": client.app_state}
        scope["headers"] = [(b"content-type", b"application/json")]
        asking = asyncio.ensure_future(app(scope, asyncio.Event().wait, print))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])

    with TestClient(app, raise_server_exceptions=False) as client:
        client.get("/broken")
        assert client.portal is not None
        client.portal.call(cancel, client)
        client.get("/nothing")
        client.options("/predict", headers={"Origin": "https://page.example", "Access-Control-Request-Method": "POST"})
    told = [(span.name, span.attributes.get("http.response.status_code"), span.is_error) for span in memory.spans]
    cancelled, preflight = ("POST /predict", None, False), ("OPTIONS", 200, False)
    assert told == [("GET /broken", 500, True), cancelled, ("GET", 404, False), preflight]


class Collector(BaseHTTPRequestHandler):
    """An OTLP receiver, which keeps the names of the spans and their traces."""

    spans: ClassVar[list[tuple[str, str]]] = []

    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
        scopes = [scope for resource in sent.resource_spans for scope in resource.scope_spans]
        self.spans.extend((span.name, span.trace_id.hex()) for scope in scopes for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Quiet."""


def test_the_sdk_exports_them_by_OTLP(iris_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `traces` is not installed")
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        with running_server(tmp_path, models_dir=iris_models, traces="on") as server:
            httpx.get(server.url + ASKED, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}).raise_for_status()
        collector.shutdown()  # what was left was exported when the service stopped
    names = [name for name, trace_id in Collector.spans if trace_id == TRACE]
    assert sorted(names) == ["GET /predict", "look-up", "model", "question", "queue"]


def test_nothing_of_it_is_imported_when_it_is_off() -> None:
    """FastAPI imports OpenTelemetry's API, and redis-py its metrics, without us."""
    names = ("opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp", "service.traces")
    program = f"import sys, service.server.worker; print([name for name in {names} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
