"""Every estimator there is, fitted on small data and held against itself as it is served: the table of docs/models.md.

``python -m training.estimators`` (``make estimators``) writes it; a test makes it too, and compares the two.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_regressor
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import all_estimators

from service.errors import ConfigurationError
from service.inference.artifact import read_artifact
from service.inference.manifest import Feature, Manifest
from service.inference.predictor import Options, answer_check, unpack
from service.inference.tabular.predictor import TabularPredictor, load
from training.register import register

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- estimators -->\n", "<!-- end of estimators -->\n"
HEAD = (
    "| estimator | answer | own `predict` | own `predict_proba` | alone = batch = hit | key | rows per call |\n"
    "|---|---|---|---|---|---|---|\n"
)
BOOSTING: dict[str, tuple[str, dict[str, Any]]] = {
    "CatBoostClassifier": ("catboost", {"verbose": False, "allow_writing_files": False}),
    "CatBoostRegressor": ("catboost", {"verbose": False, "allow_writing_files": False}),
    "LGBMClassifier": ("lightgbm", {"verbose": -1}),
    "LGBMRegressor": ("lightgbm", {"verbose": -1}),
    "XGBClassifier": ("xgboost", {}),
    "XGBRegressor": ("xgboost", {}),
}
TWO_TARGETS = ("CCA", "MultiOutputRegressor", "MultiTask", "PLS", "RegressorChain")
LABELS = ("ClassifierChain", "MultiOutputClassifier")
TWO_CLASSES = ("FixedThresholdClassifier", "TunedThresholdClassifierCV")
SLOW: dict[str, dict[str, Any]] = {
    "AdaBoostClassifier": {"n_estimators": 5},
    "AdaBoostRegressor": {"n_estimators": 5},
    "CalibratedClassifierCV": {"cv": 2, "estimator": RandomForestClassifier(3, random_state=0)},
    "GaussianProcessClassifier": {"max_iter_predict": 20},
    "HistGradientBoostingClassifier": {"max_iter": 5},
    "HistGradientBoostingRegressor": {"max_iter": 5},
    "IsolationForest": {"n_estimators": 10},
    "LocalOutlierFactor": {"novelty": True},
    "LogisticRegressionCV": {"Cs": 2, "max_iter": 50},
    "MLPClassifier": {"hidden_layer_sizes": (8,), "max_iter": 50},
    "MLPRegressor": {"hidden_layer_sizes": (8,), "max_iter": 50},
    "TheilSenRegressor": {"max_subpopulation": 50},
}
"""Parameters without which these would be slow, or could not be asked."""
TOLERANCE = 1e-12
"""Of probabilities and numbers where a row's answer depends on its neighbours, as in matrix products."""


@dataclass(frozen=True, slots=True)
class Line:
    """``refused``: why; else what is served. ``wrong``: the promises that are not kept, by the columns' names."""

    name: str
    output: str = ""
    key: str = ""
    rows_per_call: int | None = None
    probabilities: bool = False
    refused: str = ""
    wrong: tuple[str, ...] = ()

    def markdown(self) -> str:
        if self.refused:
            return f"| `{self.name}` | refused: {self.refused} | | | | | |\n"
        mark = {name: "**no**" if name in self.wrong else "✓" for name in ("predict", "proba", "same")}
        proba = mark["proba"] if self.probabilities else "–"
        rows = "any" if self.rows_per_call is None else self.rows_per_call
        kind = self.output.replace("_", " ")
        return f"| `{self.name}` | {kind} | {mark['predict']} | {proba} | {mark['same']} | {self.key} | {rows} |\n"


def names() -> list[str]:
    """The estimators that have a ``predict`` method."""
    return sorted([*_classes(), *BOOSTING], key=str.lower)


@cache
def _classes() -> dict[str, Any]:
    found = {name: kind for name, kind in all_estimators() if hasattr(kind, "predict") or name == "LocalOutlierFactor"}
    return found | {"SelfTrainingClassifier": dict(all_estimators())["SelfTrainingClassifier"]}


