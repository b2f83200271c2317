"""Every kind of ensemble: wherever one asks in a cell's box, the answer has the same bits."""

from __future__ import annotations

import struct
from typing import Any

import catboost
import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn.base import is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    AdaBoostRegressor,
    BaggingClassifier,
    BaggingRegressor,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
    RandomForestRegressor,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, RobustScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from service.inference.tabular.cells import Cells, find_cells
from service.inference.tabular.splits import find_splits
from tests.inference.test_cells import neighbours

pytestmark = pytest.mark.usefixtures("one_thread")


QUICK = {"n_estimators": 5}
STUMP, STEP = DecisionTreeClassifier(max_depth=3, random_state=0), DecisionTreeRegressor(random_state=0)
ENSEMBLES = [
    STEP,
    RandomForestRegressor(3, random_state=0),
    GradientBoostingRegressor(**QUICK, random_state=0),
    HistGradientBoostingRegressor(max_iter=5, random_state=0),
    AdaBoostClassifier(**QUICK, random_state=0),
    AdaBoostRegressor(**QUICK, random_state=0),
    BaggingClassifier(make_pipeline(StandardScaler(), STUMP), max_features=2, random_state=0),
    BaggingRegressor(STEP, bootstrap_features=True, random_state=0),
    make_pipeline(RobustScaler(), BaggingClassifier(STUMP, max_features=2, random_state=0)),
    VotingClassifier([("a", STUMP), ("b", make_pipeline(MinMaxScaler(), HistGradientBoostingClassifier(max_iter=3)))]),
    CalibratedClassifierCV(RandomForestClassifier(3, random_state=0), cv=2),
    GridSearchCV(STUMP, {"max_depth": [2, 3]}, cv=2),
    StackingClassifier([("a", STUMP)], cv=2),
    IsolationForest(**QUICK, max_features=2, random_state=0),
    OneVsRestClassifier(STUMP),
    xgboost.XGBClassifier(**QUICK),
    xgboost.XGBRegressor(**QUICK),
    lightgbm.LGBMClassifier(**QUICK, verbose=-1),
    lightgbm.LGBMRegressor(**QUICK, verbose=-1, zero_as_missing=True),
    catboost.CatBoostClassifier(**QUICK, verbose=False, allow_writing_files=False),
    catboost.CatBoostRegressor(**QUICK, verbose=False, allow_writing_files=False, nan_mode="Max"),
]


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "missing"])
@pytest.mark.parametrize("model", ENSEMBLES, ids=lambda model: type(model).__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_box_holds_only_inputs_with_one_answer(model: Any, missing: bool) -> None:
    """Wherever one asks: on both sides of each threshold, in float32 and float64, around zero, far out, missing."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 3))
    rows[:, 2], target = rng.integers(-2, 3, 300), rows @ [1.0, 2.0, -3.0]
    rows[::11, 0] = 0
    if missing:
        rows[::5, 1] = np.nan
    try:
        model.fit(rows, target if is_regressor(model) else (target > 0).astype(int) + (target > 2))
    except ValueError:
        assert missing, "it takes no missing values"
        return
    cells, splits = find_cells(model), find_splits(model)
    assert cells is not None
    assert splits is not None
    tiny = np.array([0, 1e-35, -1e-35, np.float32(1e-35), -np.float32(1e-35), 5e-324, -5e-324, 1e-36])
    pools = []
    for f in range(3):
        cuts = [part.thresholds[at] for part in splits for at, column in enumerate(part.columns) if column == f]
        pool = neighbours(np.concatenate([*cuts, tiny, np.linspace(-3, 3, 30)]))
        pools.append(pool[(pool >= cells.lowest[f]) & (pool <= cells.highest[f])])
    inputs = np.column_stack([rng.choice(pool, 3000) for pool in pools]) + 0.0
    inputs[::9, 1] = np.nan if missing else 0.0
    names = [cells.representative(row) for row in inputs.tolist()]
    ends = [struct.pack("!3d", *_corner(cells, name, rng)) for name in names]
    for others in (names, ends):
        other = np.array([struct.unpack("!3d", packed) for packed in others])
        assert model.predict(inputs).tobytes() == model.predict(other).tobytes()
        if hasattr(model, "predict_proba"):
            assert model.predict_proba(inputs).tobytes() == model.predict_proba(other).tobytes()


def _corner(cells: Cells, name: bytes, rng: np.random.Generator) -> list[float]:
    """Of a cell's box, with a number from inside where it is open; what is missing stays so."""
    values = struct.unpack("!3d", name)
    return [
        end if box is not None and (end := box[int(rng.integers(2))]) is not None else value
        for value, box in zip(values, cells.box(name), strict=True)
    ]


@pytest.mark.contract
@pytest.mark.parametrize(
    "model",
    [
        RandomForestClassifier(20, random_state=0),
        xgboost.XGBClassifier(n_estimators=20),
        lightgbm.LGBMClassifier(n_estimators=20, verbose=-1),
        catboost.CatBoostClassifier(n_estimators=20, verbose=False, allow_writing_files=False),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_quarter_of_a_million_random_points_of_boxes_are_answered_bit_equal(model: Any) -> None:
    """K4: together a million."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(400, 3))
    model.fit(rows, (rows @ [1.0, 2.0, -3.0] > 0).astype(int))
    cells = find_cells(model)
    assert cells is not None
    inputs = rng.normal(size=(250_000, 3)) * 2
    boxes = [cells.box(cells.representative(row)) for row in inputs.tolist()]
    ends = np.array([[(low, high) for low, high in filter(None, box)] for box in boxes], dtype=float)
    low, high = (
        np.where(np.isnan(ends[..., 0]), -9.0, ends[..., 0]),
        np.where(np.isnan(ends[..., 1]), 9.0, ends[..., 1]),
    )
    points = np.clip(low + (high - low) * rng.random(low.shape), low, high)
    assert model.predict_proba(points).tobytes() == model.predict_proba(inputs).tobytes()
