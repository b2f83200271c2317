"""What a run found: samples by row and round, and the ratios between rows of the same round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from statistics import median

from benchmarks.peers.contestant import Row


@dataclass(frozen=True, slots=True)
class Sample:
    """One row in one round. ``rate``: answers per second at 32 connections; ``p50``: seconds at one connection.

    ``cpu``: seconds of all the server's processes, its Redis included, per answer at 32 connections; it tells more
    than the rate where others use the machine too. ``computed``: the share of answers that were predicted, by the
    server's own count, where it counts.
    """

    round: int
    rate: float
    p50: float
    failures: int
    cpu: float = 0.0
    computed: float | None = None


@dataclass(slots=True)
class Results:
    """Samples by row name, and why a row has none."""

    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))
    reasons: dict[str, str] = field(default_factory=dict)

    def rate(self, name: str) -> float:
        return median(sample.rate for sample in self.samples[name])

    def p50(self, name: str) -> float:
        return median(sample.p50 for sample in self.samples[name])

    def cpu(self, name: str) -> float:
        return median(sample.cpu for sample in self.samples[name])

    def ratio(self, name: str, other: str, of: Callable[[Sample], float] = lambda sample: sample.rate) -> float | None:
        """The median over the rounds of one row's value by another's in the same round; None where one did not run."""
        others = {sample.round: of(sample) for sample in self.samples[other]}
        pairs = [of(sample) / others[sample.round] for sample in self.samples[name] if sample.round in others]
        return median(pairs) if pairs else None

    def as_json(self, rows: list[Row]) -> list[dict[str, object]]:
        """One object per row, with the medians, every sample, or the reason why there is none."""
        return [self._row(row) for row in rows]

    def _row(self, row: Row) -> dict[str, object]:
        found = {"name": row.name, "title": row.title, "kind": row.kind}
        if samples := self.samples[row.name]:
            medians = {"requests_per_second": self.rate(row.name), "p50_seconds": self.p50(row.name)}
            medians["cpu_seconds_per_answer"] = self.cpu(row.name)
            return {**found, **medians, "samples": [asdict(sample) for sample in samples]}
        return {**found, "not_run": self.reasons.get(row.name, "not selected")}
