"""A model's counters and times in the shape of Triton's statistics extension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.lookup import Model

HITS = ("l1", "l2")
MISSES = ("computed", "collapsed")
FAILURES = ("failed", "not_cached")

Samples = Mapping[tuple[str, str], float]
"""(sample name, ``result`` label) -> value."""


def model_stats(model: Model, samples: Samples) -> dict[str, Any]:
    """The counts of all workers since their start. Each row of a request counts. A hit is no inference."""
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": int(samples.get(("predict_last_computation_timestamp_seconds", ""), 0) * 1e3),
        "inference_count": int(samples.get(("predict_computations_total", ""), 0)),
        "execution_count": int(samples.get(("predict_model_seconds_count", ""), 0)),
        "inference_stats": {
            "success": _results(samples, HITS + MISSES),
            "fail": _results(samples, FAILURES),
            "queue": _times(samples, "predict_queue_seconds"),
            "compute_input": _duration(0, 0),
            "compute_infer": _times(samples, "predict_model_seconds"),
            "compute_output": _duration(0, 0),
            "cache_hit": _results(samples, HITS),
            "cache_miss": _results(samples, MISSES),
        },
        "batch_stats": [],
    }


def _results(samples: Samples, results: tuple[str, ...]) -> dict[str, int]:
    count = sum(samples.get(("predict_cache_results_total", result), 0) for result in results)
    seconds = sum(samples.get(("predict_cache_result_seconds_total", result), 0) for result in results)
    return _duration(count, seconds)


def _times(samples: Samples, family: str) -> dict[str, int]:
    return _duration(samples.get((f"{family}_count", ""), 0), samples.get((f"{family}_sum", ""), 0))


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": int(seconds * 1e9)}
