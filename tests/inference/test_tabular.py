"""What a row may look like, and that its answer is the estimator's own."""

from __future__ import annotations

import struct
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from service.errors import ConfigurationError, InvalidInput, PredictionFailed, UnsupportedContent
from service.inference.loading import load_model
from service.inference.predictor import Options, Question, unpack
from service.inference.tabular.predictor import TabularPredictor
from tests.inference.estimators import (
    IRIS_X,
    IRIS_Y,
    NAMES,
    Counting,
    answers,
    artifact_of,
    payloads,
    predictor_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")

ROW = {"a": "5.1", "b": "3.5", "c": "1.4", "d": "0.2"}
FOREST = RandomForestClassifier(10, random_state=0, n_jobs=-1).fit(IRIS_X, IRIS_Y)
LINEAR = LogisticRegression(max_iter=500).fit(IRIS_X, IRIS_Y)


@pytest.fixture(scope="module")
def bounded() -> TabularPredictor:
    return predictor_of(FOREST, minimum=0, maximum=10)


@pytest.fixture(scope="module")
def exact() -> TabularPredictor:
    return predictor_of(LINEAR)


def ask(predictor: TabularPredictor, **changes: Any) -> Question:
    return predictor.parse(ROW | changes, b"", None)


def refused(predictor: TabularPredictor, params: dict[str, Any], content_type: str | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        predictor.parse(params, b"", content_type)
    return caught.value


@pytest.mark.parametrize("text", ["5.1", "5.10", "05.1", "+5.1", "51e-1", "0.51E+1", "5.1000000000000000000000001"])
def test_every_spelling_of_a_number_is_one_question(
    bounded: TabularPredictor, exact: TabularPredictor, text: str
) -> None:
    assert ask(bounded, a=text) == ask(bounded)
    assert ask(exact, a=text) == ask(exact)


@pytest.mark.parametrize("zero", ["0", "-0", "0.0", "-0.0", "+0e5", "-.0", "0."])
def test_both_zeros_are_one_question(bounded: TabularPredictor, exact: TabularPredictor, zero: str) -> None:
    assert ask(bounded, a=zero) == ask(bounded, a="0")
    assert ask(exact, a=zero) == ask(exact, a="0")


def test_query_json_object_and_json_row_are_one_question_in_any_order(exact: TabularPredictor) -> None:
    numbers = {name: float(text) for name, text in ROW.items()}
    question = ask(exact)
    assert exact.parse(dict(reversed(ROW.items())), b"", None) == question
    assert exact.parse(numbers, b"", "application/json") == question
    assert exact.parse({"input": [5.1, 3.5, 1.4, 0.2]}, b"", "application/json") == question
    assert exact.parse(numbers | {"a": 5}, b"", "application/json") == ask(exact, a="5")


def test_the_payload_is_the_row_itself_as_big_endian_float64s(
    bounded: TabularPredictor, exact: TabularPredictor
) -> None:
    row = struct.pack("!4d", 5.1, 3.5, 1.4, 0.2)
    assert ask(bounded).payload == ask(exact).payload == row
    assert ask(exact).identity == b"x" + row


def test_the_next_float_up_is_another_question_unless_it_is_the_same_cell(
    bounded: TabularPredictor, exact: TabularPredictor
) -> None:
    after = repr(float(np.nextafter(5.1, 6)))
    assert ask(exact, a=after).identity != ask(exact).identity
    assert ask(bounded, a=after).identity == ask(bounded).identity
    assert ask(bounded, a=after).payload != ask(bounded).payload
    assert (exact.key_kind, exact.cells) == ("exact", None)
    assert bounded.key_kind == "cells"
    assert bounded.cells is not None
    assert bounded.cells > 1_000


NO_NUMBERS = [
    "nan",
    "NaN",
    "inf",
    "-Infinity",
    "1e400",
    "-1e400",
    "1_0",
    "0x1p3",
    "1,5",
    "e1",
    "1e",
    "--1",
    "1e5e5",
    "+",
    ".",
    "１",
    "٣",
    "½",
    "true",
]
HARD_TO_SEE = ["", " ", " 1", "1 ", "1\n", "\x00", "5.1\udcff", "1" * 65, "9" * 10_000]


@pytest.mark.parametrize("text", [*NO_NUMBERS, *HARD_TO_SEE])
def test_what_is_no_finite_decimal_number_is_refused_and_named(exact: TabularPredictor, text: str) -> None:
    error = refused(exact, ROW | {"c": text})
    assert error.parameter == "c"
    assert "c" in str(error)


@pytest.mark.parametrize("value", ["5.1", True, None, [5.1], {}, 10**400, float("nan"), float("inf")])
def test_what_is_no_finite_json_number_is_refused_and_named(exact: TabularPredictor, value: Any) -> None:
    numbers: dict[str, Any] = {name: float(text) for name, text in ROW.items()}
    assert refused(exact, numbers | {"c": value}, "application/json").parameter == "c"
    assert refused(exact, {"input": [1.0, 2.0, value, 3.0]}, "application/json").parameter == "c"


@pytest.mark.parametrize("row", [[], [1.0, 2.0, 3.0], [1.0] * 5, "abcd", None, {"a": 1.0}, [[1.0, 2.0, 3.0, 4.0]]])
def test_a_row_of_another_shape_is_refused(exact: TabularPredictor, row: Any) -> None:
    assert refused(exact, {"input": row}, "application/json").parameter == "input"


def test_bounds_are_inclusive(bounded: TabularPredictor) -> None:
    ask(bounded, a="0", b="10")
    for outside in ("-5e-324", "10.000000000000002"):
        error = refused(bounded, ROW | {"b": outside})
        assert error.parameter == "b"
        assert "between 0 and 10" in str(error)


def test_what_would_overflow_a_float32_model_is_refused_before_it_is_asked() -> None:
    open_ended = predictor_of(FOREST)
    assert refused(open_ended, ROW | {"a": "3.5e38"}).parameter == "a"
    assert isinstance(open_ended.predict([ask(open_ended, a="3.4e38").payload or b""])[0], bytes)


@pytest.mark.parametrize("names", list(permutations("uvwx", 3)), ids="".join)
def test_of_several_unknown_parameters_the_first_in_the_request_is_named(
    bounded: TabularPredictor, names: tuple[str, ...]
) -> None:
    for params, content_type in (
        (dict.fromkeys(names, "1") | ROW, None),
        (dict.fromkeys(names, 1), "application/json"),
    ):
        with pytest.raises(InvalidInput) as refused:
            bounded.parse(params, b"", content_type)
        assert refused.value.parameter == names[0]


def test_missing_and_unknown_parameters_are_named_with_the_nearest_known_one(bounded: TabularPredictor) -> None:
    predictor = predictor_of(FOREST, ("sepal_length", "sepal_width", "petal_length", "petal_width"))
    params = dict.fromkeys(("sepal_length", "sepal_width", "petal_length", "petal_width"), "1")
    assert "sepal_length" in str(refused(predictor, params | {"sepal_lenght": "1"}))
    assert refused(bounded, ROW | {"z": "1"}).parameter == "z"
    assert refused(bounded, ROW | {"input": "1"}).parameter == "input"
    error = refused(bounded, {"a": "1", "c": "1"})
    assert "b, d" in str(error)
    assert refused(bounded, {}).parameter == "a"


def test_an_upload_is_refused_as_unsupported(bounded: TabularPredictor) -> None:
    with pytest.raises(UnsupportedContent):
        bounded.parse({}, b"\x89PNG", "image/png")


def test_parameters_are_json_schemas_with_the_manifests_bounds_and_example(bounded: TabularPredictor) -> None:
    assert bounded.parameters["a"] == {"type": "number", "minimum": 0.0, "maximum": 10.0, "example": 1.0}
    assert predictor_of(LINEAR).parameters["d"] == {"type": "number", "example": 1.0}
    assert list(bounded.parameters) == list(NAMES)


ESTIMATORS = [
    RandomForestClassifier(10, random_state=0, n_jobs=-1),
    ExtraTreesClassifier(10, random_state=0),
    GradientBoostingClassifier(n_estimators=5, random_state=0),
    HistGradientBoostingClassifier(max_iter=5, random_state=0),
    KNeighborsClassifier(n_jobs=2),
    GaussianNB(),
    SVC(),
    make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0)),
]
MATRIX_ESTIMATORS = [
    LogisticRegression(max_iter=500),
    MLPClassifier((7,), max_iter=800, tol=1e-2, random_state=0),
    LinearDiscriminantAnalysis(),
    QuadraticDiscriminantAnalysis(),
    RidgeClassifier(),
    LinearSVC(random_state=0),
    make_pipeline(StandardScaler(), LogisticRegression()),
    VotingClassifier([("a", LogisticRegression(max_iter=500)), ("b", GaussianNB())], voting="soft"),
]


