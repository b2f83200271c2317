"""Tree models have finitely many questions: inputs between two neighbouring thresholds take the same way in all trees.

A boundary is the largest float64 whose comparison with a threshold comes out "not above" *after all that the model does
to it first*: scaling by the steps of a Pipeline and the cast to float32. Each of these is a monotone function even in
floating point, because rounding is, so the boundary exists and bisecting the ordered float64s finds it exactly.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from math import prod
from struct import Struct
from typing import Any, TypeAlias

import numpy as np
import sklearn
from numpy.typing import NDArray

from service.inference.tabular.splits import Splits, feature_count, find_splits

MOST = 2**53
"""``Cells.count`` stops here: larger numbers are no longer exact in JSON."""

Floats = NDArray[np.float64]
Interval: TypeAlias = tuple[float | None, float | None]
"""None where it has no end."""


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
        self._arrays = [(np.array(cuts, np.float64), np.array(names)) for cuts, names in self._features]
        self._struct = Struct(f"!{len(boundaries)}d")
        self._pack = self._struct.pack

    def representative(self, values: Sequence[float]) -> bytes:
        """Packed like an input; the same bytes for all inputs of one cell and for no others."""
        return self._pack(
            # Missing (NaN, which is not itself) is a cell of its own.
            *[
                names[bisect_left(cuts, x)] if x == x else np.nan
                for x, (cuts, names) in zip(values, self._features, strict=True)
            ]
        )

    def representatives(self, table: Floats) -> bytes:
        """Of each row, as ``representative`` packs it, one after the other. No value may be missing."""
        named = np.empty(table.shape, ">f8")
        for column, (cuts, names) in enumerate(self._arrays):
            named[:, column] = names.take(cuts.searchsorted(table[:, column]))
        return named.tobytes()

    def box(self, representative: bytes) -> list[Interval | None]:
        """Per feature both ends of the cell's interval, inclusive; None for one that is missing."""
        values = self._struct.unpack(representative)
        return [_interval(x, cuts) for x, (cuts, _) in zip(values, self._features, strict=True)]


def _interval(value: float, cuts: Sequence[float]) -> Interval | None:
    if value != value:
        return None
    place = bisect_left(cuts, value)
    return value if place else None, cuts[place] if place < len(cuts) else None


def _names(boundaries: Sequence[float]) -> list[float]:
    """A value that names each interval: its smallest. The lowest interval has none, so its largest names it."""
    return [*boundaries[:1], *(float(np.nextafter(x, np.inf)) + 0.0 for x in boundaries)] or [0.0]


def find_cells(model: Any) -> Cells | None:
    """The cells of an ensemble of trees, also behind scalers or in other ensembles. None where they may be wrong."""
    found = find_splits(model)
    if found is None:
        return None
    count = feature_count(model)
    boundaries: list[set[float]] = [set() for _ in range(count)]
    lowest, highest = [-sys.float_info.max] * count, [sys.float_info.max] * count
    for splits in _merged(found):
        for feature, (below, cuts, above) in zip(splits.columns, _intervals(splits), strict=True):
            lowest[feature], highest[feature] = max(lowest[feature], below), min(highest[feature], above)
            boundaries[feature].update(cuts)
    inside = [
        sorted({x + 0.0 for x in cuts if low <= x < high})
        for cuts, low, high in zip(boundaries, lowest, highest, strict=True)
    ]
    return Cells(inside, lowest, highest)


def _merged(found: Sequence[Splits]) -> list[Splits]:
    """Joined into one: parts that see the same columns, prepared in the same way. It has the thresholds of all."""
    ways: dict[Any, list[Splits]] = {}
    for splits in found:
        ways.setdefault(splits.way, []).append(splits)
    return [
        replace(same[0], thresholds=tuple(map(np.concatenate, zip(*(part.thresholds for part in same), strict=True))))
        for same in ways.values()
    ]


def _intervals(splits: Splits) -> list[tuple[float, list[float], float]]:
    """Per column the smallest number that does not overflow, the boundaries, and the largest."""
    # "Above -inf" and "not above the maximum" are what finite means.
    lists = [sorted({-np.inf, splits.highest, *cuts.tolist()}) for cuts in splits.thresholds]
    intervals = []
    for cuts, found in zip(lists, _boundaries(_chain(splits), lists), strict=True):
        below, above = found[0], found[cuts.index(splits.highest)]
        lowest = float(np.nextafter(below, np.inf)) if np.isfinite(below) else -sys.float_info.max
        intervals.append((lowest, found, above if np.isfinite(above) else sys.float_info.max))
    return intervals


def _chain(splits: Splits) -> Callable[[Floats], Floats]:
    """What a tree compares in place of raw rows: the steps' own transform, then the cast."""

    def compared(rows: Floats) -> Floats:
        # Overflow is an answer here (infinite is above every threshold), not an error.
        with sklearn.config_context(assume_finite=True), np.errstate(over="ignore"):
            return splits.cast(reduce(lambda x, step: np.asarray(step.transform(x)), splits.steps, rows))

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
