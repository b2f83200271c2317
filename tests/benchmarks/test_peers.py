"""The peers are who they say they are, and what they answer is checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import wrk
from benchmarks.inputs import IRIS
from benchmarks.peers.contestant import Contestant, Model, Row, verify
from benchmarks.peers.environments import requirements
from benchmarks.peers.report import targets
from benchmarks.peers.results import Results, Sample
from benchmarks.peers.roster import COUNTED, QUERY, ROSTER, probabilities
from benchmarks.processes import StartFailed
from tests.benchmarks.stand_in import Answer, answering

PEERS = Path(wrk.__file__).parent / "peers"
SCRIPTS = sorted(PEERS.glob("serve_*.py"))
ROWS = [row.name for contestant in ROSTER for row in contestant.rows]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_peer_pins_what_it_needs(script: Path) -> None:
    needed = requirements(script)
    assert needed["requires-python"].startswith("==3.")
    assert needed["dependencies"]
    assert all("==" in each for each in needed["dependencies"])


def test_every_script_takes_part_and_every_row_has_its_own_name() -> None:
    assert {f"serve_{each.script}.py" for each in ROSTER if each.script} == {script.name for script in SCRIPTS}
    assert len(set(ROWS)) == len(ROWS)


def test_targets_name_rows_that_exist() -> None:
    assert {name for target in targets(Results()) for name in (target.row, target.other)} <= set(ROWS)


def test_who_answers_another_request_is_compared_with_ours_on_that_request() -> None:
    shapes = {row.name: contestant.shape for contestant in ROSTER for row in contestant.rows}
    for contestant in ROSTER:
        for row in contestant.rows:
            if "/v2/" in contestant.shape.target and not row.name.startswith("ours"):
                assert shapes[row.beside] == contestant.shape


def test_a_shape_is_filled_with_features() -> None:
    request = wrk.Shape("/infer", '{"features": [$1, $2, $3, $4]}', ("X-Test: 1",)).request((5.1, 3.5, 1.4, 0.2))
    head, _, body = request.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /infer HTTP/1.1\r\n") and b"X-Test: 1\r\n" in head + b"\r\n"
    assert json.loads(body) == {"features": [5.1, 3.5, 1.4, 0.2]}


def test_ratios_are_taken_within_rounds() -> None:
    results = Results()
    for number, (ours, other) in enumerate([(200, 100), (20, 10), (90, 30)]):
        results.samples["ours"].append(Sample(number, ours, 0.001, 0))
        results.samples["other"].append(Sample(number, other, 0.002, 0))
    assert results.ratio("ours", "other") == 2
    assert results.ratio("ours", "other", lambda sample: sample.p50) == 0.5
    assert results.ratio("ours", "absent") is None


def test_a_right_answer_from_a_cache_passes(model: Model) -> None:
    with answering(_peer(model.golden, computed=lambda calls: 1)) as address:
        verify(_contestant(), model, address)


def test_a_wrong_prediction_is_refused(model: Model) -> None:
    with (
        answering(_peer([0.0, 0.0, 1.0], computed=lambda calls: 1)) as address,
        pytest.raises(StartFailed, match="predicts"),
    ):
        verify(_contestant(), model, address)


def test_a_cache_that_computes_every_time_is_refused(model: Model) -> None:
    peer = _peer(model.golden, computed=lambda calls: calls)
    with answering(peer) as address, pytest.raises(StartFailed, match="does not hit"):
        verify(_contestant(), model, address)


def test_a_counter_that_never_counts_proves_nothing(model: Model) -> None:
    peer = _peer(model.golden, computed=lambda calls: 0)
    with answering(peer) as address, pytest.raises(StartFailed, match="does not hit"):
        verify(_contestant(), model, address)


@pytest.mark.skipif(not wrk.installed(), reason="wrk is not installed")
@pytest.mark.parametrize("shape", [QUERY, wrk.Shape("/predict", '{"features": [$1, $2, $3, $4]}')])
def test_wrk_draws_new_features_for_every_request(shape: wrk.Shape) -> None:
    varied, same = list[tuple[str, bytes]](), list[tuple[str, bytes]]()
    with answering(_noting(varied)) as address:
        run = wrk.run(address, shape, "features", 4, 1)
        seen = varied.copy()  # what wrk left behind may still arrive
        assert run.failures == 0 and 0 < run.answers <= len(seen)
        assert len(set(seen)) == len(seen)
        assert "$" not in repr(seen[0])
    # Another server, for the same reason.
    with answering(_noting(same)) as address:
        wrk.run(address, shape, "nothing", 4, 1)
        assert len(set(same)) == 1


def _noting(seen: list[tuple[str, bytes]]) -> Callable[[str, bytes], Answer]:
    def answer(target: str, body: bytes) -> Answer:
        seen.append((target, body))
        return 200, {}, b"{}"

    return answer


@pytest.mark.skipif(not wrk.installed(), reason="wrk is not installed")
def test_errors_are_counted_as_failures() -> None:
    with answering(lambda *_: (503, {}, b"{}")) as address:
        run = wrk.run(address, QUERY, "nothing", 1, 1)
    assert run.failures == run.answers > 0


@pytest.fixture
def model(tmp_path: Path) -> Model:
    manifest = {
        "weights": {"file": "weights.joblib"},
        "classes": [{"label": name} for name in ("setosa", "versicolor", "virginica")],
        "example": {"inputs": dict(zip(IRIS, (5.9, 3.0, 5.1, 1.8), strict=True)), "golden": [0.0, 0.06, 0.94]},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return Model(tmp_path)


def _contestant() -> Contestant:
    def start(*_: object) -> None:
        raise AssertionError("not started by this test")

    row = Row("peer", "a peer", "warm", "nothing")
    return Contestant(QUERY, (row,), start, probabilities, COUNTED)  # type: ignore[arg-type]


def _peer(answer: list[float], computed: Callable[[int], int]) -> Callable[[str, bytes], Answer]:
    """``computed``: how often it was asked -> how many computations it admits to."""
    asked: list[str] = []

    def reply(target: str, _: bytes) -> Answer:
        if target == "/computations":
            return 200, {}, str(computed(len(asked))).encode()
        asked.append(target)
        return 200, {}, json.dumps({"probabilities": answer}).encode()

    return reply
