"""Tree models have finitely many questions: inputs between two neighbouring thresholds take the same way in all trees.

A boundary is the largest float64 whose comparison with a threshold comes out "not above" *after all that the model does
to it first*: scaling by the steps of a Pipeline and the cast to float32. Each of these is a monotone function even in
floating point, because rounding is, so the boundary exists and bisecting the ordered float64s finds it exactly.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from struct import Struct
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from service.inference.tabular.forest import trees_of

SCALERS = (StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler)
MOST = 2**53
"""``Cells.count`` stops here: larger numbers are no longer exact in JSON."""

Floats = NDArray[np.float64]


class Cells:
    """Names the cell of an input by one input in it: per feature one value of its interval.

    ``lowest``, ``highest``: per feature, the range in which the model does not overflow (float32 for most trees).
    ``count``: the number of cells, at most ``MOST``.
    """

    def __init__(
        self, boundaries: Sequence[Sequence[float]], lowest: Sequence[float], highest: Sequence[float]
    ) -> None:
        self.lowest = tuple(lowest)
        self.highest = tuple(highest)
        self.count = min(MOST, prod(len(cuts) + 1 for cuts in boundaries))
        self._features = [(list(cuts), _names(cuts)) for cuts in boundaries]
        self._struct = Struct(f"!{len(boundaries)}d")
        self._pack = self._struct.pack

    def representative(self, values: Sequence[float]) -> bytes:
        """Packed like an input; the same bytes for all inputs of one cell and for no others."""
        return self._pack(
            *[names[bisect_left(cuts, x)] for x, (cuts, names) in zip(values, self._features, strict=True)]
        )

    def box(self, representative: bytes) -> list[tuple[float | None, float | None]]:
        """Per feature both ends of the cell's interval, inclusive; None where it has no end."""
        values = self._struct.unpack(representative)
        return [_interval(x, cuts) for x, (cuts, _) in zip(values, self._features, strict=True)]


def _interval(value: float, cuts: Sequence[float]) -> tuple[float | None, float | None]:
    place = bisect_left(cuts, value)
    return value if place else None, cuts[place] if place < len(cuts) else None


def _names(boundaries: Sequence[float]) -> list[float]:
    """A value of each interval: the smallest; of the lowest interval, which has none, the largest."""
    return [*boundaries[:1], *(float(np.nextafter(x, np.inf)) + 0.0 for x in boundaries)] or [0.0]


def find_cells(model: Any) -> Cells | None:
    """The cells of a scikit-learn tree model, alone or behind scalers; None when exactness cannot be shown."""
    steps, tree_model = _split(model)
    splits = _splits(tree_model) if steps is not None else None
    if steps is None or splits is None:
        return None
    thresholds, dtype = splits
    limits = (-np.inf, float(np.finfo(dtype).max))  # "above -inf" and "not above the maximum" are what finite means
    lists = [sorted({*limits, *cuts.tolist()}) for cuts in thresholds]
    columns = _boundaries(_chain(steps, dtype), lists)
    boundaries, lowest, highest = [], [], []
    for cuts, found in zip(lists, columns, strict=True):
        below, above = found[0], found[cuts.index(limits[1])]
        lowest.append(float(np.nextafter(below, np.inf)) if np.isfinite(below) else -sys.float_info.max)
        highest.append(above if np.isfinite(above) else sys.float_info.max)
        boundaries.append(sorted({x + 0.0 for x in found if lowest[-1] <= x < highest[-1]}))
    return Cells(boundaries, lowest, highest)


def _split(model: Any) -> tuple[list[Any] | None, Any]:
    """(scalers, last step); None for scalers when a step is not known to be monotone in each feature by itself."""
    if type(model) is not Pipeline:
        return [], model
    steps = [step for _, step in model.steps[:-1] if step not in (None, "passthrough")]
    return (steps if all(_is_monotone(step) for step in steps) else None), model.steps[-1][1]


def _is_monotone(step: Any) -> bool:
    scale = getattr(step, "scale_", None)
    return type(step) in SCALERS and (scale is None or bool(np.all(scale > 0) and np.all(np.isfinite(scale))))


def _splits(model: Any) -> tuple[list[Floats], type[np.floating[Any]]] | None:
    """Per feature all thresholds it is compared with, and the type it is cast to for that."""
    if (trees := trees_of(model)) is not None:
        return _tree_thresholds(trees), np.float32
    if type(model) is GradientBoostingClassifier and _starts_constant(model):
        return _tree_thresholds([estimator.tree_ for estimator in model.estimators_.flat]), np.float32
    # A preprocessor is there for categories, which are sets and not intervals.
    if type(model) is HistGradientBoostingClassifier and model._preprocessor is None:
        nodes = np.concatenate([tree.nodes for iteration in model._predictors for tree in iteration])
        nodes = nodes[nodes["is_leaf"] == 0]
        return _by_feature(nodes["feature_idx"], nodes["num_threshold"], model.n_features_in_), np.float64
    return None


def _starts_constant(model: Any) -> bool:
    """Boosting may start from any estimator's answer; only the default one is the same for all inputs."""
    init = model.init_
    return init.strategy == "prior" if type(init) is DummyClassifier else isinstance(init, str) and init == "zero"


def _tree_thresholds(trees: Sequence[Any]) -> list[Floats]:
    splits = [tree.children_left >= 0 for tree in trees]
    features = np.concatenate([tree.feature[split] for tree, split in zip(trees, splits, strict=True)])
    thresholds = np.concatenate([tree.threshold[split] for tree, split in zip(trees, splits, strict=True)])
    return _by_feature(features, thresholds, trees[0].n_features)


def _by_feature(features: NDArray[Any], thresholds: Floats, count: int) -> list[Floats]:
    return [np.unique(thresholds[features == f]) for f in range(count)]


def _chain(steps: Sequence[Any], dtype: type[np.floating[Any]]) -> Callable[[Floats], Floats]:
    """What a tree compares in place of raw rows: the steps' own transform, then the cast."""

    def compared(rows: Floats) -> Floats:
        # Overflow is an answer here (infinite is above every threshold), not an error.
        with sklearn.config_context(assume_finite=True), np.errstate(over="ignore"):
            scaled = reduce(lambda x, step: np.asarray(step.transform(x)), steps, rows)
            return scaled.astype(dtype).astype(np.float64)

    return compared


def _boundaries(compared: Callable[[Floats], Floats], thresholds: Sequence[Sequence[float]]) -> list[list[float]]:
    """Per feature and threshold, the largest float64 that does not come out above it; -inf where all finite ones do."""
    targets = np.full((max(map(len, thresholds)), len(thresholds)), np.inf)
    for f, cuts in enumerate(thresholds):
        targets[: len(cuts), f] = cuts
    low, high = np.full(targets.shape, -_INFINITY), np.full(targets.shape, _INFINITY)
    for _ in range(64):  # there are fewer than 2**64 float64s
        middle = (low >> 1) + (high >> 1) + (low & high & 1)  # their mean, without overflow
        above = compared(_float_at(middle)) > targets
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return [found[: len(cuts)].tolist() for found, cuts in zip(_float_at(low).T, thresholds, strict=True)]


_INFINITY = int(np.array(np.inf).view(np.int64))


def _float_at(position: NDArray[np.int64]) -> Floats:
    """The float64s in their order, from ``-_INFINITY`` to ``_INFINITY``; position 0 is zero."""
    return np.copysign(np.abs(position).view(np.float64), position)
