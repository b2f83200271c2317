"""What an ensemble of trees asks of a row: only whether a value, prepared in some way, is at most a threshold.

Whatever is computed of the leaves that a row falls into (sums, votes, calibrations, another estimator) depends on the
row through these questions alone. A class that is not named here, a subclass included, may ask anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Cast: TypeAlias = Callable[[Floats], Floats]

PART = {
    "sklearn.GridSearchCV": "best_estimator_",
    "sklearn.RandomizedSearchCV": "best_estimator_",
    "sklearn.HalvingGridSearchCV": "best_estimator_",
    "sklearn.HalvingRandomSearchCV": "best_estimator_",
    "sklearn.FixedThreshold*": "estimator_",
    "sklearn.TunedThreshold*CV": "estimator_",
    "sklearn.SelfTraining*": "estimator_",
    "sklearn.FrozenEstimator": "estimator",
    "sklearn.TransformedTarget*": "regressor_",
}
PARTS = {
    f"sklearn.{name}*": "estimators_"
    for name in ("AdaBoost", "Bagging", "Voting", "Stacking", "MultiOutput", "OneVsRest", "OneVsOne")
} | {"sklearn.IsolationForest": "estimators_", "sklearn.Calibrated*CV": "calibrated_classifiers_"}
"""Estimators made of others, and the attribute that holds them. The * is Classifier or Regressor."""

SCALERS = ("sklearn.StandardScaler", "sklearn.MinMaxScaler", "sklearn.MaxAbsScaler", "sklearn.RobustScaler")
ZERO = float(np.float32(1e-35))
"""LightGBM takes what is no further from zero for zero."""


@dataclass(frozen=True, slots=True)
class Splits:
    """The thresholds of one part of a model, which is given ``columns`` of the row, scaled by ``steps``.

    ``cast``: what is done to the numbers last, before ``<=``. ``highest``: the largest that this can be. Several parts
    with the same ``way`` can be treated as one.
    """

    columns: tuple[int, ...]
    steps: tuple[Any, ...] = ()
    after: tuple[int, ...] | None = None
    """Which of the scaled columns it is given, where not all of them."""
    cast: Cast = field(default=np.asarray)
    highest: float = np.inf
    thresholds: tuple[Floats, ...] = ()
    """Per column."""

    @property
    def way(self) -> tuple[Any, ...]:
        return self.columns, tuple(map(id, self.steps)), self.cast


class _Unknown(Exception):
    """A part of the model may ask something else than thresholds."""


def find_splits(model: Any) -> list[Splits] | None:
    """The splits of all parts of the model; None if a part may ask something else."""
    try:
        return list(_splits(model, Splits(tuple(range(feature_count(model))))))
    except (_Unknown, AttributeError):
        return None


def feature_count(model: Any) -> int:
    """How many features the model was fitted on; 0 where it does not say. CatBoost's own count is 0 once loaded."""
    return getattr(model, "n_features_in_", 0) or len(getattr(model, "feature_names_", None) or ())


def class_name(model: Any) -> str:
    """``sklearn.RandomForestClassifier``: the class, and the library that it is from."""
    return f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"


def _splits(model: Any, given: Splits) -> Iterator[Splits]:
    """``given``: what this part of the model is given."""
    name = re.sub("Classifier|Regressor", "*", class_name(model))
    if name == "sklearn.Pipeline":
        yield from _splits(model.steps[-1][1], _scaled(model, given))
    elif name in PART:
        yield from _splits(getattr(model, PART[name]), given)
    elif name in PARTS:
        yield from _of_parts(model, getattr(model, PARTS[name]), given)
    elif name in READERS:
        cast, highest, thresholds = READERS[name](model, len(given.columns if given.after is None else given.after))
        yield _placed(replace(given, cast=cast, highest=highest), thresholds)
    else:
        raise _Unknown(name)


def _scaled(pipeline: Any, given: Splits) -> Splits:
    steps = [step for _, step in pipeline.steps[:-1] if step not in (None, "passthrough")]
    if not all(map(_is_monotone, steps)) or (steps and given.after is not None):
        raise _Unknown
    return replace(given, steps=(*given.steps, *steps))


def _is_monotone(step: Any) -> bool:
    scale = getattr(step, "scale_", None)
    return class_name(step) in SCALERS and (scale is None or bool(np.all(scale > 0) and np.all(np.isfinite(scale))))


def _of_parts(model: Any, parts: Any, given: Splits) -> Iterator[Splits]:
    if getattr(model, "passthrough", False):  # then the row itself goes on to another estimator
        raise _Unknown
    chosen = getattr(model, "estimators_features_", None)
    for number, part in enumerate(parts):
        part = part.estimator if type(part).__name__ == "_CalibratedClassifier" else part
        yield from _splits(part, given if chosen is None else _chosen(given, chosen[number].tolist()))


def _chosen(given: Splits, indices: Sequence[int]) -> Splits:
    if given.steps:
        before = given.after or range(len(given.columns))
        return replace(given, after=tuple(before[index] for index in indices))
    return replace(given, columns=tuple(given.columns[index] for index in indices))


def _placed(given: Splits, thresholds: Sequence[Floats]) -> Splits:
    """Put the thresholds in the places of their columns."""
    if given.after is None:
        return replace(given, thresholds=tuple(thresholds))
    found: list[list[float]] = [[] for _ in given.columns]
    for index, cuts in zip(given.after, thresholds, strict=True):
        found[index] += cuts.tolist()
    return replace(given, after=None, thresholds=tuple(map(np.array, found)))


