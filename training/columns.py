"""What is known of a model's columns: from the estimator, and from a table of data.

A column is a dictionary of manifest.Feature's members; those that it lacks are not known.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from service.errors import ConfigurationError
from service.inference.manifest import MAX_EXACT, Feature
from service.inference.tabular.features import TABLES, Value
from service.inference.tabular.splits import feature_count

Column = dict[str, Any]
Form = Literal["array", "objects", "frame", "texts"]
SAMPLE_ROWS = 100
WITH_GAPS = {f"{sign}int{bits}": "float64" for sign in ("", "u") for bits in (8, 16, 32, 64)} | {"bool": "object"}
"""What pandas makes of a column of these dtypes when a value is missing."""
IMPUTERS = ("sklearn.impute.",)


def takes_texts(model: Any) -> bool:
    """Whether it is fitted on a list of texts and not on a table."""
    first = _steps(model)[0]
    return all(hasattr(part, "build_analyzer") for _, part in getattr(first, "transformer_list", [("", first)]))


def fitted_names(model: Any) -> list[str]:
    """The columns of the DataFrame that the model was fitted on, in their order; none where it was an array."""
    return [str(name) for name in getattr(model, "feature_names_in_", ())]


def columns_of_model(model: Any) -> list[Column]:
    """What the estimator knows of the columns it takes. None where it does not know how many those are."""
    if takes_texts(model):
        return [{"name": "text", "type": "text"}]
    names = fitted_names(model) or [f"x{place}" for place in range(getattr(model, "n_features_in_", 0))]
    facts = _facts(model, len(names))
    return [{"name": name} | facts.get(place, {}) for place, name in enumerate(names)]


def dropped(model: Any) -> set[str]:
    """Columns that a ColumnTransformer by name passes over: no request needs to have them."""
    first, names = _steps(model)[0], fitted_names(model)
    if not hasattr(first, "transformers_") or not all(_is_by_name(spec) for *_, spec in first.transformers):
        return set()
    used = {name for name, what, _ in first.transformers_ if not (isinstance(what, str) and what == "drop")}
    places = {place for name in used for place in first._transformer_to_input_indices.get(name, ())}
    return {name for place, name in enumerate(names) if place not in places}


def _is_by_name(spec: Any) -> bool:
    return isinstance(spec, str) or (isinstance(spec, list) and all(isinstance(name, str) for name in spec))


def _steps(model: Any) -> list[Any]:
    """The steps of a pipeline, also of the best one that a search has found."""
    model = getattr(model, "best_estimator_", model)
    steps = [step for _, step in getattr(model, "steps", ()) if step not in (None, "passthrough")]
    return steps or [model]


def _facts(model: Any, count: int) -> dict[int, Column]:
    """Place of a column -> what the first steps of a pipeline say of it."""
    steps = _steps(model)
    if not hasattr(steps[0], "transformers_"):
        return _facts_of(steps, range(count))
    facts: dict[int, Column] = {}
    for name, transformer, _ in steps[0].transformers_:
        if not isinstance(transformer, str):
            facts |= _facts_of(_steps(transformer), steps[0]._transformer_to_input_indices.get(name, ()))
    return facts


def _facts_of(steps: Sequence[Any], places: Iterable[int]) -> dict[int, Column]:
    missing: Column = {}
    for step in steps:
        if hasattr(step, "build_analyzer"):
            return {place: {"type": "text"} for place in places}
        if hasattr(step, "categories_"):
            is_open = getattr(step, "handle_unknown", "ignore") != "error"
            return {
                place: _category(np.asarray(values, dtype=object).tolist(), is_open) | missing
                for place, values in zip(places, step.categories_, strict=False)
            }
        if not type(step).__module__.startswith(IMPUTERS) or getattr(step, "add_indicator", False):
            break
        missing = {"missing": True}
    return {place: dict(missing) for place in places}


def _category(known: list[Any], is_open: bool) -> Column:
    """``is_open``: the encoder takes other values as well, so no request needs to be refused for one."""
    values = [value for value in known if value is not None and value == value]  # NaN is not itself
    missing: Column = {"missing": True} if len(values) < len(known) else {}
    kinds = set(map(type, values))
    if kinds == {str}:
        return ({"type": "text"} if is_open else {"type": "category", "values": values}) | missing
    if kinds == {int}:
        return ({"type": "integer"} if is_open else {"type": "category", "values": values}) | missing
    return ({"type": "boolean"} if kinds == {bool} else {}) | missing


def columns_of_data(table: Any) -> list[Column]:
    """Of a DataFrame; raises ConfigurationError for a column of which no feature can be made."""
    if not table.columns.is_unique:
        raise ConfigurationError(f"Two columns are called {table.columns[table.columns.duplicated()][0]}: rename one.")
    return [{"name": str(name)} | _described(str(name), table[name]) for name in table.columns]


def _described(name: str, series: Any) -> Column:
    import pandas as pd

    kinds, there = pd.api.types, series.dropna()
    nones = series.dtype == object and any(value is None for value in series)
    column: Column = {"dtype": "None" if nones else str(series.dtype), "missing": len(there) < len(series)}
    if isinstance(series.dtype, pd.CategoricalDtype):
        values = series.cat.categories.tolist()
        if not all(type(value) in (int, str) for value in values):
            raise ConfigurationError(
                f"The categories of {name} must be texts or whole numbers, not {values[:3]}: fit the model on numbers, "
                "booleans or texts in their place (`astype`)."
            )
        return column | {"dtype": "category", "type": "category", "values": values}
    if kinds.is_bool_dtype(series.dtype) or (len(there) and there.map(lambda value: isinstance(value, bool)).all()):
        return column | {"type": "boolean"}
    if kinds.is_integer_dtype(series.dtype):
        return column | {"type": "integer"} | _seen(there)
    if kinds.is_float_dtype(series.dtype):
        return column | {"type": "number"} | _seen(there)
    if len(there) and not there.map(lambda value: isinstance(value, str)).all():
        raise ConfigurationError(
            f"The column {name} is of {series.dtype}, which no request has: fit the model on numbers or texts in its "
            "place, such as the year and the month of a date."
        )
    return column | {"type": "text"}


def _seen(series: Any) -> Column:
    finite = series[np.isfinite(series.astype(float))]
    return {"seen": (float(finite.min()), float(finite.max()))} if len(finite) else {}


def merged(data: Column, model: Column) -> Column:
    """What the data say, and on top of it what the estimator knows about categories, texts and missing values."""
    known = {key: value for key, value in model.items() if key in ("type", "values") and "type" in model}
    if _is_text(known) and not _is_text(data):
        raise ConfigurationError(
            f"The column {data['name']} has no texts, and the model was fitted on texts: use Parquet, which keeps "
            "texts of digits apart from numbers, as CSV does not."
        )
    if known.get("type") == "category" and type(known["values"][0]) is not {"integer": int}.get(data["type"], str):
        known = {}
    column = data | known | {"missing": data["missing"] or model.get("missing", False)}
    if column["missing"]:
        column["dtype"] = WITH_GAPS.get(column["dtype"], column["dtype"])
    return {key: value for key, value in column.items() if key != "seen" or "values" not in known}


def _is_text(column: Column) -> bool:
    return column.get("type") == "text" or isinstance(next(iter(column.get("values", ())), None), str)


def table_of(X: Any, model: Any) -> Any:
    """A DataFrame of what was given to ``fit``: a DataFrame (of polars, too), an array, which may be sparse or of
    objects, or a list of texts."""
    import pandas as pd

    X = X.to_pandas() if hasattr(X, "to_pandas") else X
    if isinstance(X, pd.DataFrame):
        return X.set_axis([str(name) for name in X.columns], axis=1)
    if takes_texts(model) or isinstance(next(iter(X), None), str):  # of a table, that is a row
        return pd.DataFrame({str(getattr(X, "name", None) or "text"): list(X)})
    table = pd.DataFrame(X.toarray() if hasattr(X, "toarray") else X).infer_objects()
    names = fitted_names(model)
    return table.set_axis(names, axis=1) if len(names) == len(table.columns) else table.add_prefix("x")


def rows_of(table: Any) -> list[list[Value]]:
    """The rows of a DataFrame as values of features."""
    import pandas as pd

    whole = table.astype(object)
    return whole.where(pd.notna(whole), None).to_numpy().tolist()  # type: ignore[no-any-return]


def choose_form(model: Any, features: Sequence[Feature], rows: list[list[Value]]) -> Form:
    """What to call the model with: an array of numbers or of objects, if the model answers these rows as it answers
    them in a DataFrame; else a DataFrame."""
    names, are_texts = fitted_names(model), any(f.type in ("category", "text") for f in features)
    one_text = [f.type for f in features] == ["text"] and not names and not feature_count(model)
    if takes_texts(model) or (one_text and not isinstance(_answers(model, "texts", features, rows), Exception)):
        return "texts"
    inexact = any(f.type == "integer" and max(map(abs, f.seen or (0,))) > MAX_EXACT for f in features)
    if dropped(model) or (names and (are_texts or inexact)):  # an array is of float64
        return "frame"
    simple: Form = "objects" if are_texts else "array"
    if not names and not any(f.dtype for f in features):
        return simple
    array, frame = _answers(model, simple, features, rows), _answers(model, "frame", features, rows)
    if isinstance(array, Exception):
        return "frame" if names or not isinstance(frame, Exception) else simple
    return simple if not names or isinstance(frame, Exception) or _is_close(array, frame) else "frame"


def called(form: str, features: Sequence[Feature], rows: list[list[Value]]) -> Any:
    """The rows as the model is called with them."""
    return np.array(rows, dtype=float) if form == "array" else TABLES[form](features)(rows)


def _answers(model: Any, form: str, features: Sequence[Feature], rows: list[list[Value]]) -> Any:
    """The model's answers to the rows, or the exception that it raises."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X (has|does not have valid) feature names")
        try:
            ask = model.predict_proba if hasattr(model, "predict_proba") else model.predict
            said = np.asarray(ask(called(form, features, rows)))
        except Exception as error:
            return error
    # A vectorizer that is given a DataFrame takes the names of its columns for the texts.
    count = len(said) if said.ndim else 1
    return said if count == len(rows) else ValueError(f"{count} answers for {len(rows)} rows")


