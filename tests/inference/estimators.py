"""Real estimators, and the service's predictors made of them as if they had been read from a directory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_iris

from service.inference.artifact import Artifact
from service.inference.manifest import Class, Example, Feature, Manifest, Weights
from service.inference.predictor import Options, unpack
from service.inference.tabular.estimator import class_values
from service.inference.tabular.predictor import TabularPredictor, load
from training.proof import ways_to_ask

NAMES = ("a", "b", "c", "d")
IRIS_X, IRIS_Y = load_iris(return_X_y=True)


class Counting:
    """Behaves like an estimator, is none, and keeps every array it was asked about."""

    classes_ = np.array(["no", "yes"])
    rows_are_independent = True

    def __init__(self) -> None:
        self.calls: list[NDArray[np.float64]] = []

    def predict_proba(self, rows: NDArray[np.float64]) -> Any:
        self.calls.append(rows)
        return np.array([[1 - x, x] for x in rows[:, 0]])


def artifact_of(
    model: Any, names: Sequence[str] = NAMES, minimum: float | None = None, maximum: float | None = None
) -> Artifact:
    """Read as registration would have it, which has proved nothing here."""
    file = io.BytesIO()
    joblib.dump(model, file)
    output = next(ways_to_ask(model, np.ones((1, len(names)))))
    classes = tuple(Class(value=str(value), label=f"class {value}") for value in class_values(model))
    width = {"class_and_probabilities": len(classes) + 1, "probabilities": len(classes)}.get(output.kind, 1)
    manifest = Manifest(
        name="model",
        kind="tabular",
        weights=Weights.of(file.getvalue(), "joblib"),
        features=tuple(Feature(name=name, minimum=minimum, maximum=maximum) for name in names),
        classes=classes if output.has_classes else (),
        output=output,
        cost_seconds=1e-3,
        example=Example(inputs=dict.fromkeys(names, 1.0), golden=[1.0] + [0.0] * (max(width, len(output.names)) - 1)),
        versions={},
    )
    return Artifact(manifest, file.getvalue())


def predictor_of(
    model: Any, names: Sequence[str] = NAMES, minimum: float | None = None, maximum: float | None = None
) -> TabularPredictor:
    return load(artifact_of(model, names, minimum, maximum), Options())


def payloads(rows: NDArray[np.float64]) -> list[bytes]:
    return [row.tobytes() for row in rows.astype(">f8")]


def answers(predictor: TabularPredictor, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """One vector per row, as one batch."""
    return np.array([unpack(answer) for answer in predictor.predict(payloads(rows)) if isinstance(answer, bytes)])
