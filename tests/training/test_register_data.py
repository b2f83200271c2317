"""What registration finds out by itself, from data and from the estimator; whatever is said comes before it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lightgbm import LGBMClassifier
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder

from service.errors import ConfigurationError
from service.inference.loading import load_model
from service.inference.manifest import Feature, Manifest
from service.inference.predictor import Options, unpack
from tests.inference.estimators import IRIS_X, IRIS_Y
from tests.support import own_models
from training import register
from training.flags import parse_features
from training.register import main

FLOWERS = pd.DataFrame(IRIS_X, columns=["sepal length (cm)", "sepal width (cm)", "länge", "breite"])
FOREST = RandomForestClassifier(3, random_state=0).fit(FLOWERS, IRIS_Y)


def registered(tmp_path: Path, model: Any, X: Any = None, y: Any = None, **details: Any) -> Manifest:
    return register(model, X, y, name="own", models_dir=tmp_path / "models", **details)


def answer(tmp_path: Path, row: list[Any]) -> list[float]:
    """The probabilities, or the number of a model that has none."""
    loaded = load_model(tmp_path / "models" / "own", Options())
    predictor = loaded.predictor
    (answer,) = predictor.predict([predictor.parse({"input": row}, b"", "application/json").payload or b""])
    assert isinstance(answer, bytes), answer
    values: list[float] = unpack(answer)[loaded.manifest.output.probabilities_from :].tolist()
    return values


def features(manifest: Manifest) -> dict[str, Feature]:
    return {feature.name: feature for feature in manifest.features}


def run(tmp_path: Path, model: Any, table: pd.DataFrame, *options: str) -> Path:
    file, data = own_models.write(tmp_path, "own", model, table)
    main([str(file), "--data", str(data), "--out", str(tmp_path / "models"), *options])
    return tmp_path / "models" / "own"


def test_the_command_line_shows_what_it_found_before_it_publishes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, table = own_models.titanic()
    run(tmp_path, model, table, "--target", "survived", "--classes", "died,survived")
    shown = capsys.readouterr().out
    assert "0 = died, 1 = survived" in shown
    assert "category: female, male" in shown
    assert f"on this data ({len(table)} rows" in shown
    assert "models/own" in shown.splitlines()[-1]
    manifest = load_model(tmp_path / "models" / "own", Options()).manifest
    assert manifest.accuracy == np.mean(model.predict(table) == table["survived"])
    assert "name" not in features(manifest), "the pipeline passes over that column"


def test_of_a_parquet_file_too(tmp_path: Path) -> None:
    model, table = own_models.titanic()
    file, _ = own_models.write(tmp_path, "own", model, table)
    table.to_parquet(tmp_path / "own.parquet")
    main(
        [str(file), "--data", str(tmp_path / "own.parquet"), "--target", "survived", "--out", str(tmp_path / "models")]
    )
    assert features(load_model(tmp_path / "models" / "own", Options()).manifest)["age (years)"].missing


def test_from_python_an_estimator_is_enough_for_what_it_knows_itself(tmp_path: Path) -> None:
    manifest = registered(tmp_path, FOREST)
    assert list(features(manifest)) == list(FLOWERS.columns)
    assert manifest.rows == "array", "a forest of numbers needs no DataFrame"
    assert answer(tmp_path, [5.1, 3.5, 1.4, 0.2]) == FOREST.predict_proba(FLOWERS.head(1))[0].tolist()
    titanic, _ = own_models.titanic()
    known = features(registered(tmp_path, titanic))
    assert known["sex"].values == ("female", "male")
    assert known["embarked"] == Feature(name="embarked", type="text", missing=True, dtype="object")
    assert known["age (years)"].missing
    assert [f.name for f in registered(tmp_path, GaussianNB().fit(IRIS_X, IRIS_Y)).features] == ["x0", "x1", "x2", "x3"]


def test_bounds_that_the_data_have_are_shown_and_enforced_only_when_asked_for(tmp_path: Path) -> None:
    seen = features(registered(tmp_path, FOREST, FLOWERS, IRIS_Y))["länge"]
    assert (seen.seen, seen.minimum, seen.maximum) == ((1.0, 6.9), None, None)
    enforced = features(registered(tmp_path, FOREST, FLOWERS, IRIS_Y, enforce_bounds=True))["länge"]
    assert (enforced.minimum, enforced.maximum) == (1.0, 6.9)


def test_flags_come_before_what_was_found(tmp_path: Path) -> None:
    path = run(tmp_path, FOREST, FLOWERS, "--features", "a:0:10,b,c:?,d", "--example", "1,2,,4", "--name", "own")
    manifest = load_model(path, Options()).manifest
    found = features(manifest)
    assert (found["a"].minimum, found["a"].maximum) == (0, 10)
    assert found["c"].missing
    assert found["b"].seen == (2.0, 4.4), "of the column in that place"
    assert manifest.example.inputs == {"a": 1.0, "b": 2.0, "c": None, "d": 4.0}


def test_an_order_that_contradicts_the_models_own_is_refused(tmp_path: Path) -> None:
    swapped = [{"name": name} for name in reversed(FLOWERS.columns)]
    with pytest.raises(
        ConfigurationError, match=r"was fitted on the columns sepal length \(cm\), .* in this order, not"
    ):
        registered(tmp_path, FOREST, features=swapped)


def test_columns_of_the_data_are_taken_by_their_names_in_the_models_order(tmp_path: Path) -> None:
    registered(tmp_path, FOREST, FLOWERS[FLOWERS.columns[::-1]].assign(more=1), IRIS_Y)
    assert answer(tmp_path, [5.1, 3.5, 1.4, 0.2]) == FOREST.predict_proba(FLOWERS.head(1))[0].tolist()
    with pytest.raises(ConfigurationError, match="no column länge"):
        registered(tmp_path, FOREST, FLOWERS.drop(columns="länge"), IRIS_Y)
    with pytest.raises(ConfigurationError, match="takes 4 features, and the data have 5 columns"):
        registered(tmp_path, GaussianNB().fit(IRIS_X, IRIS_Y), FLOWERS.assign(target=IRIS_Y))


def test_a_bad_name_is_refused_before_anything_is_executed(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "Bad Name.joblib").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(SystemExit, match="no name of a model"):
        main([str(tmp_path / "Bad Name.joblib")])
    assert not (tmp_path / "executed").exists()


class Ages(ClassifierMixin, BaseEstimator):
    """One of somebody's own, which asks for columns by name."""

    def fit(self, X: pd.DataFrame, y: Any) -> Ages:
        self.classes_, self.feature_names_in_ = np.unique(y), np.array(X.columns, dtype=object)
        return self

    def predict(self, X: pd.DataFrame) -> Any:
        return self.classes_[(X["länge"] > 2).to_numpy().astype(int)]


