"""What the service says about itself: models, liveness, readiness, metrics."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from service.http.endpoint import NO_STORE, Reply, Request
from service.lookup import Model
from service.metrics import CONTENT_TYPE


async def livez(request: Request) -> Reply:
    """Alive: the event loop turns. Depends on nothing else."""
    return Reply(b'{"status":"alive"}', headers=[NO_STORE])


async def readyz(request: Request) -> Reply:
    """Ready: models loaded and warmed, not draining. Redis down costs time, not answers, so it does not count."""
    runtime = request.runtime
    document = {
        "status": "draining" if runtime.draining else "ready",
        "cache": runtime.pipeline.l2.state,
        "models": sorted(runtime.models),
        "failed": runtime.failed,
    }
    return Reply(orjson.dumps(document), 503 if runtime.draining else 200, headers=[NO_STORE])


async def metrics(request: Request) -> Reply:
    runtime = request.runtime
    runtime.update_metrics()
    text = await asyncio.to_thread(runtime.metrics.exposition)
    return Reply(text, content_type=CONTENT_TYPE.encode(), headers=[NO_STORE])


async def models(request: Request) -> Reply:
    served = [describe_model(model) for _, model in sorted(request.runtime.models.items())]
    failed = [{"name": name, "reason": reason} for name, reason in sorted(request.runtime.failed.items())]
    return Reply(orjson.dumps({"models": served, "failed": failed}), headers=[NO_STORE])


async def model(request: Request) -> Reply:
    """With what its cache has saved and cost, and how often its answers were found right."""
    runtime = request.runtime
    model = runtime.model(request.path_parameter("name"))
    runtime.update_metrics()
    samples = await asyncio.to_thread(runtime.metrics.samples, model.name)
    described = describe_model(model)
    described["economics"] = await runtime.economics.report(model.name, samples)
    described["audit"] = {
        "share": runtime.settings.audit_share,
        "audited": int(samples.get(("predict_cache_audits_total", ""), 0)),
        "mismatches": int(samples.get(("predict_cache_mismatch_total", ""), 0)),
    }
    return Reply(orjson.dumps(described), headers=[NO_STORE])


def describe_model(model: Model) -> dict[str, Any]:
    manifest, predictor = model.manifest, model.predictor
    described: dict[str, Any] = {
        "name": model.name,
        "kind": manifest.kind,
        "version": model.version,
        "fingerprint": predictor.fingerprint.hex(),
        "key": predictor.key_kind,
        "lease": model.leased,
        "cost_seconds": manifest.cost_seconds,
        "accuracy": manifest.accuracy,
        "output": manifest.output.model_dump(),
        "classes": [part.model_dump() for part in manifest.classes],
        "parameters": dict(predictor.parameters),
        "example": manifest.example.inputs,
        "trained_with": manifest.versions,
    }
    cells = getattr(predictor, "cells", None)
    if cells is not None:
        described["cells"] = cells
    return described
