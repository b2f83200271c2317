"""Every metric family, in one place.

Several workers keep their values in the files of one directory (``share_values``, or ``PROMETHEUS_MULTIPROC_DIR`` set
by whoever starts them). Whichever worker is scraped then answers for all of them, the dead ones included.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

_SHARED = "PROMETHEUS_MULTIPROC_DIR"

KINDS = ("counter", "histogram", "gauge_livesum", "gauge_max", "gauge_mostrecent")
"""How the names of prometheus_client's files begin: one file for each kind of metric below."""
BYTES = 256 * 2**10
BYTES_OF_A_MODEL = 32 * 2**10
"""Generous bounds of a file: for all routes and statuses, and for what one model adds."""

NO_ROUTE = "unknown"
"""The route of a request that no route has answered."""

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds in seconds: a hit in this process is well below a millisecond."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def share_values(directory: Path, worker: int, models: int) -> None:
    """Keep the values of this process where others can read them; raises OSError when the disk has no space for them.

    ``worker``: a number that no other living worker has. Its files are those of the dead worker that had it before, so
    its counters go on from there. Call it after a fork, and before the first metric is made.
    """
    for kind in KINDS:
        _take_space(directory / f"{kind}_{worker}.db", BYTES + models * BYTES_OF_A_MODEL)
    os.environ[_SHARED] = str(directory)
    values.ValueClass = values.MultiProcessValue(lambda: worker)  # type: ignore[no-untyped-call]


def _take_space(path: Path, size: int) -> None:
    """Fill the file up with zeros. The library's own are sparse, and on a full disk a worker would die of SIGBUS."""
    beside = path.with_suffix(".new")  # a scrape must not meet an empty file
    target = path if path.exists() else beside
    try:
        with open(target, "ab") as file:
            file.write(bytes(max(0, size - file.tell())))
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    os.replace(target, path)


class TalliedCounter(Counter):
    """A counter for every request: it adds to a plain number, which ``flush`` hands on twice a second.

    The library's own counter locks, asks for the process id and writes to a file each time.
    """

    _tally: float

    def _metric_init(self) -> None:
        super()._metric_init()
        self._tally = 0.0

    def inc(self, amount: float = 1, exemplar: dict[str, str] | None = None) -> None:
        self._tally += amount

    def flush(self) -> None:
        amount, self._tally = self._tally, 0.0
        if amount:
            super().inc(amount)


class TalliedHistogram(Histogram):
    """As TalliedCounter."""

    _tally: list[int]
    _total: float

    def _metric_init(self) -> None:
        super()._metric_init()
        self._tally, self._total = [0] * len(self._upper_bounds), 0.0

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        self._tally[bisect_left(self._upper_bounds, amount)] += 1
        self._total += amount

    def flush(self) -> None:
        tally, total = self._tally, self._total
        self._tally, self._total = [0] * len(tally), 0.0
        for bucket, count in zip(self._buckets, tally, strict=True):
            if count:
                bucket.inc(count)
        if total:
            self._sum.inc(total)


Family = TypeVar("Family", Counter, Gauge, TalliedCounter, TalliedHistogram)


@lru_cache(maxsize=4096)
def child(family: Family, *labels: object) -> Family:
    """The family's member with these labels, remembered: finding a member costs as much as counting with it."""
    return family.labels(*labels)


