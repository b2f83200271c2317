"""Anybody's classifier becomes a model directory, or one sentence says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.cluster import DBSCAN
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.svm import LinearSVC

from service.inference.loading import load_model
from service.inference.predictor import Options, unpack
from tests.inference.estimators import IRIS_X, IRIS_Y
from training import register

SPECIES = np.array(["setosa", "versicolor", "virginica"])[IRIS_Y]
FOREST = RandomForestClassifier(5, random_state=0).fit(IRIS_X, SPECIES)


def run(tmp_path: Path, model: Any, *options: str) -> Path:
    joblib.dump(model, tmp_path / "own.joblib")
    register.main([str(tmp_path / "own.joblib"), "--name", "own", "--out", str(tmp_path / "models"), *options])
    return tmp_path / "models" / "own"


def refusal(tmp_path: Path, model: Any, *options: str) -> str:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, model, *options)
    assert isinstance(caught.value.code, str)
    assert "\n" not in caught.value.code
    assert not (tmp_path / "models").exists(), "a refused model leaves nothing behind"
    return caught.value.code


def test_a_registered_model_loads_and_answers_as_it_does_itself(tmp_path: Path) -> None:
    loaded = load_model(run(tmp_path, FOREST, "--features", "a:0:10,b::5,c,d"), Options())
    question = loaded.predictor.parse({"a": "6", "b": "3", "c": "5", "d": "2"}, b"", None)
    (answer,) = loaded.predictor.predict([question.payload or b""])
    assert isinstance(answer, bytes)
    assert unpack(answer).tobytes() == FOREST.predict_proba([[6.0, 3.0, 5.0, 2.0]])[0].tobytes()


def test_bounds_classes_and_cost_are_in_the_manifest(tmp_path: Path) -> None:
    manifest = load_model(
        run(tmp_path, FOREST, "--features", "a:0:10,b::5,c,d:-1:", "--classes", "x,y,z"), Options()
    ).manifest
    assert [(f.name, f.minimum, f.maximum) for f in manifest.features] == [
        ("a", 0, 10),
        ("b", None, 5),
        ("c", None, None),
        ("d", -1, None),
    ]
    assert [(c.value, c.label) for c in manifest.classes] == [("setosa", "x"), ("versicolor", "y"), ("virginica", "z")]
    assert 0 < manifest.cost_seconds < 1
    assert manifest.versions.keys() >= {"numpy", "scikit-learn"}


def test_without_names_the_classes_are_called_by_their_values(tmp_path: Path) -> None:
    manifest = load_model(run(tmp_path, FOREST, "--features", "a,b,c,d"), Options()).manifest
    assert [c.label for c in manifest.classes] == ["setosa", "versicolor", "virginica"]


def test_a_given_example_is_the_one_that_warms_up(tmp_path: Path) -> None:
    path = run(tmp_path, FOREST, "--features", "a,b,c,d", "--example", "5.1,3.5,1.4,0.2")
    example = load_model(path, Options()).manifest.example
    assert example.inputs == {"a": 5.1, "b": 3.5, "c": 1.4, "d": 0.2}
    assert example.golden == FOREST.predict_proba([[5.1, 3.5, 1.4, 0.2]])[0].tolist()


def test_a_classifier_without_probabilities_can_be_registered(tmp_path: Path) -> None:
    path = run(tmp_path, LinearSVC(random_state=0).fit(IRIS_X, IRIS_Y), "--features", "a,b,c,d")
    assert load_model(path, Options()).manifest.example.golden in ([0.0], [1.0], [2.0])


def test_registering_again_keeps_the_earlier_version_to_fall_back_on(tmp_path: Path) -> None:
    run(tmp_path, FOREST, "--features", "a,b,c,d")
    path = run(tmp_path, RandomForestClassifier(6, random_state=0).fit(IRIS_X, SPECIES), "--features", "a,b,c,d")
    assert (path / "manifest.previous.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--features", "a,b,c"), "takes 4 features, not 3"),
        (("--features", "a,b,c,d", "--classes", "x,y"), "3 classes"),
        (("--features", "a,b,c,d", "--classes", "x,x,y"), "not unique"),
        (("--features", "a,b,c,model"), "'model'"),
        (("--features", "a,b,c,image"), "'image'"),
        (("--features", "a,b,c,a"), "not unique"),
        (("--features", "a,b,c,d:5:1"), "minimum"),
        (("--features", "a,b,c,d:x:1"), "d:x:1"),
        (("--features", "a,b,c,d:1"), "name:minimum:maximum"),
        (("--features", "a,b,c,d:nan:1"), "--features d: minimum"),
        (("--features", "a,b,c,"), "--features"),
        (("--features", "a,b,c,d\x07"), "control characters"),
        (("--features", "a,b,c,d", "--example", "1,2"), "example"),
        (("--features", "a,b,c,d", "--example", "1,2,3,x"), "--example"),
        (("--features", "a,b,c,d:0:1", "--example", "1,2,3,4"), "between 0 and 1"),
        (("--features", "a,b,c,d", "--name", "Not A Name"), "name"),
    ],
)
def test_what_does_not_fit_is_said_in_one_sentence(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    assert said in refusal(tmp_path, FOREST, *options)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (RandomForestClassifier(2), "fit it first"),
        (DBSCAN().fit(IRIS_X), "has no predict method"),
        (RandomForestClassifier(2).fit(IRIS_X, np.column_stack([IRIS_Y, IRIS_Y])), "one model for each"),
        (DummyClassifier(strategy="stratified").fit(IRIS_X, IRIS_Y), "nothing to chance"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_with_a_remedy(tmp_path: Path, model: Any, said: str) -> None:
    assert said in refusal(tmp_path, model, "--features", "a,b,c,d")


def test_a_threshold_of_ones_own_decides_and_not_the_highest_probability(tmp_path: Path) -> None:
    few = IRIS_Y > 0
    model = FixedThresholdClassifier(LogisticRegression(max_iter=500), threshold=0.9).fit(IRIS_X[few], SPECIES[few])
    loaded = load_model(run(tmp_path, model, "--features", "a,b,c,d"), Options())
    rows = [row for row in IRIS_X[few] if model.predict([row]) != model.classes_[model.predict_proba([row]).argmax()]]
    assert rows
    for row in rows:
        payload = loaded.predictor.parse({"input": row.tolist()}, b"", "application/json").payload
        (answer,) = loaded.predictor.predict([payload or b""])
        assert isinstance(answer, bytes)
        assert loaded.manifest.best_class(unpack(answer).tolist()).value == model.predict([row])[0]


def test_a_file_that_is_missing_or_no_pickle_is_named(tmp_path: Path) -> None:
    for name in ("missing.joblib", "text.joblib"):
        (tmp_path / "text.joblib").write_text("text")
        with pytest.raises(SystemExit) as caught:
            register.main([str(tmp_path / name), "--name", "own", "--features", "a", "--out", str(tmp_path / "models")])
        assert "missing.joblib" in str(caught.value.code) or "cannot be read" in str(caught.value.code)


class Failing:
    """A classifier that raises on every row."""

    classes_ = np.array([0, 1])

    def predict_proba(self, rows: Any) -> Any:
        raise RuntimeError("never works")


def test_a_model_that_fails_on_its_example_is_refused(tmp_path: Path) -> None:
    assert "example" in refusal(tmp_path, Failing(), "--features", "a")