def test_a_model_that_asks_for_columns_by_name_is_given_a_dataframe(tmp_path: Path) -> None:
    assert registered(tmp_path, Ages().fit(FLOWERS, IRIS_Y > 0), FLOWERS, IRIS_Y > 0).rows == "frame"
    assert answer(tmp_path, [5.1, 3.5, 1.4, 0.2]) == [0.0], "the place of its class, since it has no probabilities"


@pytest.mark.parametrize("gap", [None, np.nan])
def test_a_missing_text_is_what_it_was_in_the_data(tmp_path: Path, gap: Any) -> None:
    table = pd.DataFrame({"port": pd.Series(["C", "Q", gap] * 4, dtype=object)})
    model = make_pipeline(ColumnTransformer([("port", OneHotEncoder(), ["port"])]), GaussianNB())
    model.fit(table, [0, 1, 1] * 4)
    registered(tmp_path, model, table, [0, 1, 1] * 4)
    assert answer(tmp_path, [None]) == model.predict_proba(table)[2].tolist()


def test_categories_of_pandas_come_in_their_order(tmp_path: Path) -> None:
    table = pd.DataFrame({"size": pd.Categorical(["S", "XL", "M"] * 20, categories=["S", "M", "XL"]), "x": range(60)})
    model = HistGradientBoostingClassifier(max_iter=3).fit(table, [0, 1, 0] * 20)
    manifest = registered(tmp_path, model, table, [0, 1, 0] * 20)
    assert manifest.features[0].values == ("S", "M", "XL")
    assert answer(tmp_path, ["XL", 1]) == model.predict_proba(table)[1].tolist()