class Metrics:
    """The families of one process. Labels have few values, such as model names, and never what a client sends.

    Everything is counted on the event loop. A scrape shows tallied values once they have been flushed.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tallied: list[Any] = []
        self._add_requests()
        self._add_questions()
        self._add_models()
        self._add_caches()

    def _add_requests(self) -> None:
        self.requests = self._tallied_counter("predict_requests", "Answers by route and status.", "route", "status")
        self.latency = self._tallied_histogram(
            "predict_request_seconds", "Time from the parsed request to the answer, by route.", "route"
        )
        self.body_bytes = self._tallied_counter("predict_request_body_bytes", "Bytes of request bodies read.")

    def _add_questions(self) -> None:
        self.cache_results = self._tallied_counter(
            "predict_cache_results",
            "Questions by how they ended: l1, l2, collapsed, computed, not_cached, cancelled (client left), failed.",
            *("model", "result"),
        )
        self.cache_result_seconds = self._tallied_counter(
            "predict_cache_result_seconds",
            "Time from questions to their answers, by how they were answered.",
            *("model", "result"),
        )
        self.saved_seconds = self._counter(
            "predict_cache_saved_seconds",
            "Computation that hits have saved: their number times the mean cost.",
            "model",
        )
        self.spent_seconds = self._counter(
            "predict_cache_spent_seconds", "Time that requests waited for look-ups and stores in Redis.", "model"
        )
        self.cache_audits = self._counter(
            "predict_cache_audits", "Hits that were computed again and compared.", "model"
        )
        self.cache_mismatch = self._counter(
            "predict_cache_mismatch", "Audited hits that were not what the model says.", "model"
        )
        # Of the whole cluster: the value of the worker that has asked Redis last counts.
        self.distinct_questions = self._gauge(
            "predict_distinct_questions",
            "Different questions of the last day in the cluster, estimated.",
            "model",
            workers="mostrecent",
        )
        self.best_hit_ratio = self._gauge(
            "predict_best_hit_ratio",
            "Hit ratio of a cache that never forgets, for the same questions.",
            "model",
            workers="mostrecent",
        )

    def _add_models(self) -> None:
        self.queue_size = self._gauge("predict_queue_size", "Inputs waiting for a model.", "model")
        self.queue_seconds = self._tallied_histogram(
            "predict_queue_seconds", "Time inputs waited for a model.", "model"
        )
        # Not tallied: a batch is rare enough, and so every worker always shows all that was computed.
        self.computations = self._counter("predict_computations", "Inputs that a model computed.", "model")
        self.batch_size = self._tallied_histogram(
            "predict_batch_size", "Inputs in one call of a model.", "model", buckets=SIZES
        )
        self.model_seconds = self._tallied_histogram("predict_model_seconds", "Time one call of a model took.", "model")
        self.last_computation = self._gauge(
            "predict_last_computation_timestamp_seconds",
            "When a model was last called, in Unix time.",
            "model",
            workers="max",
        )

    def _add_caches(self) -> None:
        self.l1_bytes = self._gauge("predict_l1_bytes", "Bytes held by the workers' own caches.")
        self.l1_entries = self._gauge("predict_l1_entries", "Entries held by the workers' own caches.")
        self.workers = self._gauge("predict_workers", "Workers that live.")
        self.l2_seconds = self._tallied_histogram(
            "predict_l2_round_trip_seconds", "Time of one round trip to Redis, by its kind.", "kind"
        )
        self.l2_failures = self._counter("predict_l2_failures", "Round trips to Redis that failed.", "kind")
        self.l2_corrupt = self._counter("predict_l2_corrupt", "Redis values that were not what was stored.")

    @cached_property
    def l2_up(self) -> Gauge:
        """Made by its first use: without it nothing says that a Redis which nobody configured is away."""
        return self._gauge("predict_l2_up", "Workers for which Redis answers and takes writes.")

    def serve(self, model: str) -> None:
        """Show the counters of audits from the start: zero must be seen, too."""
        self.cache_audits.labels(model)
        self.cache_mismatch.labels(model)

    # What a request, the batcher and the cache report.

    def answered(self, route: str, status: int, seconds: float) -> None:
        child(self.requests, route, status).inc()
        child(self.latency, route).observe(seconds)

    def refused(self, status: int) -> None:
        """A request that was refused before it had a route."""
        child(self.requests, NO_ROUTE, status).inc()

    def resolved(self, model: str, result: str, seconds: float, count: int = 1) -> None:
        child(self.cache_results, model, result).inc(count)
        child(self.cache_result_seconds, model, result).inc(seconds)

    def queued(self, model: str, seconds: float) -> None:
        child(self.queue_seconds, model).observe(seconds)

    def batch(self, model: str, size: int, seconds: float) -> None:
        child(self.computations, model).inc(size)
        child(self.batch_size, model).observe(size)
        child(self.model_seconds, model).observe(seconds)
        child(self.last_computation, model).set_to_current_time()

    def round_trip(self, kind: str, seconds: float, ok: bool) -> None:
        child(self.l2_seconds, kind).observe(seconds)
        if not ok:
            self.l2_failures.labels(kind).inc()

    def corrupt(self) -> None:
        self.l2_corrupt.inc()

    def flush(self) -> None:
        """Hand on what has been tallied. Call it on the event loop."""
        for family in self._tallied:
            for member in family._metrics.values() if family._labelnames else (family,):
                member.flush()

    def exposition(self, encode: Callable[[CollectorRegistry], bytes] = generate_latest) -> bytes:
        """The text that Prometheus scrapes. Call it in a thread: it reads files."""
        return encode(self._all_workers())

    def samples(self, model: str) -> dict[tuple[str, str], float]:
        """One model's values: (sample name, ``result`` label or "") -> value. Call it in a thread."""
        return {
            (sample.name, sample.labels.get("result", "")): sample.value
            for family in self._all_workers().collect()
            for sample in family.samples
            if sample.labels.get("model") == model and "le" not in sample.labels
        }

    def _all_workers(self) -> CollectorRegistry:
        if _SHARED not in os.environ:
            return self.registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return registry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _tallied_counter(self, name: str, text: str, *labels: str) -> TalliedCounter:
        counter = TalliedCounter(name, text, labels, registry=self.registry)
        self._tallied.append(counter)
        return counter

    def _tallied_histogram(
        self, name: str, text: str, *labels: str, buckets: Sequence[float] = SECONDS
    ) -> TalliedHistogram:
        histogram = TalliedHistogram(name, text, labels, buckets=buckets, registry=self.registry)
        self._tallied.append(histogram)
        return histogram

    def _gauge(
        self, name: str, text: str, *labels: str, workers: Literal["livesum", "max", "mostrecent"] = "livesum"
    ) -> Gauge:
        """``workers``: how the values of several workers become one."""
        return Gauge(name, text, labels, registry=self.registry, multiprocess_mode=workers)
