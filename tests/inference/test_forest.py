"""The fast way through a forest says what scikit-learn says, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits, make_classification
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier

from service.inference.tabular.forest import LeafTable, TreeWalk, fast_forest
from tests.inference.estimators import IRIS_X, IRIS_Y

RNG = np.random.default_rng(7)


def adversarial(forest: LeafTable | TreeWalk, model: RandomForestClassifier, count: int) -> NDArray[np.float64]:
    """Thresholds of the model and their float32 and float64 neighbours, combined at random."""
    columns = []
    for feature in range(model.n_features_in_):
        cuts = np.concatenate(
            [e.tree_.threshold[(e.tree_.feature == feature) & (e.tree_.children_left >= 0)] for e in model.estimators_]
        )
        near = np.float32(cuts)
        below, above = np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))
        pool = [cuts, near, below, above, np.nextafter(cuts, -np.inf), np.nextafter(cuts, np.inf), [0.0]]
        columns.append(RNG.choice(np.concatenate(pool).astype(np.float64), count))
    return np.column_stack(columns)


def test_a_hundred_thousand_answers_of_the_iris_forest_are_bit_equal_in_batches_of_any_size() -> None:
    model = RandomForestClassifier(100, random_state=0, n_jobs=1).fit(IRIS_X, IRIS_Y)
    fast = fast_forest(model)
    assert isinstance(fast, LeafTable)
    rows = np.concatenate([RNG.uniform(0, 10, (50_000, 4)), adversarial(fast, model, 50_000)])
    cuts = np.cumsum(RNG.integers(1, 257, size=900))
    batches = [batch for batch in np.split(rows, cuts[cuts < len(rows)]) if len(batch)]
    got = np.concatenate([fast(batch) for batch in batches])
    assert got.tobytes() == model.predict_proba(rows).tobytes()


@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(17, random_state=1, class_weight="balanced"),
        RandomForestClassifier(9, max_leaf_nodes=5, random_state=1, bootstrap=False),
        ExtraTreesClassifier(23, random_state=2),
        DecisionTreeClassifier(random_state=3),
        DecisionTreeClassifier(max_leaf_nodes=4, random_state=3),
        ExtraTreeClassifier(random_state=4),
        DecisionTreeClassifier(max_depth=0 + 1, random_state=3),
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [2, 3])
def test_every_kind_of_tree_and_forest_is_bit_equal(model: DecisionTreeClassifier, classes: int) -> None:
    x, y = make_classification(
        300, 6, n_informative=4, n_classes=classes, n_clusters_per_class=1, flip_y=0.2, random_state=5
    )
    model.fit(x, y)
    rows = RNG.normal(0, 2, (2_000, 6))
    fast = fast_forest(model)
    assert isinstance(fast, LeafTable)
    for size in (1, 7, 64):
        got = np.concatenate([fast(rows[start : start + size]) for start in range(0, len(rows), size)])
        assert got.tobytes() == model.predict_proba(rows).tobytes()


def test_a_forest_too_large_for_a_table_is_walked_and_bit_equal() -> None:
    x, y = load_digits(return_X_y=True)
    model = RandomForestClassifier(60, random_state=0).fit(x + RNG.normal(0, 0.1, x.shape), y)
    fast = fast_forest(model)
    assert isinstance(fast, TreeWalk)
    assert fast(x[:500]).tobytes() == model.predict_proba(x[:500]).tobytes()
    assert fast(x[:1]).tobytes() == model.predict_proba(x[:1]).tobytes()


def test_a_tree_that_learned_nothing_has_one_leaf_and_one_answer() -> None:
    model = RandomForestClassifier(3, random_state=0).fit(np.zeros((6, 2)), [0, 1, 0, 1, 0, 1])
    fast = fast_forest(model)
    assert fast is not None
    rows = np.array([[0.0, 0.0], [5.0, -5.0]])
    assert fast(rows).tobytes() == model.predict_proba(rows).tobytes()


def test_subclasses_several_outputs_and_other_estimators_keep_their_own_way() -> None:
    class Own(RandomForestClassifier):  # type: ignore[misc]
        pass

    several = RandomForestClassifier(3).fit(IRIS_X, np.column_stack([IRIS_Y, IRIS_Y]))
    assert fast_forest(Own(3).fit(IRIS_X, IRIS_Y)) is None
    assert fast_forest(several) is None
    assert fast_forest(GradientBoostingClassifier(n_estimators=2).fit(IRIS_X, IRIS_Y)) is None
