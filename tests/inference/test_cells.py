"""An input and its cell's representative get the same answer to the last bit, or the model has no cells."""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PowerTransformer, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from service.inference.tabular.cells import Cells, find_cells
from tests.inference.estimators import IRIS_X, IRIS_Y

pytestmark = pytest.mark.usefixtures("one_thread")

TREES = {
    "tree": lambda seed: DecisionTreeClassifier(random_state=seed, max_depth=1 + seed % 5),
    "extra tree": lambda seed: ExtraTreeClassifier(random_state=seed),
    "forest": lambda seed: RandomForestClassifier(1 + seed % 9, random_state=seed),
    "extra trees": lambda seed: ExtraTreesClassifier(1 + seed % 9, random_state=seed),
    "boosting": lambda seed: GradientBoostingClassifier(n_estimators=1 + seed % 5, random_state=seed),
    "boosting from zero": lambda seed: GradientBoostingClassifier(n_estimators=2, init="zero", random_state=seed),
    "histogram boosting": lambda seed: HistGradientBoostingClassifier(max_iter=1 + seed % 5, random_state=seed),
}
SCALERS = {
    "plain": [],
    "standard": [StandardScaler()],
    "min-max": [MinMaxScaler((-3, 7))],
    "clipped": [MinMaxScaler(clip=True)],
    "max-abs": [MaxAbsScaler()],
    "two": [RobustScaler(), "passthrough", StandardScaler(with_mean=False)],
}