Read: TypeAlias = tuple[Cast, float, list[Floats]]


def _to_float32(rows: Floats) -> Floats:
    return rows.astype(np.float32).astype(np.float64)


def thresholds_of(trees: Sequence[Any], count: int) -> list[Floats]:
    """Per feature, those of scikit-learn's low-level trees. A leaf's threshold means nothing."""
    inner = [tree.children_left >= 0 for tree in trees]
    features = np.concatenate([tree.feature[split] for tree, split in zip(trees, inner, strict=True)])
    thresholds = np.concatenate([tree.threshold[split] for tree, split in zip(trees, inner, strict=True)])
    return _by_feature(features, thresholds, count)


def _read_trees(trees: Sequence[Any], count: int) -> Read:
    return _to_float32, _FLOAT32_MAX, thresholds_of(trees, count)


def _read_boosting(model: Any, count: int) -> Read:
    """Boosting may start from any estimator's answer; only the default one is the same for all inputs."""
    init = model.init_
    dummy = class_name(init) in ("sklearn.DummyClassifier", "sklearn.DummyRegressor")
    if init != "zero" and not (dummy and init.strategy not in ("stratified", "uniform")):
        raise _Unknown
    return _read_trees([estimator.tree_ for estimator in model.estimators_.flat], count)


def _read_histogram(model: Any, count: int) -> Read:
    if model._preprocessor is not None:  # it is there for categories, which are sets and not intervals
        raise _Unknown
    nodes = np.concatenate([tree.nodes for iteration in model._predictors for tree in iteration])
    nodes = nodes[nodes["is_leaf"] == 0]
    return np.asarray, np.inf, _by_feature(nodes["feature_idx"], nodes["num_threshold"], count)


def _read_xgboost(model: Any, count: int) -> Read:
    """It asks ``float32(x) < threshold``: whether x is at most the float32 below. Missing is NaN, or anything."""
    booster = json.loads(bytes(model.get_booster().save_raw("json")))["learner"]["gradient_booster"]
    if booster.get("name") != "gbtree" or model.missing is None or not np.isnan(model.missing):
        raise _Unknown
    features, cuts = [np.array([], dtype=np.int64)], [np.array([], dtype=np.float32)]
    for tree in booster["model"]["trees"]:
        if any(tree["split_type"]):
            raise _Unknown
        inner = np.array(tree["left_children"]) >= 0
        features.append(np.array(tree["split_indices"])[inner])
        cuts.append(np.array(tree["split_conditions"], dtype=np.float32)[inner])
    below = np.nextafter(np.concatenate(cuts), np.float32(-np.inf))
    return _to_float32, _FLOAT32_MAX, _by_feature(np.concatenate(features), below.astype(np.float64), count)


def _read_lightgbm(model: Any, count: int) -> Read:
    features, thresholds = [], []
    for line in model.booster_.model_to_string().splitlines():
        name, _, values = line.partition("=")
        if (name == "num_cat" and values != "0") or (name == "is_linear" and values != "0"):
            raise _Unknown
        if name == "split_feature":
            features += [int(value) for value in values.split()]
        elif name == "threshold":
            thresholds += [float(value) for value in values.split()]
    around_zero = [(feature, cut) for feature in range(count) for cut in (-ZERO, 0.0)]
    features += [feature for feature, _ in around_zero]  # zero may stand for missing
    thresholds += [cut for _, cut in around_zero]
    return _to_lightgbm, np.inf, _by_feature(np.array(features), np.array(thresholds), count)


def _to_lightgbm(rows: Floats) -> Floats:
    return np.where(np.abs(rows) <= ZERO, 0.0, rows)


def _read_catboost(model: Any, count: int) -> Read:
    others = (model.get_cat_feature_indices, model.get_text_feature_indices, model.get_embedding_feature_indices)
    if any(len(indices()) for indices in others):
        raise _Unknown
    borders = model.get_borders()
    return _to_float32, _FLOAT32_MAX, [np.array(borders.get(index, []), dtype=np.float64) for index in range(count)]


def _by_feature(features: NDArray[Any], thresholds: Floats, count: int) -> list[Floats]:
    return [np.unique(thresholds[features == f]) for f in range(count)]


_FLOAT32_MAX = float(np.finfo(np.float32).max)

READERS: dict[str, Callable[[Any, int], Read]] = {
    "sklearn.DecisionTree*": lambda model, count: _read_trees([model.tree_], count),
    "sklearn.ExtraTree*": lambda model, count: _read_trees([model.tree_], count),
    "sklearn.RandomForest*": lambda model, count: _read_trees([part.tree_ for part in model.estimators_], count),
    "sklearn.ExtraTrees*": lambda model, count: _read_trees([part.tree_ for part in model.estimators_], count),
    "sklearn.GradientBoosting*": _read_boosting,
    "sklearn.HistGradientBoosting*": _read_histogram,
    "xgboost.XGB*": _read_xgboost,
    "xgboost.XGBRF*": _read_xgboost,
    "lightgbm.LGBM*": _read_lightgbm,
    "catboost.CatBoost*": _read_catboost,
}
"""Class -> (cast, the largest number it gives, thresholds per feature) of a fitted one."""
