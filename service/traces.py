"""Traces with OpenTelemetry. Only PREDICT_TRACES=on imports this: a span for each request, and below it those of its
questions, under the ``traceparent`` that the request brought.

A question's spans are made when it is answered, from the times that the answer carries anyway.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import ProxyTracerProvider, Span, SpanKind, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.lookup import Answer, Lookup
from service.metrics import NO_ROUTE

_W3C = TraceContextTextMapPropagator()
_current: ContextVar[Context | None] = ContextVar("current_trace", default=None)
_NS = 10**9


class Traces:
    """``clock``: the pipeline's, which has measured the answers' times. ``deadline_seconds``: of every question."""

    def __init__(self, tracer: Tracer, deadline_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tracer, self._deadline_seconds, self._clock = tracer, deadline_seconds, clock

    def around(self, app: ASGIApp, route_of: Callable[[Scope], str]) -> ASGIApp:
        """A middleware: a span for each request, unless FastAPI, or whoever else instruments the process, makes one.

        ``route_of``: the route that has answered.
        """

        async def traced(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or trace.get_current_span().get_span_context().is_valid:
                await app(scope, receive, send)
                return
            span = self._begin(scope)

            async def observed_send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                    if message["status"] >= 500:
                        span.set_status(StatusCode.ERROR)
                await send(message)

            try:
                await app(scope, receive, observed_send)
            except Exception:  # Starlette answers it, outside all middleware
                span.set_attribute("http.response.status_code", 500)
                span.set_status(StatusCode.ERROR)
                raise
            finally:
                if (route := route_of(scope)) != NO_ROUTE:
                    span.update_name(f"{scope['method']} {route}")
                span.end()

        return traced

    def _begin(self, scope: Scope) -> Span:
        carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"]}
        span = self._tracer.start_span(scope["method"], _W3C.extract(carrier, Context()), SpanKind.SERVER, attributes)
        _current.set(trace.set_span_in_context(span, Context()))
        return span

    def observe(self, lookup: Lookup, answer: Answer) -> None:
        """The spans of a question: where its time went, one after the other."""
        took = self._clock() - (lookup.deadline - self._deadline_seconds)
        if answer.source == "collapsed":
            parts = {"wait": took}
        else:
            rest = max(0.0, took - answer.queue_seconds - answer.model_seconds)
            parts = {"look-up": rest, "queue": answer.queue_seconds, "model": answer.model_seconds}
        at = time.time_ns() - int(took * _NS)
        attributes = {"predict.model": lookup.model.name, "predict.cache": answer.source}
        question = self._tracer.start_span("question", _current.get(), attributes=attributes, start_time=at)
        inside = trace.set_span_in_context(question, Context())
        for name, seconds in parts.items():
            if seconds:
                span = self._tracer.start_span(name, inside, start_time=at)
                at += int(seconds * _NS)
                span.end(at)
        question.end()


@contextmanager
def open_traces(deadline_seconds: float) -> Iterator[Traces]:
    """With the provider that the process has, or else one that exports as the variables OTEL_* say; raises ImportError
    where OpenTelemetry's SDK is not installed."""
    provider: Any = trace.get_tracer_provider()
    is_ours = isinstance(provider, ProxyTracerProvider)
    if is_ours:
        provider = _exporting()
    try:
        yield Traces(provider.get_tracer("service"), deadline_seconds)
    finally:
        if is_ours:
            provider.shutdown()


def _exporting() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", "cached-prediction-service")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
