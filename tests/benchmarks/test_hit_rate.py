"""The hit-rate benchmark counts as it says it does."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.hit_rate import Measured, Part, draw, measure, noisy_flowers, table
from tests.benchmarks.stand_in import Answer, answering

FLOWERS = [(5.1, 3.5, 1.4, 0.2), (5.2, 3.5, 1.4, 0.2), (6.1, 3.0, 4.6, 1.4), (5.1, 3.5, 1.4, 0.2)]


def test_what_was_asked_before_is_no_new_hit_and_only_new_hits_count() -> None:
    def answer(target: str, body: bytes) -> Answer:
        status = "predict; fwd=uri-miss; stored; ttl=9" if "length=6.1" in target else "predict; hit; ttl=9; detail=L1"
        return 200, {"Cache-Status": status}, b"{}"

    with answering(answer) as address:
        parts = measure(address, iter(FLOWERS), 4, "test")
    assert parts == [Part(1, 0, 1), Part(1, 0, 1), Part(1, 0, 0), Part(1, 1, 0)]
    measured = Measured(0.1, parts)
    assert measured.whole == Part(4, 1, 2)
    assert (measured.whole.hit_rate, measured.whole.exact_rate) == (pytest.approx(2 / 3), 0.25)
    assert "| ± 0.1 cm |        4 |          3 |           66.7% |" in table([measured])


def test_an_answer_that_is_none_stops_it() -> None:
    with answering(lambda *_: (503, {}, b"busy")) as address, pytest.raises(ValueError, match="503: busy"):
        measure(address, iter(FLOWERS), 4, "test")


def test_flowers_are_read_to_two_decimals_and_have_a_size() -> None:
    rows = list(islice(noisy_flowers(0.3, random.Random(0)), 2000))
    assert all(x >= 0.1 and round(x, 2) == x for row in rows for x in row)
    assert len(set(rows)) > 1990
    assert rows == list(islice(noisy_flowers(0.3, random.Random(0)), 2000))


def test_the_chart_is_small(tmp_path: Path) -> None:
    parts = [Part(2000, 0, 2000 - 40 * number) for number in range(50, 0, -1)]
    draw(tmp_path / "chart.png", [Measured(0.1, parts), Measured(0.3, parts)])
    assert (tmp_path / "chart.png").stat().st_size < 100_000
    assert Image.open(tmp_path / "chart.png").width == 880
