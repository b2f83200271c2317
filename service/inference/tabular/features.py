"""The rows of a table model: from texts (a query string) or JSON to values, each of its type, from these to a payload,
and from payloads to what the model is called with."""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from struct import Struct
from typing import Any, NoReturn

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import InvalidInput, UnsupportedContent
from service.inference.manifest import DECIMAL, MAX_DIGITS, MAX_EXACT, Feature, Manifest
from service.inference.tabular.cells import Cells
from service.large_json import LargeArray, LargeString

MAX_CHARACTERS = 100_000
"""The longest text."""
MAX_VALUES_NAMED = 10
"""How many of a category's values an error names."""

BOOLEANS = {"true": True, "True": True, "1": True, "false": False, "False": False, "0": False}
"""The capital ones are in the CSV that pandas writes."""
JSON_TYPES = {"number": "number", "integer": "integer", "boolean": "boolean", "text": "string"}


Value = float | int | bool | str | None
"""None: it is missing."""


class RowReader:
    """From the parameters of a request to one row: values in the order of the manifest's features."""

    def __init__(self, manifest: Manifest, cells: Cells | None = None) -> None:
        self.features = manifest.features
        self.rows = table_of(manifest)
        """How rows are packed, and made a table."""
        holds = zip(cells.lowest, cells.highest, strict=True) if cells else map(_range, self.features)
        bounds = [_within(f, *pair) for f, pair in zip(self.features, holds, strict=True)]
        self._lowest, self._highest = np.array(bounds, np.float64).T
        self._columns = [
            (f.name, _decoder(f), _reader(f, low, high)) for f, (low, high) in zip(self.features, bounds, strict=True)
        ]
        self._names = frozenset(f.name for f in manifest.features)
        self._is_array = manifest.rows == "array"
        self._is_plain = self._is_array and all(f.type == "number" and not f.missing for f in manifest.features)
        self._example = manifest.example.inputs

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> JSON schema."""
        row = self._example.get("input") or [self._example.get(feature.name) for feature in self.features]
        return {f.name: _schema(f) | {"example": value} for f, value in zip(self.features, row, strict=True)}

    def accepts(self, table: NDArray[np.float64]) -> bool:
        """Whether all rows of numbers are valid. If not, ``read`` says of each what is wrong."""
        return self._is_plain and bool(((table >= self._lowest) & (table <= self._highest)).all())

    def read(self, params: Mapping[str, Any], content_type: str | None) -> Sequence[Any]:
        """One row; raises InvalidInput."""
        if content_type not in (None, "application/json"):
            raise UnsupportedContent(f"This model reads JSON, not {content_type}.")
        if content_type is not None and "input" in params and len(params) == 1:
            params = self._named(params["input"])
        if params.keys() != self._names:
            self._check_names(params)
        values: list[Any]
        if content_type is None:
            values = [read(decode(params[name]) if name in params else None) for name, decode, read in self._columns]
        else:
            values = [read(params.get(name)) for name, _, read in self._columns]
        if self._is_plain or not self._is_array:
            return values
        return [math.nan if value is None else float(value) for value in values]

    def _named(self, row: object) -> dict[str, Any]:
        if not isinstance(row, list | LargeArray) or len(row) != len(self.features):
            _refuse("input", f"must be a list of {len(self.features)} values")
        return dict(zip((f.name for f in self.features), row, strict=True))

    def _check_names(self, params: Mapping[str, Any]) -> None:
        for name in (name for name in params if name not in self._names):
            shown = repr(name[:MAX_DIGITS])
            near = difflib.get_close_matches(name[:MAX_DIGITS], self._names, n=1)
            known = ", ".join(f.name for f in self.features)
            hint = f"did you mean {near[0]}?" if near else f"this model takes {known}"
            raise InvalidInput(f"Unknown parameter {shown}: {hint}.", parameter=name)
        missing = [f.name for f in self.features if f.name not in params and not f.missing]
        if missing:
            raise InvalidInput(
                f"Missing parameter{'s' * (len(missing) > 1)} {', '.join(missing)}.", parameter=missing[0]
            )


def _decoder(feature: Feature) -> Callable[[str], Any]:
    """From a value's text to the value as JSON has it. In a category or a text, "null" is an ordinary value."""
    if feature.type == "text":
        return str
    if feature.type == "category":
        named = {str(value): value for value in feature.values}
        return lambda text: named.get(text, text)
    decode = partial({"number": _decimal, "integer": _whole, "boolean": _boolean}[feature.type], feature.name)
    return (lambda text: None if text in ("", "null") else decode(text)) if feature.missing else decode


