"""The promise of docs/models.md, for every estimator of scikit-learn and of three boosting libraries."""

from __future__ import annotations

import pytest
from threadpoolctl import threadpool_limits

import training.proof
from training.estimators import BEGIN, DOCUMENT, END, examine, names

WRITTEN = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0].splitlines()


def test_the_table_has_a_line_for_each_estimator_and_none_is_wrong() -> None:
    assert [line.split("`")[1] for line in WRITTEN[2:]] == names()
    assert not [line for line in WRITTEN if "**no**" in line or "refused" in line]


@pytest.mark.parametrize("name", names())
@pytest.mark.filterwarnings("ignore")
def test_it_answers_as_its_file_does_alone_in_batches_and_on_hits_as_the_table_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "MOST_PREDICTIONS", 1)  # its cost is not asked for
    monkeypatch.setattr(training.proof, "ROWS", 40)
    with threadpool_limits(1):
        assert examine(name).markdown().rstrip() in WRITTEN
