"""What a measurement tells, from its samples to the page and the chart."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import cold_warm
from benchmarks.peers import report
from benchmarks.peers.results import Results, Sample
from benchmarks.peers.roster import ROSTER
from tests.benchmarks.stand_in import Answer, answering

CHART_BYTES = 100_000
ROWS = [row for contestant in ROSTER for row in contestant.rows]


def test_latencies_are_told_apart_by_what_became_of_the_request() -> None:
    asked: dict[str, int] = {}
    outcomes = ["fwd=uri-miss; stored; ttl=300", "hit; ttl=299; detail=L2", "hit; ttl=299; detail=L1"]

    def answer(target: str, _: bytes) -> Answer:
        seen = asked[target] = asked.get(target, 0) + 1
        return 200, {"Cache-Status": f"predict; {outcomes[min(seen, 3) - 1]}"}, b"{}"

    with answering(answer) as address:
        measured = cold_warm.measure(address, "iris", 20, 0.1)
    assert {name: found.count for name, found in measured.latency.items()} == {"computed": 20, "L2": 20, "L1": 20}
    assert measured.never_seen_computed == 1
    assert set(measured.throughput) == {"computed", "L1"} and min(measured.throughput.values()) > 0


def test_inputs_that_were_hits_at_once_do_not_count_as_cold() -> None:
    with answering(lambda *_: (200, {"Cache-Status": "predict; hit; ttl=9; detail=L1"}, b"{}")) as address:
        measured = cold_warm.measure(address, "iris", 5, 0.1)
    assert measured.never_seen_computed == 0
    assert "computed" not in measured.latency


def test_an_error_ends_the_measurement() -> None:
    with answering(lambda *_: (503, {}, b"full")) as address, pytest.raises(SystemExit, match="503: full"):
        cold_warm.measure(address, "iris", 5, 0.1)


def test_cold_and_warm_make_tables_and_a_small_chart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cold_warm, "RESULTS", tmp_path)
    found = {
        name: cold_warm.Latency(9, 0.001 * n, 0.002 * n, 0.003 * n)
        for n, name in enumerate(["L1", "L2", "computed"], 1)
    }
    measured = [
        cold_warm.Measured(
            model, 0.9, dict(reversed(found.items())), {"L1": 40_000, "computed": 90}, {"with": 0.01, "without": 0.1}
        )
        for model in ("iris", "digits")
    ]
    text = cold_warm.report(measured, "a machine")
    assert "digits, hit in memory" in text and "10.0 ×" in text and "90% of iris" in text
    cold_warm.draw(measured)
    assert 1000 < (tmp_path / "cold_warm.png").stat().st_size < CHART_BYTES


def test_peers_are_listed_fastest_first_and_those_that_did_not_run_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "TABLES", tmp_path / "performance.md")
    (tmp_path / "performance.md").write_text("<!-- bench-peers -->\n<!-- /bench-peers -->")
    results = Results()
    for place, row in enumerate(ROWS):
        results.samples[row.name] = [Sample(number, 1000.0 * (place + number + 1), 0.001, 0) for number in range(3)]
    del results.samples["mosec"]
    results.reasons["mosec"] = "no such package"
    text = report.write(results, ROWS, {}, "a machine")
    assert "| mosec (not run: no such package)" in text
    assert (
        text.index("the textbook version") < text.index("FastAPI, four float") < text.index("nginx `return 200`, fixed")
    )
    assert all(row.title in text for row in ROWS)
    assert text in (tmp_path / "performance.md").read_text()
    assert 1000 < (tmp_path / "peers.png").stat().st_size < CHART_BYTES


def test_a_run_without_our_own_rows_still_reports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report, "TABLES", tmp_path / "performance.md")
    results = Results()
    results.samples["mosec"] = [Sample(0, 5000.0, 0.01, 3)]
    text = report.write(results, [row for row in ROWS if row.name == "mosec"], {"not_run": "no Redis"}, "a machine")
    assert "mosec (3 failures)" in text and "5,000" in text and "not run: no Redis" in text