def test_texts_of_an_array_without_names(tmp_path: Path) -> None:
    X = np.array([["a", "x"], ["b", "y"], ["a", "y"]] * 5, dtype=object)
    model = make_pipeline(OneHotEncoder(sparse_output=False), GaussianNB()).fit(X, [0, 1, 1] * 5)
    manifest = registered(tmp_path, model, X, [0, 1, 1] * 5)
    assert manifest.rows == "objects"
    assert manifest.features[1].values == ("x", "y")
    assert answer(tmp_path, ["b", "y"]) == model.predict_proba(X)[1].tolist()


def test_texts_go_through_whatever_makes_numbers_of_them(tmp_path: Path) -> None:
    _, table = own_models.mood()
    parts = FeatureUnion([("words", TfidfVectorizer()), ("hashes", HashingVectorizer(n_features=16))])
    model = make_pipeline(parts, LogisticRegression()).fit(table["comment"], table["label"])
    assert [f.name for f in registered(tmp_path, model, table["comment"], table["label"]).features] == ["comment"]
    assert answer(tmp_path, ["no fun"]) == model.predict_proba(["no fun"])[0].tolist()


@pytest.mark.parametrize("as_frame", [False, True])
def test_texts_stay_texts_behind_what_hides_the_vectorizer(tmp_path: Path, as_frame: bool) -> None:
    """Of a DataFrame it would read the names of the columns, and answer each question alike."""
    pipeline, table = own_models.mood()
    model = CalibratedClassifierCV(pipeline, cv=2).fit(table["comment"], table["label"])
    X = table[["comment"]] if as_frame else table["comment"].tolist()
    assert registered(tmp_path, model, X, table["label"]).rows == "texts"
    assert answer(tmp_path, ["no fun"]) == model.predict_proba(["no fun"])[0].tolist()