def _is_close(one: Any, other: Any) -> bool:
    """Matrix products of an array and of a DataFrame may differ in their last bits."""
    if one.dtype.kind == "f" and other.dtype.kind == "f":
        return bool(np.allclose(one, other, rtol=1e-9, atol=1e-9, equal_nan=True))
    return bool(np.array_equal(one, other))


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines, without the columns that say nothing."""
    used = [column for column in zip(*table, strict=True) if any(column[1:])]
    padded = [[f"{cell:{max(map(len, column))}}" for cell in column] for column in used]
    return ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]


def printed(features: Sequence[Feature], example: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table that is shown before a model is published."""
    return [("feature", "type", "missing", "bounds", "seen", "example"), *(_printed(f, example) for f in features)]


def _printed(feature: Feature, example: Mapping[str, Any]) -> tuple[str, ...]:
    values = ", ".join(map(str, feature.values))
    kind = f"{feature.type}: {values:.60}{'…' * (len(values) > 60)}" if values else feature.type
    bounds = (feature.minimum, feature.maximum)
    value = example.get(feature.name)
    return (
        feature.name,
        kind,
        "yes" if feature.missing else "",
        "" if bounds == (None, None) else " … ".join("" if x is None else f"{x:g}" for x in bounds),
        " … ".join(f"{x:g}" for x in feature.seen or ()),
        "" if value is None else f"{value!s:.30}",
    )