def representatives(cells: Cells, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([struct.unpack("!3d", cells.representative(row)) for row in rows.tolist()])


def thresholds(model: Any) -> list[NDArray[np.float64]]:
    """Per feature what the model's own trees compare with, led back through its scalers to raw inputs, inexactly."""
    *steps, trees = [step for _, step in model.steps] if isinstance(model, Pipeline) else [model]
    columns = [np.array([0.0, *(t for f, t in splits(trees) if f == feature)]) for feature in range(3)]
    size = max(map(len, columns))
    table = np.column_stack([np.resize(column, size) for column in columns])
    for step in reversed(steps):
        table = table if step == "passthrough" else step.inverse_transform(table)
    return list(table.T)


def splits(model: Any) -> Iterator[tuple[int, float]]:
    """(feature, threshold) of every inner node."""
    if isinstance(model, HistGradientBoostingClassifier):
        for tree in (tree for iteration in model._predictors for tree in iteration):
            yield from ((n["feature_idx"], n["num_threshold"]) for n in tree.nodes if not n["is_leaf"])
        return
    for estimator in np.ravel(getattr(model, "estimators_", [model])):
        tree = estimator.tree_
        yield from ((f, t) for f, t in zip(tree.feature, tree.threshold, strict=True) if f >= 0)


def neighbours(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values with their float64 and float32 neighbours, both zeros, and numbers near nothing."""
    near = values.astype(np.float32)
    around = [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]
    own = [values + k * np.spacing(values) for k in range(-3, 4)]
    return np.concatenate([*own, *around, *halfway(near), [0.0, -0.0, 1e-300, -1e30, 1e30]]).astype(np.float64)


def halfway(near: NDArray[np.float32]) -> Iterator[NDArray[np.float64]]:
    """The float64s around the point where rounding to float32 tips over to the neighbour."""
    for side in (np.float32(-np.inf), np.float32(np.inf)):
        middle = (near.astype(np.float64) + np.nextafter(near, side).astype(np.float64)) / 2
        yield from (np.nextafter(middle, -np.inf), middle, np.nextafter(middle, np.inf))


def learn(tree: str, scaler: str, seed: int, spread: float, offset: float) -> tuple[Any, NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(offset, spread, (60, 3))
    rows[:, 2] = rng.integers(0, 4, 60)  # many equal values
    labels = (rows[:, 0] > offset).astype(int) + (rows[:, 2] > 1)
    labels[:3] = [0, 1, 2]
    model = make_pipeline(*SCALERS[scaler], TREES[tree](seed)) if SCALERS[scaler] else TREES[tree](seed)
    return model.fit(rows, labels), rows


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("tree", TREES)
@settings(max_examples=4)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([1e-6, 0.3, 1.0, 1e4]),
    offset=st.sampled_from([0.0, -2.5, 1e3]),
)
def test_inputs_and_their_representatives_are_answered_bit_equal(
    tree: str, scaler: str, seed: int, spread: float, offset: float
) -> None:
    model, rows = learn(tree, scaler, seed, spread, offset)
    cells = find_cells(model)
    assert cells is not None
    rng = np.random.default_rng(seed + 1)
    pools = [neighbours(np.concatenate([cuts, rows[:, f]])) for f, cuts in enumerate(thresholds(model))]
    inputs = np.column_stack([rng.choice(pool, 600) for pool in pools])
    inputs = np.concatenate([inputs, rng.normal(offset, 3 * spread, (200, 3))])
    names = representatives(cells, inputs + 0.0)
    assert model.predict_proba(inputs).tobytes() == model.predict_proba(names).tobytes()
    assert representatives(cells, names).tobytes() == names.tobytes(), "a representative represents itself"


@settings(max_examples=30)
@given(st.lists(st.floats(-1e30, 1e30, width=64), min_size=3, max_size=3), st.integers(0, 50))
def test_any_float_whatsoever_is_answered_like_its_representative(row: list[float], seed: int) -> None:
    model, _ = learn("forest", "plain", seed, 1.0, 0.0)
    cells = find_cells(model)
    assert cells is not None
    names = representatives(cells, np.array([row]) + 0.0)
    assert model.predict_proba([row]).tobytes() == model.predict_proba(names).tobytes()


def test_both_sides_of_a_threshold_are_different_cells_and_the_count_is_their_product() -> None:
    model = DecisionTreeClassifier(max_depth=1).fit([[0.0], [1.0]], [0, 1])
    cells = find_cells(model)
    assert cells is not None
    assert cells.count == 2
    assert cells.representative([0.5]) == cells.representative([-1e9])
    assert cells.representative([0.51]) == cells.representative([1e9]) != cells.representative([0.5])


def test_a_float64_next_to_the_threshold_that_rounds_onto_it_is_below_it() -> None:
    """The cast decides: the next float64 above 0.5 is the float32 0.5, so a float32 tree does not see it."""
    rows, labels = [[0.0], [1.0]], [0, 1]
    above = float(np.nextafter(0.5, 1))
    tree = find_cells(DecisionTreeClassifier().fit(rows, labels))
    assert tree is not None
    assert tree.representative([above]) == tree.representative([0.5])
    boosted = HistGradientBoostingClassifier(max_iter=1, min_samples_leaf=1).fit(rows, labels)
    histogram = find_cells(boosted)
    assert histogram is not None
    assert histogram.representative([above]) != histogram.representative([0.5])


def test_the_two_zeros_and_inputs_within_a_cell_have_one_name() -> None:
    cells = find_cells(RandomForestClassifier(20, random_state=0).fit(IRIS_X - 3, IRIS_Y))
    assert cells is not None
    assert cells.representative([0.0] * 4) == cells.representative([-0.0] * 4)
    assert cells.representative([1e-9] * 4) == cells.representative([2e-9] * 4)


def test_a_float32_model_ends_where_float32_ends_and_a_float64_model_where_float64_does() -> None:
    forest = find_cells(RandomForestClassifier(5, random_state=0).fit(IRIS_X, IRIS_Y))
    scaled = find_cells(make_pipeline(MinMaxScaler(), RandomForestClassifier(5, random_state=0)).fit(IRIS_X, IRIS_Y))
    boosted = find_cells(HistGradientBoostingClassifier(max_iter=2).fit(IRIS_X, IRIS_Y))
    assert forest is not None
    assert scaled is not None
    assert boosted is not None
    for x in (forest.lowest[0], forest.highest[0]):
        assert np.isfinite(np.float32(x))
    with np.errstate(over="ignore"):
        assert np.isinf(np.float32(np.nextafter(forest.highest[0], np.inf)))
        assert np.isinf(np.float32(np.nextafter(forest.lowest[0], -np.inf)))
    assert scaled.highest[0] > forest.highest[0]
    assert (boosted.lowest[0], boosted.highest[0]) == (-sys.float_info.max, sys.float_info.max)


def test_the_number_of_cells_stays_exact_in_json() -> None:
    x, y = make_classification(400, 20, random_state=0)
    cells = find_cells(RandomForestClassifier(10, random_state=0).fit(x, y))
    assert cells is not None
    assert cells.count == 2**53


def categorical() -> Any:
    rows = np.column_stack([np.arange(60) % 4, np.arange(60.0)])
    return HistGradientBoostingClassifier(max_iter=2, categorical_features=[0], min_samples_leaf=1).fit(
        rows, np.arange(60) % 4 > 1
    )


class OwnScaler(StandardScaler):  # type: ignore[misc]
    """A subclass may do anything."""


class OwnForest(RandomForestClassifier):  # type: ignore[misc]
    """A subclass may do anything."""


@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(max_iter=500),
        OwnForest(3),
        make_pipeline(PCA(2), RandomForestClassifier(3)),
        make_pipeline(PowerTransformer(), RandomForestClassifier(3)),
        make_pipeline(OwnScaler(), RandomForestClassifier(3)),
        make_pipeline(StandardScaler(), LogisticRegression()),
        GradientBoostingClassifier(n_estimators=2, init=LogisticRegression(max_iter=500)),
        GradientBoostingClassifier(n_estimators=2, init=DummyClassifier(strategy="stratified")),
    ],
    ids=str,
)
def test_a_model_whose_exactness_cannot_be_shown_has_no_cells(model: Any) -> None:
    assert find_cells(model.fit(IRIS_X, IRIS_Y)) is None


def test_categorical_splits_and_negative_scales_have_no_cells() -> None:
    turned = make_pipeline(StandardScaler(), RandomForestClassifier(3)).fit(IRIS_X, IRIS_Y)
    turned[0].scale_ = -turned[0].scale_
    assert find_cells(turned) is None
    assert find_cells(categorical()) is None


def test_three_of_four_never_seen_iris_measurements_are_hits_after_100_000() -> None:
    cells = find_cells(RandomForestClassifier(100, random_state=0).fit(IRIS_X, IRIS_Y))
    assert cells is not None
    # A millimetre of noise gives the counts of docs (99,960 distinct inputs in 20,528 cells) within half a percent.
    rng = np.random.default_rng(0)
    flowers = IRIS_X[rng.integers(0, 150, 110_000)] + rng.normal(0, 0.1, (110_000, 4))
    rows = np.round(np.clip(flowers, 0, 10), 2).tolist()
    seen = {cells.representative(row) for row in rows[:100_000]}
    asked = {tuple(row) for row in rows[:100_000]}
    fresh = [row for row in rows[100_000:] if tuple(row) not in asked]
    assert len(fresh) > 9_000
    assert sum(cells.representative(row) in seen for row in fresh) / len(fresh) >= 0.75