@pytest.mark.parametrize("model", ESTIMATORS, ids=str)
def test_answers_are_the_estimators_own_to_the_last_bit_and_so_is_the_audit(model: Any) -> None:
    model.fit(IRIS_X, IRIS_Y)
    predictor = predictor_of(model)
    rows = np.random.default_rng(3).uniform(0, 8, (40, 4))
    expected = np.array([np.ravel(model.predict([row])).astype(float) for row in rows])
    if hasattr(model, "predict_proba"):
        expected = np.hstack([expected, [model.predict_proba([row])[0] for row in rows]])
    if predictor._width == 3:  # a forest's class is the one of the highest probability
        assert (expected[:, 0] == expected[:, 1:].argmax(axis=1)).all()
        expected = expected[:, 1:]
    assert answers(predictor, rows).tobytes() == expected.tobytes()
    assert [predictor.audit(payload) for payload in payloads(rows)] == list(predictor.predict(payloads(rows)))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("model", [*ESTIMATORS, *MATRIX_ESTIMATORS], ids=str)
def test_a_row_is_answered_alike_alone_and_in_a_batch_of_any_size_at_any_place(model: Any, classes: int) -> None:
    few = classes > IRIS_Y
    model.fit(IRIS_X[few], IRIS_Y[few])
    predictor = predictor_of(model)
    rows = np.random.default_rng(4).uniform(0, 8, (66, 4))
    alone = [predictor.predict([payload])[0] for payload in payloads(rows)]
    for size in (2, 3, 8, 15, 16, 17, 64):
        together: list[Any] = []
        for start in range(0, len(rows), size):
            together += predictor.predict(payloads(rows[start : start + size]))
        assert together == alone
    assert np.allclose([unpack(a) for a in alone if isinstance(a, bytes)], answers(predictor, rows), atol=1e-12)


