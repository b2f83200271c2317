"""The accuracy probe counts what a client sees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.accuracy import probe
from tests.benchmarks.stand_in import Answer, answering


def test_right_answers_are_counted_by_prediction_or_by_label(tmp_path: Path) -> None:
    for name, content in {"3_a.png": b"3", "3_b.png": b"8", "three_c.png": b"3", "notes.txt": b"-"}.items():
        (tmp_path / name).write_bytes(content)
    targets: list[str] = []

    def answer(target: str, body: bytes) -> Answer:
        targets.append(target)
        label = {b"3": "three", b"8": "eight"}[body]
        return 200, {}, json.dumps({"prediction": body.decode(), "label": label}).encode()

    with answering(answer) as address:
        score = probe(address, tmp_path, "digits")
    assert score.total == 3
    assert score.wrong == {"3_b.png": "eight"}
    assert score.accuracy == pytest.approx(2 / 3)
    assert set(targets) == {"/predict?model=digits"}


def test_an_error_is_not_a_wrong_answer(tmp_path: Path) -> None:
    (tmp_path / "3_a.png").write_bytes(b"3")
    with answering(lambda *_: (415, {}, b"{}")) as address, pytest.raises(ValueError, match=r"3_a\.png .* 415"):
        probe(address, tmp_path, "digits")


def test_an_empty_directory_has_no_accuracy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no <label>_\*\.png"):
        probe(("127.0.0.1", 9), tmp_path, "digits")
