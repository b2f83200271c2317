"""What the service says about itself: models, liveness, readiness, metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from prometheus_client.exposition import choose_encoder

from service.http.operations import CurrentRequest, CurrentRuntime, Operation
from service.http.schemas import problems
from service.lookup import Model
from service.management.schemas import (
    Alive,
    Audit,
    Economics,
    FailedModel,
    ModelInfo,
    ModelList,
    ModelReport,
    Readiness,
)

OPENMETRICS = "application/openmetrics-text"

router = APIRouter(route_class=Operation, tags=["status"])


@router.get("/livez", summary="Is the process alive")
async def livez() -> Alive:
    """The event loop runs. Nothing else is checked."""
    return Alive()


@router.get("/readyz", summary="May traffic be sent here", responses={503: {"model": Readiness}})
async def readyz(runtime: CurrentRuntime, response: Response) -> Readiness:
    """The models are loaded and warmed up, and the worker is not draining. Redis is not needed to be ready."""
    response.status_code = 503 if runtime.draining else 200
    return Readiness(
        status="draining" if runtime.draining else "ready",
        cache=runtime.pipeline.l2.state,
        models=sorted(runtime.models),
        failed=runtime.failed,
    )


@router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
async def metrics(runtime: CurrentRuntime, current: CurrentRequest) -> Response:
    """Prometheus's text format, or OpenMetrics for who prefers it."""
    runtime.update_metrics()
    encode, media_type = choose_encoder(OPENMETRICS if current.accepts(OPENMETRICS) else "")
    return Response(await asyncio.to_thread(runtime.metrics.exposition, encode), media_type=media_type)


@router.get("/models", summary="The served models", response_model_exclude_unset=True)
async def models(runtime: CurrentRuntime) -> ModelList:
    return ModelList(
        models=[ModelInfo(**_facts(model)) for _, model in sorted(runtime.models.items())],
        failed=[FailedModel(name=name, reason=reason) for name, reason in sorted(runtime.failed.items())],
    )


@router.get("/models/{name}", summary="One served model", response_model_exclude_unset=True, responses=problems(404))
async def model(name: str, runtime: CurrentRuntime) -> ModelReport:
    """The model, what its cache has saved and cost, and how many wrong answers audits have found."""
    model = runtime.model(name)
    runtime.update_metrics()
    samples = await asyncio.to_thread(runtime.metrics.samples, model.name)
    return ModelReport(
        **_facts(model),
        economics=Economics(**await runtime.economics.report(model.name, samples)),
        audit=Audit(
            share=runtime.settings.audit_share,
            audited=int(samples.get(("predict_cache_audits_total", ""), 0)),
            mismatches=int(samples.get(("predict_cache_mismatch_total", ""), 0)),
        ),
    )


def _facts(model: Model) -> dict[str, object]:
    manifest, predictor = model.manifest, model.predictor
    cells = getattr(predictor, "cells", None)
    return {
        "name": model.name,
        "kind": manifest.kind,
        "version": model.version,
        "fingerprint": predictor.fingerprint.hex(),
        "key": predictor.key_kind,
        "lease": model.leased,
        "cost_seconds": manifest.cost_seconds,
        "accuracy": manifest.accuracy,
        "output": manifest.output,
        "classes": manifest.classes,
        "parameters": dict(predictor.parameters),
        "example": manifest.example.inputs,
        "trained_with": manifest.versions,
        "description": manifest.description,
    } | {
        name: value
        for name, value in (("cells", cells), ("image", manifest.image and manifest.image.model_dump(mode="json")))
        if value is not None
    }
