"""What the management routes answer with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.http.schemas import Exact, Share
from service.inference.manifest import Class, Output


class Alive(BaseModel):
    status: Literal["alive"] = "alive"


class Readiness(BaseModel):
    status: Literal["ready", "draining"]
    cache: str
    models: list[str]
    failed: dict[str, str]
    """Why a model is not served."""


class Economics(Exact):
    """What the caches have saved and cost."""

    asked: int
    hits: int
    distinct: int = 0
    hit_rate: Share | None
    best_hit_rate: Share | None = None
    cost_seconds: float
    saved_seconds: float
    spent_seconds: float


class Audit(Exact):
    """How many hits were computed again, and how many of these were wrong."""

    share: float
    audited: int
    mismatches: int


class FailedModel(Exact):
    name: str
    reason: str


class ModelInfo(BaseModel):
    name: str
    kind: str
    version: str
    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    key: Literal["exact", "cells", "digest"]
    cells: int = 0
    lease: bool
    cost_seconds: float
    accuracy: float | None
    output: Output
    classes: tuple[Class, ...]
    parameters: dict[str, Any]
    example: dict[str, Any]
    trained_with: dict[str, str]
    description: str
    image: dict[str, Any] = {}


class ModelReport(ModelInfo):
    economics: Economics
    audit: Audit


class ModelList(Exact):
    models: list[ModelInfo]
    failed: list[FailedModel]


class PurgeRequest(Exact):
    model: str


class Purged(BaseModel):
    purged: str
    workers: int
    acknowledged: int
    complete_within_seconds: float


class KeyOfQuestion(BaseModel):
    model: str
    key: str


class CachedEntry(BaseModel):
    key: str
    tier: Literal["l1", "l2"]
    ttl: float
    age: float
    bytes: int


class CacheStats(BaseModel):
    l1: dict[str, int]
    l2: dict[str, str]