def _decimal(name: str, text: str) -> float:
    if len(text) > MAX_DIGITS or text.strip(DECIMAL):
        _refuse(name, "must be a decimal number")
    try:
        return float(text)
    except ValueError:
        _refuse(name, "must be a decimal number" if text else "is empty")


def _whole(name: str, text: str) -> float | int:
    value = _decimal(name, text)
    return int(text) if text.strip("+-").isdigit() else value


def _boolean(name: str, text: str) -> bool:
    return BOOLEANS[text] if text in BOOLEANS else _refuse(name, "must be true or false" if text else "is empty")


def _reader(feature: Feature, low: float, high: float) -> Callable[[Any], Value]:
    """From a value as JSON has it, None where it is absent, to the checked one; raises InvalidInput."""
    readers: dict[str, Callable[[Any], Value]] = {
        "number": partial(_number, feature.name, low, high, False),
        "integer": partial(_number, feature.name, low, high, True),
        "boolean": partial(_true_or_false, feature.name),
        "category": _category(feature),
        "text": partial(_text, feature.name),
    }
    read = readers[feature.type]
    if not feature.missing:
        return read
    # NaN is not equal to itself; no JSON has it, but a tensor may.
    return lambda value: None if value is None or value != value or value == "" else read(value)


def _number(name: str, low: float, high: float, whole: bool, value: Any) -> float | int:
    """A bool is an int, but no number. JSON has no integers: 3.0 is a whole number, too."""
    kind = type(value)
    if kind is not int and (kind is not float or (whole and not value.is_integer())):
        _refuse(name, "must be a whole number" if whole else "must be a number")
    if not low <= value <= high:
        _refuse(name, f"must be between {_exact(low)} and {_exact(high)}")
    return int(value) if whole else float(value) + 0.0  # -0.0 is 0.0


def _exact(bound: float) -> str:
    return f"{bound:g}" if float(f"{bound:g}") == bound else str(bound)


def _true_or_false(name: str, value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse(name, "must be true or false")


def _category(feature: Feature) -> Callable[[Any], Value]:
    """Refuse unknown values here and name the known ones: the model itself would fail, which is a 500."""
    known = {(type(value), value): value for value in feature.values}
    names = [str(value) for value in feature.values]

    def read(value: Any) -> Value:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str | int) and (type(value), value) in known:
            return known[type(value), value]
        near = difflib.get_close_matches(value[:MAX_DIGITS], names, n=1) if isinstance(value, str) else []
        more = ", …" * (len(names) > MAX_VALUES_NAMED)
        hint = f"; did you mean {near[0]}?" if near else ""
        _refuse(feature.name, f"must be one of {', '.join(names[:MAX_VALUES_NAMED])}{more}{hint}")

    return read


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str | LargeString):
        _refuse(name, "must be a text")
    text = value if isinstance(value, str) else value.text(MAX_CHARACTERS)
    if text is None or len(text) > MAX_CHARACTERS:
        _refuse(name, f"must have at most {MAX_CHARACTERS:,} characters")
    return text