@pytest.mark.parametrize("features", [20, 64])
@pytest.mark.parametrize(
    "model", [LogisticRegression(max_iter=500), MLPClassifier((30,), max_iter=5, random_state=0)], ids=str
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_row_of_a_wide_model_is_answered_alike_in_any_batch(model: Any, features: int) -> None:
    """With one output and many features BLAS sums four rows at a time: padding to two rows would not do."""
    x, y = make_classification(300, features, random_state=0)
    predictor = predictor_of(model.fit(x, y), [f"f{index}" for index in range(features)])
    alone = [predictor.predict([payload])[0] for payload in payloads(x[:130])]
    for size in (2, 3, 4, 5, 7, 16, 31, 64, 130):
        batches = (payloads(x[start : min(130, start + size)]) for start in range(0, 130, size))
        assert [answer for batch in batches for answer in predictor.predict(batch)] == alone


def test_a_class_of_ones_own_is_asked_once_per_batch_where_it_says_that_its_rows_are_independent() -> None:
    asked = Counting()
    predictor = TabularPredictor(asked, artifact_of(asked, ("x",)))
    asked.calls.clear()
    predictor.predict(payloads(np.array([[0.25]])))
    predictor.predict(payloads(np.array([[0.5], [0.75], [0.5]])))
    assert [call.tolist() for call in asked.calls] == [[[0.25]], [[0.5], [0.75], [0.5]]]
    assert predictor.key_kind == "exact"


def test_loading_asks_the_model_nothing_and_warming_up_asks_its_example_once(tmp_path: Path) -> None:
    from service.inference.artifact import write_artifact

    write_artifact(tmp_path / "model", artifact_of(Counting(), ("x",)))
    with pytest.raises(ConfigurationError, match="no longer gives"):
        load_model(tmp_path / "model", Options())  # its example says [1, 0]; the model says [0, 1]


class Broken(Counting):
    """Answers what its first value says: nothing finite, or the wrong shape."""

    def predict_proba(self, rows: Any) -> Any:
        if (rows[:, 0] < 0).any():
            return np.ones((len(rows), 5))
        return np.array([[np.nan if x > 1 else 1 - x, x] for x in rows[:, 0]])


def test_only_the_row_whose_answer_is_not_finite_fails() -> None:
    good, bad, also_good = predictor_of(Broken(), ("x",)).predict(payloads(np.array([[0.5], [2.0], [0.25]])))
    assert isinstance(bad, PredictionFailed)
    assert isinstance(good, bytes)
    assert isinstance(also_good, bytes)
    assert unpack(also_good).tolist() == [0.75, 0.25]


def test_values_that_overflow_in_an_estimator_of_a_library_are_their_clients_fault() -> None:
    model = LogisticRegression(max_iter=1000).fit(IRIS_X, IRIS_Y)
    rows = np.array([IRIS_X[0], np.full(4, np.finfo(np.float64).max)])
    good, bad = predictor_of(model).predict(payloads(rows))
    assert isinstance(good, bytes)
    assert isinstance(bad, InvalidInput), bad


def test_an_answer_of_another_shape_fails_every_row_of_it() -> None:
    outcomes = predictor_of(Broken(), ("x",)).predict(payloads(np.array([[-1.0], [0.5]])))
    assert [type(outcome) for outcome in outcomes] == [PredictionFailed, PredictionFailed]


def test_an_estimator_without_probabilities_answers_with_the_place_of_its_class() -> None:
    model = LinearSVC(random_state=0).fit(IRIS_X, np.array(["x", "y", "z"])[IRIS_Y])
    got = answers(predictor_of(model), IRIS_X)
    assert (model.classes_[got[:, 0].astype(int)] == model.predict(IRIS_X)).all()


def test_the_fingerprint_is_of_what_can_change_an_answer() -> None:
    base = predictor_of(FOREST)
    other = RandomForestClassifier(10, random_state=1).fit(IRIS_X, IRIS_Y)
    assert len(base.fingerprint) == 32
    assert base.fingerprint == predictor_of(FOREST).fingerprint
    assert base.fingerprint == predictor_of(FOREST, minimum=0, maximum=10).fingerprint
    assert base.fingerprint != predictor_of(other).fingerprint
    assert base.fingerprint != predictor_of(FOREST, tuple(reversed(NAMES))).fingerprint


def test_loading_a_model_with_other_classes_or_features_than_its_manifest_fails() -> None:
    from service.inference.artifact import Artifact
    from service.inference.tabular.predictor import load

    artifact = artifact_of(FOREST)
    swapped = artifact.manifest.model_copy(update={"classes": artifact.manifest.classes[::-1]})
    with pytest.raises(ConfigurationError, match="classes 0, 1, 2, not 2, 1, 0"):
        load(Artifact(swapped, artifact.weights), Options())
    fewer = artifact.manifest.model_copy(update={"features": artifact.manifest.features[:3]})
    with pytest.raises(ConfigurationError, match="takes 4 features, not 3"):
        load(Artifact(fewer, artifact.weights), Options())


def test_forests_serve_on_one_thread_whatever_they_were_trained_with() -> None:
    model = RandomForestClassifier(3, n_jobs=2).fit(IRIS_X, IRIS_Y)
    TabularPredictor(model, artifact_of(model))
    assert model.n_jobs == 1


def test_only_a_forest_whose_full_batch_reads_little_is_computed_on_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert predictor_of(FOREST).rows_on_loop
    assert not predictor_of(LINEAR).rows_on_loop
    monkeypatch.setattr("service.inference.tabular.predictor.MAX_BYTES_ON_LOOP", 1000)
    assert not predictor_of(FOREST).rows_on_loop
