"""What registration finds out by itself, and refuses."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.svm import OneClassSVM

from service.errors import ConfigurationError, InvalidInput
from service.inference.artifact import read_artifact
from service.inference.manifest import Feature
from service.inference.predictor import Options
from service.inference.tabular.predictor import load
from tests.inference.estimators import IRIS_X, IRIS_Y, NAMES
from training.register import register

FEATURES = [Feature(name=name, minimum=0, maximum=10) for name in NAMES]


def dumped(model: Any) -> bytes:
    file = io.BytesIO()
    joblib.dump(model, file)
    return file.getvalue()


def registered(directory: Path, model: Any, **options: Any) -> Any:
    """The manifest."""
    directory.mkdir(exist_ok=True)
    file = directory / "own.joblib"
    file.write_bytes(model if isinstance(model, bytes) else dumped(model))
    return register(file, name="own", models_dir=directory, features=FEATURES, show=lambda shown: None, **options)


class Chance(LogisticRegression):  # type: ignore[misc]
    """Answers what comes to its mind."""

    def predict_proba(self, rows: Any) -> Any:
        shares = np.random.default_rng().random((len(rows), 3))
        return shares / shares.sum(axis=1, keepdims=True)


class Company(GaussianNB):  # type: ignore[misc]
    """Each row's answer depends on the others of the call."""

    def predict_proba(self, rows: Any) -> Any:
        return super().predict_proba(rows - rows.mean(axis=0))


class Particular(LogisticRegression):  # type: ignore[misc]
    """Refuses small numbers, as an encoder does a category that it has not seen."""

    def predict(self, rows: Any) -> Any:
        if (np.asarray(rows)[:, 0] < 1).any():
            raise ValueError("Found unknown categories\nin column 0")
        return super().predict(rows)


@pytest.mark.parametrize(
    ("model", "kind", "rows"),
    [
        (RandomForestClassifier(3), "probabilities", None),
        (LogisticRegression(max_iter=500), "class_and_probabilities", 16),
        (LinearRegression(), "numbers", 16),
        (OneClassSVM(), "integers", 16),
        (Company(), "class_and_probabilities", 1),
    ],
    ids=str,
)
def test_it_finds_how_the_model_answers_and_with_how_many_rows_a_call(
    tmp_path: Path, model: Any, kind: str, rows: int | None
) -> None:
    output = registered(tmp_path, model.fit(IRIS_X, IRIS_Y)).output
    assert (output.kind, output.rows_per_call) == (kind, rows)


class Says:
    """Whatever it is told to, for a first feature above 5 and for others."""

    n_features_in_ = 4

    def __init__(self, above: float, below: float) -> None:
        self.said = [below, above]

    def predict(self, rows: Any) -> Any:
        return [self.said[int(row[0] > 5)] for row in np.asarray(rows)]


@pytest.mark.parametrize(
    ("above", "below", "reason"),
    [
        (2**60 + 1, 2**60 + 3, "fails on its example"),  # whole numbers that float64 rounds
        (2.5, 3, "whole numbers to some rows only"),
    ],
)
def test_numbers_that_would_be_rounded_are_refused(tmp_path: Path, above: float, below: float, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        registered(tmp_path, Says(above, below), example=[1, 1, 1, 1])


class SaysAlways:
    """The same, however many rows there are."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def predict(self, rows: Any) -> Any:
        return self.said


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "says None to 1 row: its predict must return an array"),
        (3.0, "says 3.0 to 1 row"),
        (["yes"], "says 'yes', which is no number: give it a classes_"),
    ],
)
def test_what_is_no_answer_to_each_row_is_refused(tmp_path: Path, said: Any, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        register(SaysAlways(said), IRIS_X, name="own", models_dir=tmp_path, features=FEATURES)


def test_what_leaves_its_answers_to_chance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="leaves nothing to chance"):
        registered(tmp_path, Chance(max_iter=500).fit(IRIS_X, IRIS_Y))


def test_a_row_that_the_estimator_refuses_is_its_clients_fault_in_the_estimators_words(tmp_path: Path) -> None:
    registered(tmp_path, Particular(max_iter=500).fit(IRIS_X, IRIS_Y))
    predictor = load(read_artifact(tmp_path / "own"), Options())
    good, bad = (predictor.parse({"input": [x, 1, 1, 1]}, b"", "application/json").payload or b"" for x in (2.0, 0.5))
    (refused,) = predictor.predict([bad])
    assert isinstance(refused, InvalidInput)
    assert str(refused) == "Found unknown categories"
    with pytest.raises(ValueError, match="unknown categories"):  # then the queue asks for each alone
        predictor.predict([good, bad])
    assert isinstance(predictor.predict([good])[0], bytes)


def test_a_file_of_another_scikit_learn_is_refused_unless_any_version_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LogisticRegression(max_iter=500).fit(IRIS_X, IRIS_Y)
    with monkeypatch.context() as other:
        other.setattr("sklearn.base.__version__", "1.5.2")
        weights = dumped(model)
    with pytest.raises(ConfigurationError, match=r"scikit-learn 1\.5\.2, and this is .*--any-version"):
        registered(tmp_path, weights)
    assert registered(tmp_path, weights, any_version=True).versions["scikit-learn"] == "1.5.2"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (b"c__main__\nMine\n.", "defined in a notebook or script: put"),
        (b"cnot_there.at_all\nMine\n.", "install not_there into this environment"),
        (dumped(GaussianNB())[:60], "write it again with joblib.dump"),
        (b"PK\x03\x04 something else", "write it again with joblib.dump"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_remedy_that_fits(
    tmp_path: Path, weights: bytes, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as refused:
        registered(tmp_path, weights)
    assert "\n" not in str(refused.value)


def test_the_fingerprint_moves_with_the_source_of_ones_own_modules_and_of_what_they_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    threshold, mine = tmp_path / "own_threshold.py", tmp_path / "own_model.py"
    threshold.write_text("VALUE = 0.5\n\ndef above(x):\n    return x > VALUE\n")
    mine.write_text(
        "from own_threshold import above\nclass Mine:\n    classes_ = [False, True]\n    n_features_in_ = 4\n"
        "    def predict(self, rows):\n        return above(rows[:, 0])\n"
    )
    model = importlib.import_module("own_model").Mine()
    versions = registered(tmp_path / "models", model).versions
    assert {"own_model", "own_threshold", "numpy", "scikit-learn"} <= versions.keys()
    seen = [fingerprint(tmp_path)]
    for file in (threshold, mine):
        file.write_text(file.read_text() + "# changed\n")
        seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == 3
    for name in ("own_model", "own_threshold"):
        del sys.modules[name]


def fingerprint(directory: Path) -> bytes:
    return load(read_artifact(directory / "models" / "own"), Options()).fingerprint
