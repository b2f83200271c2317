"""The draft of a manifest, from an estimator, from data and from flags. All functions raise ConfigurationError."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
from pydantic import ValidationError

from service.errors import ConfigurationError
from service.inference.artifact import library_versions
from service.inference.manifest import Class, Example, Feature, Manifest, Output, Weights, reason
from service.inference.tabular.estimator import class_values
from service.inference.tabular.features import Value
from service.inference.tabular.files import dependencies
from training import columns
from training.columns import Column
from training.flags import parse_example, parse_requirements
from training.proof import ROWS, check_predicts, prove

DTYPES = {"number": "float64", "integer": "int64", "boolean": "bool"}
"""The dtypes of a DataFrame's columns where there are no data. Texts are objects."""


class Source(NamedTuple):
    """A model in memory, and the file of it that will be served."""

    model: Any
    weights: bytes
    extension: str = "joblib"
    written_by: str | None = None
    """The scikit-learn that has written the file, where it is not this one."""


class Details(TypedDict, total=False):
    """What a user may say of the model. It counts more than what data and estimator say.

    ``features``: in the order of the columns. ``labels``: a name per class, in the estimator's order; default its own
    class values. ``outputs``: a name for each of several. ``any_version``: also a pickle of another scikit-learn's.
    ``example``: a row to warm up and measure with, or its line of CSV; default the first whole row of
    the data, or the middle of each feature's bounds. ``requirements``: lines of a requirements.txt. ``trusted_types``:
    what a .skops file may hold, beside what skops knows. ``show``: is told what will be published, before it is.
    """

    features: Sequence[Feature | Column]
    labels: Sequence[str]
    outputs: Sequence[str]
    any_version: bool
    example: Sequence[Any] | str
    enforce_bounds: bool
    accuracy: float | None
    description: str
    ttl_seconds: float | None
    max_batch_size: int | None
    lease: Literal["auto", "always", "never"] | None
    requirements: Sequence[str]
    trusted_types: Sequence[str]
    show: Callable[[str], None]


def _columns(model: Any, X: Any, details: Details) -> tuple[list[Feature], list[list[Value]]]:
    """The features in the model's order, and the data as their values."""
    given = [f if isinstance(f, dict) else f.model_dump(exclude_unset=True) for f in details.get("features", ())]
    absent = columns.dropped(model)
    known = [column for column in columns.columns_of_model(model) if column["name"] not in absent]
    if X is None:
        return _features(model, known, given, False), []
    table = _selected(model, columns.table_of(X, model), [column["name"] for column in known], given)
    data = columns.columns_of_data(table)
    known = [columns.merged(*pair) for pair in zip(data, known or [{}] * len(data), strict=True)]
    return _features(model, known, given, details.get("enforce_bounds", False)), columns.rows_of(table)


def _selected(model: Any, table: Any, known: Sequence[str], given: Sequence[Column]) -> Any:
    """The columns that the model takes, in its order."""
    wanted = [column["name"] for column in given]
    names = known if columns.fitted_names(model) else wanted if wanted and set(wanted) <= set(table.columns) else []
    own, underscored = set(table.columns), {name: name.replace(" ", "_") for name in table.columns}
    if not set(names) <= own and set(names) <= set(underscored.values()):  # as LightGBM calls them
        table = table.rename(columns=underscored)
    if missing := [name for name in names if name not in table]:
        raise ConfigurationError(f"The data have no column {missing[0]}, which the model was fitted on.")
    table = table[list(names)] if names else table
    if len(table.columns) != len(known or table.columns):
        found = ", ".join(table.columns)
        raise ConfigurationError(
            f"The model takes {len(known)} features, and the data have {len(table.columns)} columns ({found}): "
            "say with --target which one it predicts, or name the features with --features."
        )
    return table


def _features(model: Any, known: Sequence[Column], given: Sequence[Column], enforce_bounds: bool) -> list[Feature]:
    """The features that are ``known``, column by column, changed by those that are ``given``."""
    if not known and not given:
        raise ConfigurationError("The model does not say which features it takes: name them with --features.")
    if known and given and len(known) != len(given):
        raise ConfigurationError(f"The model takes {len(known)} features, not {len(given)}.")
    names, wanted = [column["name"] for column in known], [column["name"] for column in given]
    if columns.fitted_names(model) and wanted and wanted != names and set(names) & set(wanted):
        order = ", ".join(names)
        raise ConfigurationError(
            f"The model was fitted on the columns {order}, in this order, not {', '.join(wanted)}."
        )
    pairs = zip(known or [{}] * len(given), given or [{}] * len(known), strict=True)
    return [_feature(column, explicit, enforce_bounds) for column, explicit in pairs]


def _feature(known: Column, explicit: Column, enforce_bounds: bool) -> Feature:
    if explicit.get("type", known.get("type")) != known.get("type"):
        known = {key: value for key, value in known.items() if key not in ("type", "values", "seen")}
    if enforce_bounds and "seen" in known:
        known = known | dict(zip(("minimum", "maximum"), known["seen"], strict=True))
    try:
        return Feature(**known | explicit)
    except ValidationError as error:
        if explicit:
            raise ConfigurationError(f"--features {explicit['name']}: {reason(error)}.") from None
        raise ConfigurationError(
            f"The column {known['name']!r:.80} cannot be a feature ({reason(error)}): rename it, and fit again."
        ) from None


