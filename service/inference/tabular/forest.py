"""Forests without joblib's dispatch, which costs milliseconds: the same leaves, added in the same order, bit by bit.

A tree only asks ``float32(x) <= threshold``. Sort a feature's thresholds over all trees, and the interval that x falls
into decides which leaves it still allows. One table row per feature and interval, one column per leaf of the forest:
the leaves that all of a row's features allow are exactly one per tree, in the order of the trees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

Rows = NDArray[np.float64]
Probabilities = NDArray[np.float64]

MAX_TABLE_BYTES = 16 * 2**20
"""Larger forests, whose tables would be slower to combine than their trees to descend, walk tree by tree."""


def trees_of(model: Any) -> list[Any] | None:
    """The low-level trees of exactly a scikit-learn tree or forest; None for anything else, subclasses included."""
    if type(model) in (RandomForestClassifier, ExtraTreesClassifier) and model.n_outputs_ == 1:
        return [estimator.tree_ for estimator in model.estimators_]
    if type(model) in (DecisionTreeClassifier, ExtraTreeClassifier) and model.n_outputs_ == 1:
        return [model.tree_]
    return None


def fast_forest(model: Any) -> Callable[[Rows], Probabilities] | None:
    """``predict_proba`` of a tree or forest, bit by bit, for float64 rows of finite float32 range; None for others."""
    trees = trees_of(model)
    if trees is None:
        return None
    thresholds = [np.unique(np.concatenate([_thresholds(t, f) for t in trees])) for f in range(trees[0].n_features)]
    leaves = sum(int(t.n_leaves) for t in trees)
    if leaves * sum(len(t) + 1 for t in thresholds) <= MAX_TABLE_BYTES:
        return LeafTable(trees, thresholds, int(model.n_classes_))
    return TreeWalk(trees, int(model.n_classes_))


class TreeWalk:
    """Descend tree by tree: for forests of any size."""

    def __init__(self, trees: list[Any], classes: int) -> None:
        self._trees = trees
        self._classes = classes

    def __call__(self, rows: Rows) -> Probabilities:
        rows32 = rows.astype(np.float32)
        total = np.zeros((len(rows), self._classes))
        for tree in self._trees:
            total += tree.predict(rows32)[:, : self._classes]
        total /= len(self._trees)
        return total


class LeafTable:
    """``_allowed[f][i, leaf]``: does the leaf's path admit values in interval i of feature f?"""

    def __init__(self, trees: list[Any], thresholds: list[NDArray[np.float64]], classes: int) -> None:
        self._trees = len(trees)
        self._thresholds = thresholds
        values, first, last = [], [], []
        for tree in trees:
            leaves, low, high = _leaf_intervals(tree, thresholds)
            values.append(tree.value[leaves, 0, :classes])
            first.append(low)
            last.append(high)
        self._values = np.concatenate(values)
        lows, highs = np.concatenate(first), np.concatenate(last)
        self.row_bytes = lows.size
        """What is read of the table for one row."""
        self._allowed = []
        for f, cuts in enumerate(thresholds):
            interval = np.arange(len(cuts) + 1)[:, None]
            self._allowed.append((lows[:, f] <= interval) & (interval <= highs[:, f]))

    def __call__(self, rows: Rows) -> Probabilities:
        rows32 = rows.astype(np.float32).astype(np.float64)
        allowed: NDArray[np.bool_] | None = None
        for f, (cuts, table) in enumerate(zip(self._thresholds, self._allowed, strict=True)):
            # take() is three times as fast as an index, for one row.
            chosen = table.take(cuts.searchsorted(rows32[:, f]), axis=0)
            allowed = chosen if allowed is None else np.logical_and(allowed, chosen, out=allowed)
        assert allowed is not None
        leaves = allowed.reshape(-1).nonzero()[0].reshape(len(rows), self._trees) % allowed.shape[1]
        # accumulate adds tree after tree, as scikit-learn does; a reduction might add in pairs.
        totals: Probabilities = np.add.accumulate(self._values.take(leaves.T, axis=0), axis=0)[-1]
        totals /= self._trees
        return totals


def _thresholds(tree: Any, feature: int) -> NDArray[np.float64]:
    """The thresholds of the tree's splits on one feature. A leaf's threshold means nothing."""
    return np.asarray(tree.threshold[(tree.feature == feature) & (tree.children_left >= 0)], dtype=np.float64)


def _leaf_intervals(
    tree: Any, thresholds: list[NDArray[np.float64]]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The leaves, and per leaf and feature the first and the last interval that lead to it."""
    low = np.zeros((tree.node_count, len(thresholds)), dtype=np.intp)
    high = np.empty_like(low)
    high[0] = [len(cuts) for cuts in thresholds]
    # A parent is numbered before its children, so that one pass hands every node's intervals down.
    for node in np.flatnonzero(tree.children_left >= 0):
        left, right, feature = tree.children_left[node], tree.children_right[node], tree.feature[node]
        cut = thresholds[feature].searchsorted(tree.threshold[node])
        low[[left, right]], high[[left, right]] = low[node], high[node]
        high[left, feature] = min(high[node, feature], cut)
        low[right, feature] = max(low[node, feature], cut + 1)
    leaves = np.flatnonzero(tree.children_left < 0)
    return leaves, low[leaves], high[leaves]
