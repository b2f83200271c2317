"""Any scikit-learn classifier in a joblib file, or what behaves like one, as a function from rows to probabilities."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.inference.artifact import REMEDY

ROWS_PER_BLOCK = 16
"""Matrix products work in blocks of rows, and the last bits of a row depend on whether its block is full."""

MATRIX_PRODUCTS = (
    "sklearn.linear_model.",
    "sklearn.neural_network.",
    "sklearn.discriminant_analysis",
    "sklearn.decomposition.",
    "sklearn.gaussian_process.",
    "sklearn.kernel_approximation",
    "sklearn.svm.",
    "sklearn.ensemble._stacking",
)
"""Modules of the estimators that compute with them."""

Rows = NDArray[np.float64]
Proba = Callable[[Rows], NDArray[Any]]


def unpickle(weights: bytes, where: str) -> Any:
    """Execute the pickle; raises ConfigurationError. ``where`` names the model in it."""
    try:
        return joblib.load(io.BytesIO(weights))
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{where} needs the module {error.name}: put its directory on PYTHONPATH.") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"{where} cannot be unpickled ({reason}): {REMEDY}.") from None


def class_values(model: Any) -> list[str]:
    """The estimator's own class values as strings; raises ConfigurationError when it is no single-output classifier."""
    classes = getattr(model, "classes_", None)
    if classes is None or not (hasattr(model, "predict_proba") or hasattr(model, "predict")):
        raise ConfigurationError(
            f"A {type(model).__name__} is no fitted classifier: it needs classes_ and predict_proba or predict."
        )
    if np.ndim(classes) != 1:
        raise ConfigurationError(
            f"This {type(model).__name__} has several outputs: only single-output classifiers are served."
        )
    return [str(value) for value in np.asarray(classes).tolist()]


def check_model(model: Any, features: int, values: Sequence[str], where: str) -> None:
    """Raises ConfigurationError unless the model takes so many features and has exactly these classes."""
    found = class_values(model)
    if list(values) != found:
        raise ConfigurationError(f"{where} has the classes {', '.join(found)}, not {', '.join(values)}: {REMEDY}.")
    expected = getattr(model, "n_features_in_", features)
    if expected != features:
        raise ConfigurationError(f"{where} takes {expected} features, not {features}: {REMEDY}.")


def own_proba(model: Any) -> Proba:
    """The estimator's ``predict_proba``, or ``predict`` as one-hot rows; one call per batch, whatever it is."""
    proba: Proba = model.predict_proba if hasattr(model, "predict_proba") else _one_hot(model)
    parts = _parts(model)
    if not all(_module(part).startswith("sklearn.") for part in parts):
        return _one_at_a_time(proba)
    if any(_module(part).startswith(MATRIX_PRODUCTS) for part in parts):
        return _in_full_blocks(proba)
    return proba


def _one_hot(model: Any) -> Proba:
    column = {value: index for index, value in enumerate(np.asarray(model.classes_).tolist())}
    rows_of = np.eye(len(column))

    def proba(rows: Rows) -> NDArray[Any]:
        return rows_of[[column[value] for value in np.asarray(model.predict(rows)).tolist()]]

    return proba


def _one_at_a_time(proba: Proba) -> Proba:
    """For what is not scikit-learn's, and may not bear an audit beside a prediction: each waits for the other."""
    lock = threading.Lock()

    @wraps(proba)
    def alone(rows: Rows) -> NDArray[Any]:
        with lock:
            return proba(rows)

    return alone


def _in_full_blocks(proba: Proba) -> Proba:
    """Makes a row's answer independent of how many rows are computed with it, to the last bit."""

    def padded(rows: Rows) -> NDArray[Any]:
        full = len(rows) + -len(rows) % ROWS_PER_BLOCK
        places = np.arange(full) % len(rows)
        answers: NDArray[Any] = proba(rows.iloc[places] if hasattr(rows, "iloc") else rows[places])[: len(rows)]
        return answers

    return padded


def run_single_threaded(model: Any) -> None:
    """Processes are this service's parallelism; joblib's dispatch costs more than small batches."""
    if _module(model).startswith("sklearn."):
        jobs = [name for name in model.get_params() if name.rpartition("__")[2] == "n_jobs"]
        model.set_params(**dict.fromkeys(jobs, 1))


def _parts(model: Any) -> list[Any]:
    """A scikit-learn model and the estimators it is made of."""
    nested = model.get_params().values() if _module(model).startswith("sklearn.") else ()
    return [model, *(part for part in nested if hasattr(part, "get_params"))]


def _module(part: Any) -> str:
    return type(part).__module__