def draft(name: str, source: Source, X: Any, y: Any, details: Details) -> tuple[Manifest, int]:
    """The draft, and the number of rows that its accuracy was measured on."""
    check_predicts(source.model)
    values = [str(value) for value in class_values(source.model)]
    features, rows = _columns(source.model, X, details)
    try:
        made = _manifest(name, source, features, rows, values, details)
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {reason(error)}.") from None
    inputs = [dict(zip((f.name for f in features), row, strict=True)) for row in rows[:ROWS]]
    made = prove(made, source.weights, source.model, inputs)
    if y is not None and rows and len(y) != len(rows):
        raise ConfigurationError(f"X has {len(rows):,} rows, but y has {len(y):,}.")
    if y is None or not rows or not made.classes:
        return made, 0
    accuracy, scored = _accuracy(source.model, made, rows, y)
    return made.model_copy(update={"accuracy": accuracy}), scored


def _manifest(
    name: str,
    source: Source,
    features: list[Feature],
    rows: list[list[Value]],
    values: Sequence[str],
    details: Details,
) -> Manifest:
    labels = details.get("labels") or values
    if len(labels) != len(values):
        raise ConfigurationError(
            f"The model has {len(values)} classes ({', '.join(values)}), but {len(labels)} were named."
        )
    example = _example(features, rows, details.get("example", ()))
    form, features = _called_with(source.model, features, rows[: columns.SAMPLE_ROWS] or [example])
    inputs = dict(zip((f.name for f in features), example, strict=True))
    return Manifest(
        name=name,
        kind="tabular",
        weights=Weights.of(source.weights, source.extension),
        features=tuple(features),
        rows=form,
        output=Output(kind="probabilities" if values else "numbers", names=tuple(details.get("outputs", ()))),
        classes=tuple(Class(value=v, label=label) for v, label in zip(values, labels, strict=True)),
        cost_seconds=1.0,
        example=Example(inputs=inputs, golden=[0.0] * (len(values) or len(details.get("outputs", ())) or 1)),
        versions=_versions(source, form),
        accuracy=details.get("accuracy"),
        description=details.get("description", ""),
        ttl_seconds=details.get("ttl_seconds"),
        max_batch_size=details.get("max_batch_size"),
        lease=details.get("lease"),
        requirements=parse_requirements(details.get("requirements", ())),
    )


def _versions(source: Source, form: columns.Form) -> dict[str, str]:
    """The versions of the model's libraries. scikit-learn's is the one that has written the file."""
    written_by = {"scikit-learn": source.written_by} if source.written_by else {}
    return library_versions("joblib", *["pandas"] * (form == "frame")) | dependencies(source.model) | written_by


def _called_with(model: Any, features: list[Feature], rows: list[list[Value]]) -> tuple[columns.Form, list[Feature]]:
    """An array or a DataFrame, whose columns then have dtypes."""
    framed = [f if f.dtype else f.model_copy(update={"dtype": _dtype(f)}) for f in features]
    form = columns.choose_form(model, framed, rows)
    if form != "frame":
        return form, [f.model_copy(update={"dtype": None}) for f in features]
    fitted = columns.fitted_names(model)
    if fitted and not {f.name for f in features} <= set(fitted):
        raise ConfigurationError(f"The model is given a DataFrame, so its features are called {', '.join(fitted)}.")
    return form, framed


def _dtype(feature: Feature) -> str:
    whole = feature.values and isinstance(feature.values[0], int)
    dtype = "int64" if whole else DTYPES.get(feature.type, "object")
    return columns.WITH_GAPS.get(dtype, dtype) if feature.missing else dtype


def _example(features: Sequence[Feature], rows: Sequence[list[Value]], given: Sequence[Any] | str) -> list[Any]:
    if isinstance(given, str):
        given = parse_example(given, features) if given else []
    if given and len(given) != len(features):
        raise ConfigurationError(f"The example has {len(given)} values for {len(features)} features.")
    whole = (row for row in rows if not any(value in (None, math.inf, -math.inf) for value in row))
    return list(given) or next(whole, []) or [*map(_middle, features)]


def _middle(feature: Feature) -> Value:
    if feature.type in ("category", "text", "boolean"):
        return feature.values[0] if feature.values else feature.type == "boolean" or "text"
    low, high = feature.minimum, feature.maximum
    middle = low / 2 + high / 2 if low is not None and high is not None else low if low is not None else high or 0.0
    return round(middle) if feature.type == "integer" else middle


def _accuracy(model: Any, made: Manifest, rows: list[list[Value]], y: Any) -> tuple[float, int]:
    """The accuracy on all rows that have a target, asked as the service will ask them; and their number."""
    try:
        predicted = np.asarray(model.predict(columns.called(made.rows, made.features, rows)))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"The model fails on the data ({reason:.300}).") from None
    import pandas as pd

    target = np.asarray(y).ravel()
    known = pd.notna(target)
    return float(np.mean(predicted.ravel()[known] == target[known])), int(known.sum())