def fitted(name: str) -> tuple[Any, int]:
    """The estimator, fitted, and its number of features."""
    rows, target = load_iris(return_X_y=True)
    model = _made(name)
    if name.startswith(TWO_TARGETS):
        target = rows[:, 2:] + rows[:, :2]
    elif name in LABELS:
        target = np.column_stack([target > 0, target > 1]).astype(int)
    elif name in TWO_CLASSES:
        rows, target = rows[50:], target[50:]
    elif is_regressor(model):
        target = rows @ [1.0, -2.0, 3.0, 0.5]
    if name == "IsotonicRegression":
        rows = rows[:, :1]
    if name == "CategoricalNB":
        rows = np.concatenate([np.floor(rows), np.tile(np.arange(9.0)[:, None], 4)])
        target = np.concatenate([target, np.arange(9) % 3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(rows, target), rows.shape[1]


def _made(name: str) -> Any:
    if name in BOOSTING:
        module, quiet = BOOSTING[name]
        return getattr(import_module(module), name)(n_estimators=5, **quiet)
    kind = _classes()[name]
    given = _parts(name) | SLOW.get(name, {})
    if "random_state" in kind.__init__.__code__.co_varnames and name != "DummyClassifier":
        given |= {"random_state": 0}
    if "n_estimators" in kind.__init__.__code__.co_varnames:
        given.setdefault("n_estimators", 5)
    return kind(**given)


def _parts(name: str) -> dict[str, Any]:
    """The inner estimators of a meta-estimator."""
    regresses = "Regress" in name
    plain, forest, tree = (
        (Ridge(), RandomForestRegressor(3, random_state=0), DecisionTreeRegressor(max_depth=2, random_state=0))
        if regresses
        else (
            LogisticRegression(max_iter=500),
            RandomForestClassifier(3, random_state=0),
            DecisionTreeClassifier(max_depth=2, random_state=0),
        )
    )
    if name.startswith(("Stacking", "Voting")):
        return {"estimators": [("plain", plain), ("forest", forest)]}
    if name == "Pipeline":
        return {"steps": [("only", plain)]}
    if name in ("GridSearchCV", "HalvingGridSearchCV"):
        return {"estimator": tree, "param_grid": {"max_depth": [1, 2]}, "cv": 2}
    if name in ("RandomizedSearchCV", "HalvingRandomSearchCV"):
        return {"estimator": tree, "param_distributions": {"max_depth": [1, 2]}, "n_iter": 2, "cv": 2}
    meta = ("ClassifierChain", "FixedThreshold", "MultiOutput", "OneVs", "OutputCode", "RFE", "RegressorChain")
    if name.startswith((*meta, "SelfTraining", "TunedThreshold")):
        return {"estimator": plain}
    return {}


def examine(name: str) -> Line:
    """Register it, and hold what is served against what the file itself says."""
    model, width = fitted(name)
    file = io.BytesIO()
    joblib.dump(model, file)
    features = [Feature(name=f"f{number}", minimum=0, maximum=8) for number in range(width)]
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            source = Path(directory, "own.joblib")
            source.write_bytes(file.getvalue())
            example = load_iris().data[0, :width].tolist()
            register(source, name="own", models_dir=directory, features=features, example=example, show=_silent)
        except ConfigurationError as error:
            return Line(name, refused=str(error))
        artifact = read_artifact(Path(directory) / "own")
        predictor = load(artifact, Options())
        file.seek(0)
        wrong = tuple(_wrong(predictor, artifact.manifest, joblib.load(file), _rows(width)))
    output = artifact.manifest.output
    has_probabilities = output.probabilities_from is not None
    return Line(name, output.kind, predictor.key_kind, output.rows_per_call, has_probabilities, "", wrong)


def _silent(shown: str) -> None:
    """Print nothing."""


def _rows(width: int) -> NDArray[np.float64]:
    chance = np.random.default_rng(7)
    return np.concatenate([chance.uniform(0, 8, (50, width)), load_iris().data[::5, :width]])


def _wrong(predictor: TabularPredictor, manifest: Manifest, model: Any, rows: NDArray[np.float64]) -> list[str]:
    questions = [predictor.parse({"input": row.tolist()}, b"", "application/json") for row in rows]
    payloads = [question.payload or b"" for question in questions]
    alone = [_asked(predictor, payload) for payload in payloads]
    own = [_own(model, manifest, row[None]) for row in rows]
    wrong = [] if [answer is None for answer in alone] == [said is None for said in own] else ["same"]
    answered = [index for index, answer in enumerate(alone) if answer is not None and own[index] is not None]
    if not _is_same(predictor, manifest, [payloads[index] for index in answered]):
        wrong.append("same")
    if predictor.key_kind == "cells":  # a hit is the answer to any other question of the cell
        wrong += [] if alone == [_asked(predictor, question.identity[1:]) for question in questions] else ["same"]
    for index in answered:
        wrong += _differences(manifest, alone[index] or b"", own[index], model, rows[index][None])
    return sorted(set(wrong))


def _asked(predictor: TabularPredictor, payload: bytes) -> bytes | None:
    """None for a row that the predictor refuses, and for an answer that is no finite number."""
    (answer,) = predictor.predict([payload])
    return answer if isinstance(answer, bytes) else None


def _own(model: Any, manifest: Manifest, row: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """What the file says to a row alone, in the order of an answer; None where it refuses, or says no number."""
    output = manifest.output
    try:
        said = np.ravel(model.predict(row))
        proba = np.ravel(model.predict_proba(row)).astype(np.float64) if output.probabilities_from is not None else ()
    except ValueError:
        return None
    if output.has_classes:
        said = np.array([[c.value for c in manifest.classes].index(str(said.tolist()[0]))])
    vector = np.array([*said, *proba] if output.kind != "probabilities" else proba, dtype=np.float64)
    return vector if np.isfinite(vector).all() else None


def _differences(manifest: Manifest, answer: bytes, own: Any, model: Any, row: NDArray[np.float64]) -> list[str]:
    given, start = unpack(answer), manifest.output.probabilities_from
    found = []
    if start is not None and not np.allclose(given[start:], own[start:], rtol=TOLERANCE, atol=TOLERANCE):
        found.append("proba")
    if manifest.output.has_classes:
        said = manifest.best_class(given.tolist()).value
        return found if said == str(np.ravel(model.predict(row)).tolist()[0]) else [*found, "predict"]
    return found if np.allclose(given, own, rtol=TOLERANCE, atol=TOLERANCE) else ["predict"]


def _is_same(predictor: TabularPredictor, manifest: Manifest, payloads: list[bytes]) -> bool:
    """Whether batches of any size and order have the same bits, audits too, and the caches would take them."""
    alone = [_asked(predictor, payload) for payload in payloads]
    order = np.random.default_rng(8).permutation(len(payloads)).tolist()
    shuffled = predictor.predict([payloads[index] for index in order])
    seven = [a for start in range(0, len(payloads), 7) for a in predictor.predict(payloads[start : start + 7])]
    is_answer = answer_check(manifest)
    return (
        alone == list(predictor.predict(payloads)) == seven
        and [alone[index] for index in order] == list(shuffled)
        and alone == [predictor.audit(payload) for payload in payloads]
        and all(answer is not None and is_answer(answer) for answer in alone)
    )


def table() -> str:
    return HEAD + "".join(examine(name).markdown() for name in names())


def main() -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
