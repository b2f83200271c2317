"""Who is told of every answer: the audit, the accounts of what the cache saves, the metrics of hits, and traces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from service.audit import Auditor
from service.economics import Economics
from service.inference.predictor import Questions
from service.lookup import Answer, Lookup, Model
from service.metrics import Metrics


@dataclass(frozen=True)
class AnswerObserver:
    """The one that the pipelines and the hit path tell. ``trace``: what draws the spans of a question, if anything."""

    metrics: Metrics
    auditor: Auditor
    economics: Economics
    trace: Callable[[Lookup, Answer], None] | None = None

    def answer(self, lookup: Lookup, answer: Answer) -> None:
        self.auditor.observe(lookup, answer)
        self.economics.observe(lookup, answer)
        if self.trace is not None:
            self.trace(lookup, answer)

    def array_hits(self, model: Model, questions: Questions, rows: Mapping[str, int]) -> None:
        self.auditor.observe_hits(model, questions, rows)
        self.economics.add_hits(model.name, len(rows))

    def array_computed(self, model: Model, keys: Collection[str]) -> None:
        self.economics.add_computed(model.name, keys)

    def hits_below_asgi(self, route: str, model: str, status: int, body_size: int, count: int) -> None:
        """So many answers of the hit path. They have no latencies, being too short to measure."""
        self.metrics.requests.labels(route, status).inc(count)
        self.metrics.body_bytes.inc(count * body_size)
        if status == 200:  # a 304 looks nothing up
            self.metrics.cache_results.labels(model, "l1").inc(count)
            self.economics.add_hits(model, count)

    def audit_gap(self) -> float:
        """Hits of the hit path from one audit to the next."""
        return self.auditor.countdown.gap()

    def takes_audit(self, key: str) -> bool:
        """Whether the next hit of this key on the ordinary path will be audited. Not while the backlog is full."""
        if self.auditor.has_room:
            self.auditor.countdown.force_sample(key)
            return True
        return False
