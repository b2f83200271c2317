"""Any estimator with a ``predict`` method as a function from rows to answers, as the manifest's ``output`` has them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError
from service.inference.artifact import REMEDY
from service.inference.manifest import MAX_EXACT, Manifest, Output
from service.inference.tabular.forest import trees_of
from service.inference.tabular.splits import feature_count

ROWS_PER_BLOCK = 16
"""Libraries compute in blocks of rows, and the last bits of a row depend on how many are computed with it."""

LIBRARIES = ("sklearn", "xgboost", "lightgbm", "catboost")
"""Libraries whose estimators are called with blocks of rows, each call in one thread: the service has processes."""

Compute: TypeAlias = Callable[[Any], NDArray[Any]]
"""Rows (an array, a DataFrame …) in, one float64 vector per row out."""


def class_values(model: Any) -> list[Any]:
    """The estimator's own class values; none for what is no classifier, or one of several outputs."""
    classes = getattr(model, "classes_", None)
    several = isinstance(classes, list) and any(np.ndim(one) for one in classes)
    return [] if classes is None or several or np.ndim(classes) != 1 else np.asarray(classes).tolist()


def check_model(model: Any, manifest: Manifest, where: str) -> None:
    """Raises ConfigurationError unless the model has what the manifest says."""
    if not hasattr(model, "predict") and not hasattr(model, "predict_proba"):
        raise ConfigurationError(f"{where} is a {type(model).__name__}, which has no predict method.")
    found = [str(value) for value in class_values(model)]
    expected = [c.value for c in manifest.classes]
    if manifest.output.has_classes and expected != found:
        raise ConfigurationError(f"{where} has the classes {', '.join(found)}, not {', '.join(expected)}: {REMEDY}.")
    count = feature_count(model)
    # Of a DataFrame a model may pass some columns over: the example shows whether it has what it needs.
    if manifest.rows != "frame" and count not in (0, len(manifest.features)):
        raise ConfigurationError(f"{where} takes {count} features, not {len(manifest.features)}: {REMEDY}.")


def own_answers(model: Any, output: Output) -> Compute:
    """What the estimator itself says, without our short cuts.

    A class of one's own may not be thread-safe, so its audits and predictions wait for each other.
    """
    compute, lock = _compute(model, output), threading.Lock()
    if is_of_libraries(model):
        return compute

    def one_at_a_time(rows: Any) -> NDArray[Any]:
        with lock:
            return compute(rows)

    return one_at_a_time


def rows_per_call(model: Any, output: Output) -> int | None:
    """How many rows each call has to have, so that a row is answered alike in any company; None: it always is."""
    if output.rows_per_call is not None or has_independent_rows(model) or not is_of_libraries(model):
        return output.rows_per_call
    return ROWS_PER_BLOCK


def has_independent_rows(model: Any) -> bool:
    """Trees; and a class of one's own that says so."""
    return trees_of(model) is not None or bool(getattr(model, "rows_are_independent", False))


def is_of_libraries(model: Any) -> bool:
    """Whether the model and all that it is made of are classes of ``LIBRARIES``."""
    if _library(model) not in LIBRARIES:
        return False
    nested = model.get_params().values() if hasattr(model, "get_params") else ()
    return all(_library(part) in LIBRARIES for part in nested if hasattr(part, "get_params"))


def run_single_threaded(model: Any) -> None:
    """Processes are this service's parallelism; joblib's dispatch costs more than small batches."""
    if _library(model) in LIBRARIES[:3]:
        jobs = [name for name in model.get_params() if name.rpartition("__")[2] == "n_jobs"]
        model.set_params(**dict.fromkeys(jobs, 1))


def _compute(model: Any, output: Output) -> Compute:
    if output.kind == "probabilities":
        proba: Compute = model.predict_proba
        return proba
    if not output.has_classes:
        return lambda rows: as_table(model.predict(rows))
    place = {value: float(index) for index, value in enumerate(class_values(model))}

    def index(rows: Any) -> NDArray[np.float64]:
        said = np.asarray(model.predict(rows)).reshape(-1).tolist()
        return np.array([[place.get(value, np.nan)] for value in said])

    if output.kind == "class":
        return index
    return lambda rows: np.hstack([index(rows), np.asarray(model.predict_proba(rows), dtype=np.float64)])


def as_table(said: Any) -> NDArray[np.float64]:
    """What ``predict`` says, as one row of numbers per row; NaN for whole numbers that float64 rounds."""
    dense = np.asarray(said.toarray() if hasattr(said, "toarray") else said)
    table = dense.astype(np.float64).reshape(len(dense), -1)
    if dense.dtype.kind in "iu":
        table[np.abs(table) >= MAX_EXACT] = np.nan
    return table


def _library(part: Any) -> str:
    return type(part).__module__.partition(".")[0]
