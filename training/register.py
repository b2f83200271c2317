"""Serve your own model: ``python -m training.register FILE --data train.csv --target COLUMN``.

From Python: ``from training import register``, then ``register(model, X, y, name="churn")``.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import joblib
import numpy as np
from pydantic import ValidationError

from service.errors import ConfigurationError, ServiceError
from service.inference.artifact import library_versions
from service.inference.manifest import Class, Example, Feature, Manifest, Weights, reason
from service.inference.tabular.estimator import class_values, unpickle
from service.inference.tabular.table import Value
from training import MODELS_DIR, check_name, columns, publish
from training.columns import Column
from training.flags import parse_example, parse_features, read_bytes, read_data

DTYPES = {"number": "float64", "integer": "int64", "boolean": "bool"}
"""Of a DataFrame's columns, where no data say more; texts are objects."""


class Source(NamedTuple):
    """A model in memory, and the file of it that will be served."""

    model: Any
    weights: bytes
    extension: str = "joblib"


class Details(TypedDict, total=False):
    """What may be said, and comes before what data and estimator say.

    ``features``: in the order of the columns. ``labels``: a name per class, in the estimator's order; default its own
    class values. ``example``: a row to warm up and measure with, or its line of CSV; default the first whole row of
    the data, or the middle of each feature's bounds. ``show``: is told what will be published, before it is.
    """

    features: Sequence[Feature | Column]
    labels: Sequence[str]
    example: Sequence[Any] | str
    enforce_bounds: bool
    accuracy: float | None
    description: str
    ttl_seconds: float | None
    max_batch_size: int | None
    lease: Literal["auto", "always", "never"] | None
    show: Callable[[str], None]


def register(
    model: Any,
    X: Any = None,
    y: Any = None,
    *,
    name: str,
    models_dir: Path | str = MODELS_DIR,
    **details: Unpack[Details],
) -> Manifest:
    """Publish a fitted estimator as ``models_dir/name``; raises ConfigurationError.

    ``X``, ``y``: data like those it was fitted on, which say types, values and ranges of the features, and an example.
    """
    check_name(name)
    if not isinstance(model, Source):
        file = io.BytesIO()
        joblib.dump(model, file)
        model = Source(model, file.getvalue())
    values = class_values(model.model)
    features, rows = _columns(model.model, X, details)
    try:
        draft = _draft(name, model, features, rows, values, details)
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {reason(error)}.") from None
    if y is not None and rows:
        draft = draft.model_copy(update={"accuracy": _accuracy(model.model, draft, rows, y)})
    details.get("show", print)(_shown(draft, len(rows) if y is not None else 0))
    try:
        return publish(Path(models_dir), draft, model.weights)
    except ServiceError as error:
        raise ConfigurationError(f"The example is refused: {error}") from None


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
    """``given`` over ``known``, place by place."""
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
        raise ConfigurationError(f"--features {(known | explicit)['name']}: {reason(error)}.") from None


def _draft(
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
    return Manifest(
        name=name,
        kind="tabular",
        weights=Weights.of(source.weights, source.extension),
        features=tuple(features),
        rows=form,
        classes=tuple(Class(value=v, label=label) for v, label in zip(values, labels, strict=True)),
        cost_seconds=1.0,
        example=Example(inputs=dict(zip((f.name for f in features), example, strict=True)), golden=[0.0] * len(values)),
        versions=library_versions("numpy", "scikit-learn", "joblib", *["pandas"] * (form == "frame")),
        accuracy=details.get("accuracy"),
        description=details.get("description", ""),
        ttl_seconds=details.get("ttl_seconds"),
        max_batch_size=details.get("max_batch_size"),
        lease=details.get("lease"),
    )


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
    whole = (row for row in rows if None not in row)
    return list(given) or next(whole, []) or [*map(_middle, features)]


def _middle(feature: Feature) -> Value:
    if feature.type in ("category", "text", "boolean"):
        return feature.values[0] if feature.values else feature.type == "boolean" or "text"
    low, high = feature.minimum, feature.maximum
    middle = low / 2 + high / 2 if low is not None and high is not None else low if low is not None else high or 0.0
    return round(middle) if feature.type == "integer" else middle


def _accuracy(model: Any, draft: Manifest, rows: list[list[Value]], y: Any) -> float:
    """Of the answers to all rows, as the service will ask."""
    predicted = np.asarray(model.predict(columns.called(draft.rows, draft.features, rows)))
    return float(np.mean(predicted.ravel() == np.asarray(y).ravel()))


def _shown(draft: Manifest, rows: int) -> str:
    lines = columns.aligned(columns.printed(draft.features, draft.example.inputs))
    named = (c.value if c.value == c.label else f"{c.value} = {c.label}" for c in draft.classes)
    lines.append(f"classes: {', '.join(named)}")
    if rows:
        held_out = "held-out, if the model was not fitted on them"
        lines.append(f"accuracy: {draft.accuracy:.3f} on this data ({rows:,} rows; {held_out})")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    try:
        manifest = _run(options)
    except ConfigurationError as error:
        sys.exit(str(error))
    cost = f"{manifest.cost_seconds * 1e6:,.0f} µs a prediction"
    print(f"{options.out / manifest.name}: {len(manifest.classes)} classes, {cost}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.register", description="Serve your own model.")
    add = parser.add_argument
    add("file", type=Path, help="a fitted classifier, written with joblib.dump or pickle")
    add("--name", help="what it is called in URLs; default: the file's name")
    add("--data", type=Path, help="CSV or Parquet like that it was fitted on: types, values, ranges and an example")
    add("--target", help="the column of --data that the model predicts")
    add("--features", default="", help="in the order of the columns: a:0:10,b:integer,c:category:x|y,d:text?,e:?")
    add("--classes", default="", help="x,y: a label per class, in the order of the estimator's classes_")
    add("--example", default="", help="5.1,3.5: a row to warm up and measure with")
    add("--enforce-bounds", action="store_true", help="refuse numbers beyond those that --data has")
    add("--ttl-seconds", type=float, help="lifetime of its answers, where it is not that of the setting")
    add("--max-batch-size", type=int, help="most inputs in one call of it, where that is not the setting")
    add(
        "--lease",
        choices=("auto", "always", "never"),
        help="compute once in the cluster, where that is not the setting",
    )
    add("--out", type=Path, default=MODELS_DIR, help="where model directories live; default: PREDICT_MODELS_DIR")
    return parser


def _run(options: argparse.Namespace) -> Manifest:
    """The name is checked before the file is executed."""
    name = options.name or options.file.stem
    check_name(name)
    given = parse_features(options.features)
    X = None if options.data is None else read_data(options.data)
    y = None
    if options.target is not None:
        if X is None or options.target not in X:
            raise ConfigurationError(f"--target {options.target}: --data has no such column.")
        y = X.pop(options.target)
    return register(
        _source(options.file, name),
        X,
        y,
        name=name,
        models_dir=options.out,
        features=given,
        labels=[label.strip() for label in options.classes.split(",") if label.strip()],
        example=options.example,
        enforce_bounds=options.enforce_bounds,
        ttl_seconds=options.ttl_seconds,
        max_batch_size=options.max_batch_size,
        lease=options.lease,
    )


def _source(file: Path, name: str) -> Source:
    weights = read_bytes(file)
    return Source(unpickle(weights, f"The model {name}"), weights)


class _Callable(ModuleType):
    """So that ``from training import register`` gives what can be called, though it is this module."""

    def __call__(self, *arguments: Any, **details: Any) -> Manifest:
        return register(*arguments, **details)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
