"""Forests without joblib's dispatch, which costs milliseconds: the same leaves, added in the same order, bit by bit.

A tree only asks ``float32(x) <= threshold``. Sort a feature's thresholds over all trees, and the interval that x falls
into decides which leaves it still allows: a bit for each leaf of a tree. Of each tree the intervals of all features
together allow exactly one leaf.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from service.inference.tabular.splits import thresholds_of

Rows = NDArray[np.float64]
Probabilities = NDArray[np.float64]

MAX_TABLE_BYTES = 16 * 2**20
"""Larger forests, whose tables would be slower to combine than their trees to descend, walk tree by tree."""

WORD_BITS = 64
MAX_WORDS = 15
"""Of one tree. One bit of so many words is a power of two that a float64 can hold."""
EXPONENT_OF_ONE = 1023
"""As float64 has it, in the bits from the 52nd on."""


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
    thresholds = thresholds_of(trees, trees[0].n_features)
    words = _words(trees)
    if words <= MAX_WORDS and 8 * words * len(trees) * sum(len(t) + 1 for t in thresholds) <= MAX_TABLE_BYTES:
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
    """``_allowed[f][i]``: for each tree the leaves whose paths admit values in interval i of feature f, as words."""

    def __init__(self, trees: list[Any], thresholds: list[NDArray[np.float64]], classes: int) -> None:
        self._trees, words = len(trees), _words(trees)
        self._thresholds = thresholds
        values, first = [], [0]
        self._allowed = [np.zeros((len(cuts) + 1, len(trees), words), "<u8") for cuts in thresholds]
        for number, tree in enumerate(trees):
            leaves, lows, highs = _leaf_intervals(tree, thresholds)
            values.append(tree.value[leaves, 0, :classes])
            first.append(first[-1] + len(leaves))
            for low, high, table in zip(lows.T, highs.T, self._allowed, strict=True):
                interval = np.arange(len(table))[:, None]
                admits = np.zeros((len(table), words * WORD_BITS), np.bool_)
                admits[:, : len(leaves)] = (low <= interval) & (interval <= high)
                table[:, number] = np.packbits(admits, axis=1, bitorder="little").view("<u8")
        self._values = np.concatenate(values)
        self._first = np.array(first[:-1]) - EXPONENT_OF_ONE
        self._scale = 2.0 ** (WORD_BITS * np.arange(words))
        self.row_bytes = len(thresholds) * len(trees) * words * 8
        """What is read of the table for one row."""

    def __call__(self, rows: Rows) -> Probabilities:
        columns = rows.astype(np.float32).astype(np.float64).T
        allowed: NDArray[np.uint64] | None = None
        for column, cuts, table in zip(columns, self._thresholds, self._allowed, strict=True):
            # take() is three times as fast as an index, for one row.
            chosen = table.take(cuts.searchsorted(column), axis=0)
            allowed = chosen if allowed is None else np.bitwise_and(allowed, chosen, out=allowed)
        assert allowed is not None
        # Of each tree one bit is left. As a number it is a power of two, whose exponent is the leaf's number.
        power = allowed.astype(np.float64)
        power = power[..., 0] if len(self._scale) == 1 else power @ self._scale
        leaves = (power.view(np.int64) >> 52) + self._first
        # Tree after tree, as scikit-learn does: NumPy adds in pairs only along the axis that is contiguous.
        totals: Probabilities = np.add.reduce(self._values.take(leaves.T, axis=0), axis=0)
        totals /= self._trees
        return totals


def _words(trees: list[Any]) -> int:
    """How many words hold a bit for each leaf of any of the trees."""
    return max(-(-int(tree.n_leaves) // WORD_BITS) for tree in trees)


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