def _schema(feature: Feature) -> dict[str, Any]:
    kind = JSON_TYPES.get(feature.type) or ("integer" if isinstance(feature.values[0], int) else "string")
    schema: dict[str, Any] = {"type": [kind, "null"] if feature.missing else kind}
    if feature.values:
        schema["enum"] = [*feature.values, *([None] if feature.missing else [])]
    if feature.type == "text":
        schema["maxLength"] = MAX_CHARACTERS
    if feature.minimum is not None:
        schema["minimum"] = feature.minimum
    if feature.maximum is not None:
        schema["maximum"] = feature.maximum
    return schema | ({"x-seen": feature.seen} if feature.seen else {})


def _refuse(name: str, what: str) -> NoReturn:
    raise InvalidInput(f"Parameter {name} {what}.", parameter=name)


def _within(feature: Feature, low: float, high: float) -> tuple[float, float]:
    """The manifest's bounds, inside those of what the model or the column can hold."""
    least, most = feature.minimum, feature.maximum
    return low if least is None else max(low, least), high if most is None else min(high, most)


def _range(feature: Feature) -> tuple[float, float]:
    if feature.type == "integer":
        dtype = (feature.dtype or "int64").lower()
        if dtype in ("float64", "object"):  # since some values are missing
            return -MAX_EXACT, MAX_EXACT
        bounds = np.iinfo(dtype.removesuffix("[pyarrow]"))
        return int(bounds.min), int(bounds.max)
    largest = float(np.finfo(np.float32).max) if feature.dtype in ("float32", "Float32") else sys.float_info.max
    return -largest, largest


class Arrays:
    """Payloads are big-endian float64s. A missing value is NaN, always with the same bits."""

    mark = b"x"

    def __init__(self, manifest: Manifest) -> None:
        self._pack = Struct(f"!{len(manifest.features)}d").pack

    def pack(self, values: Sequence[Any]) -> bytes:
        return self._pack(*values)

    def table(self, batch: Sequence[bytes]) -> Any:
        return np.frombuffer(b"".join(batch), ">f8").reshape(len(batch), -1).astype(np.float64)


class Typed:
    """Payloads are rows in JSON, which tells 1 from 1.0, "1" and true: only equal rows have equal payloads."""

    mark = b"t"

    def __init__(self, manifest: Manifest) -> None:
        self._make = TABLES[manifest.rows](manifest.features)

    def pack(self, values: Sequence[Value]) -> bytes:
        return orjson.dumps(values)

    def table(self, batch: Sequence[bytes]) -> Any:
        return self._make([orjson.loads(payload) for payload in batch])


def table_of(manifest: Manifest) -> Arrays | Typed:
    return Arrays(manifest) if manifest.rows == "array" else Typed(manifest)


def _frames(features: Sequence[Feature]) -> Callable[[list[list[Value]]], Any]:
    import pandas as pd  # only a model that was fitted on a DataFrame needs it

    dtypes = [_dtype(pd, f) for f in features]
    names = [f.name for f in features]
    gaps = [math.nan if f.dtype == "object" else None for f in features]

    def table(rows: list[list[Value]]) -> Any:
        columns = [
            pd.Series([gap if value is None else value for value in column], dtype=dtype)
            for column, gap, dtype in zip(zip(*rows, strict=True), gaps, dtypes, strict=True)
        ]
        return pd.DataFrame(dict(zip(names, columns, strict=True)))

    return table


def _dtype(pd: Any, feature: Feature) -> Any:
    if feature.dtype == "category":
        return pd.CategoricalDtype(feature.values)
    return "object" if feature.dtype == "None" else feature.dtype


def _objects(features: Sequence[Feature]) -> Callable[[list[list[Value]]], Any]:
    return lambda rows: np.array([[math.nan if v is None else v for v in row] for row in rows], dtype=object)


def _texts(features: Sequence[Feature]) -> Callable[[list[list[Value]]], Any]:
    return lambda rows: np.array([text for (text,) in rows], dtype=object)


TABLES = {"frame": _frames, "objects": _objects, "texts": _texts}