def test_data_that_the_model_fails_on_are_refused(tmp_path: Path) -> None:
    rows = [{"x": 1.0, "port": "C"}, {"x": 2.0, "port": "Q"}] * 3
    model = make_pipeline(DictVectorizer(), LogisticRegression()).fit(rows, [0, 1] * 3)
    with pytest.raises(ConfigurationError, match=r"The model fails on .* \(AttributeError"):
        registered(tmp_path, model, rows, [0, 1] * 3)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pd.date_range("2020-01-01", periods=150), "the month of a date"),
        ([1, "a"] * 75, "numbers or texts"),
        (pd.Categorical([0.5, 1.5] * 75), "fit the model on numbers, booleans or texts"),
    ],
)
def test_a_column_that_no_request_can_hold_is_refused(tmp_path: Path, column: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        registered(tmp_path, FOREST, FLOWERS.assign(länge=column), IRIS_Y)


_PIPELINE = make_pipeline(ColumnTransformer([("c", OneHotEncoder(), ["c"])]), LogisticRegression())
BY_NAME = VotingClassifier([("only", _PIPELINE)]).fit(pd.DataFrame({"c": ["x", "y"] * 9}), [0, 1] * 9)
RESERVED = GaussianNB().fit(FLOWERS.rename(columns={"länge": "model"}), IRIS_Y)


@pytest.mark.parametrize(
    ("model", "X", "y", "said"),
    [
        ({"model": FOREST}, None, None, "A dict has no predict method, .*: save the fitted estimator itself"),
        (make_pipeline(FunctionTransformer(lambda x: x), FOREST), FLOWERS, IRIS_Y, "cannot be pickled .*into a module"),
        (GaussianNB().fit(IRIS_X, IRIS_Y), FLOWERS.set_axis([*"aabc"], axis=1), IRIS_Y, "Two columns are called a"),
        (FOREST, FLOWERS, IRIS_Y[1:], "X has 150 rows, but y has 149"),
        (BY_NAME, None, None, r"The model fails on its example .*\(--data\) what its columns hold"),
        (RESERVED, None, None, "The column 'model' cannot be a feature .*: rename it"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(tmp_path: Path, model: Any, X: Any, y: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        registered(tmp_path, model, X, y)


def test_whole_numbers_that_no_float64_holds_are_given_in_their_own_column(tmp_path: Path) -> None:
    X = pd.DataFrame({"id": np.arange(2**63 - 75, 2**63 + 75, dtype=np.uint64) + np.uint64(2**62)})
    model = RandomForestClassifier(3, random_state=0).fit(X, IRIS_Y)
    assert registered(tmp_path, model, X, IRIS_Y).rows == "frame"
    for row in (0, 149):
        assert answer(tmp_path, [int(X.id[row])]) == model.predict_proba(X[row : row + 1])[0].tolist()


def test_no_infinite_row_is_the_example_and_no_row_without_a_target_is_scored(tmp_path: Path) -> None:
    X, y = FLOWERS.copy(), FOREST.predict(FLOWERS).astype(float)
    X.iloc[0, 0], y[::2] = np.inf, np.nan
    model, said = HistGradientBoostingClassifier(max_iter=2).fit(X[1::2], y[1::2]), list[str]()
    manifest = registered(tmp_path, model, X, y, show=said.append)
    assert manifest.example.inputs == dict(X.iloc[1])
    assert manifest.accuracy == model.score(X[1::2], y[1::2])
    assert "(75 rows" in said[0]


def test_an_array_of_objects_and_a_sparse_one_are_tables_as_a_data_frame_is(tmp_path: Path) -> None:
    table = np.array([["x", 1.5, 2], ["y", 2.5, 3]] * 9, dtype=object)
    encoder = ColumnTransformer([("c", OneHotEncoder(), [0])], remainder="passthrough")
    manifest = registered(tmp_path, make_pipeline(encoder, LogisticRegression()).fit(table, [0, 1] * 9), table)
    assert [feature.type for feature in manifest.features] == ["category", "number", "integer"]
    sparse = csr_matrix(IRIS_X)
    assert registered(tmp_path, GaussianNB().fit(IRIS_X, IRIS_Y), sparse, IRIS_Y).features[0].seen == (4.3, 7.9)


def test_texts_of_digits_need_a_file_that_keeps_them_texts(tmp_path: Path) -> None:
    table = pd.DataFrame({"zip": ["10115", "20095"] * 9, "left": [0, 1] * 9})
    first = ColumnTransformer([("zip", OneHotEncoder(handle_unknown="ignore"), ["zip"])])
    model = make_pipeline(first, LogisticRegression()).fit(table[["zip"]], table["left"])
    with pytest.raises(SystemExit, match=r"column zip has no texts.*Parquet"):
        run(tmp_path, model, table, "--target", "left")
    assert registered(tmp_path, model, features=[{"name": "zip", "type": "text"}]).features[0].type == "text"


def test_files_of_the_command_line_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    file = tmp_path / "binary.txt"
    file.write_bytes(b"\xff")
    with pytest.raises(SystemExit, match=r"binary\.txt is no text in UTF-8"):
        run(tmp_path, FOREST, FLOWERS, "--requirements", str(file))
    with pytest.raises(SystemExit, match=r"cannot be written to \(Not a directory\)"):
        run(tmp_path, FOREST, FLOWERS, "--out", str(file))


def test_an_argument_that_there_is_not_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no argument 'classes'"):
        registered(tmp_path, FOREST, classes=["a", "b", "c"])


def test_lightgbm_has_its_own_names_for_columns_with_spaces(tmp_path: Path) -> None:
    model = LGBMClassifier(n_estimators=2, verbose=-1).fit(FLOWERS, IRIS_Y)
    assert features(registered(tmp_path, model, FLOWERS, IRIS_Y))["sepal_length_(cm)"].seen == (4.3, 7.9)
    assert answer(tmp_path, [5.1, 3.5, 1.4, 0.2]) == model.predict_proba(FLOWERS.head(1))[0].tolist()


def test_categories_are_numbers_only_where_they_are_written_as_such() -> None:
    values = [parse_features(f"zip:category:{text}")[0]["values"] for text in ("-1|20", "007|1", "--5|3")]
    assert values == [[-1, 20], ["007", "1"], ["--5", "3"]]
