"""The rows of a table model: read from a request, packed as big-endian float64s, unpacked as the array it is given."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, UnsupportedContent
from service.inference.manifest import Feature, Manifest
from service.inference.tabular.cells import Cells
from service.large_json import LargeArray

MAX_DIGITS = 64


class RowReader:
    """Rows of finite float64s, in the order of the manifest's features."""

    def __init__(self, manifest: Manifest, cells: Cells | None) -> None:
        self._features = manifest.features
        self._columns = _columns(manifest.features, cells)
        self._names = frozenset(f.name for f in manifest.features)
        self._example = manifest.example.inputs
        self._pack = Struct(f"!{len(manifest.features)}d").pack

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        return {feature.name: self._schema(feature, index) for index, feature in enumerate(self._features)}

    def read(self, params: Mapping[str, Any], content_type: str | None) -> list[float]:
        """One row; raises InvalidInput."""
        if content_type is None:
            return self._from_strings(params)
        if content_type == "application/json":
            return self._from_numbers(params)
        raise UnsupportedContent(f"This model reads JSON, not {content_type}.")

    def pack(self, values: Sequence[float]) -> bytes:
        """The payload of a row."""
        return self._pack(*values)

    def table(self, batch: Sequence[bytes]) -> NDArray[np.float64]:
        """What the model is called with."""
        return np.frombuffer(b"".join(batch), ">f8").reshape(len(batch), -1).astype(np.float64)

    def _from_strings(self, params: Mapping[str, Any]) -> list[float]:
        if params.keys() != self._names:
            self._refuse_names(params)
        values = []
        for name, low, high in self._columns:
            text = params[name]
            # Of what float() takes, this leaves decimals: no spaces, underscores, "nan" or other alphabets' digits.
            if len(text) > MAX_DIGITS or text.strip("0123456789.+-eE"):
                _refuse(name, "must be a decimal number")
            try:
                value = float(text)
            except ValueError:
                _refuse(name, "must be a decimal number" if text else "is empty")
            if not low <= value <= high:
                _refuse(name, f"must be between {low:g} and {high:g}")
            values.append(value + 0.0)  # -0.0 is 0.0
        return values

    def _from_numbers(self, params: Mapping[str, Any]) -> list[float]:
        if params.keys() == {"input"}:
            row = params["input"]
            if not isinstance(row, list | LargeArray) or len(row) != len(self._columns):
                _refuse("input", f"must be a list of {len(self._columns)} numbers")
            params = dict(zip((name for name, _, _ in self._columns), row, strict=True))
        elif params.keys() != self._names:
            self._refuse_names(params)
        values = []
        for name, low, high in self._columns:
            value = params[name]
            if type(value) is not float and type(value) is not int:  # a bool is an int, but no number
                _refuse(name, "must be a number")
            if not low <= value <= high:
                _refuse(name, f"must be between {low:g} and {high:g}")
            values.append(float(value) + 0.0)
        return values

    def _refuse_names(self, params: Mapping[str, Any]) -> NoReturn:
        for name in (name for name in params if name not in self._names):
            shown = repr(name[:MAX_DIGITS])
            near = difflib.get_close_matches(name[:MAX_DIGITS], self._names, n=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"this model takes {', '.join(f.name for f in self._features)}"
            )
            raise InvalidInput(f"Unknown parameter {shown}: {hint}.", parameter=name)
        missing = [f.name for f in self._features if f.name not in params]
        raise InvalidInput(f"Missing parameter{'s' * (len(missing) > 1)} {', '.join(missing)}.", parameter=missing[0])

    def _schema(self, feature: Feature, index: int) -> Mapping[str, Any]:
        schema: dict[str, Any] = {"type": "number"}
        if feature.minimum is not None:
            schema["minimum"] = feature.minimum
        if feature.maximum is not None:
            schema["maximum"] = feature.maximum
        row = self._example.get("input")
        return schema | {"example": row[index] if row else self._example[feature.name]}


def _refuse(name: str, what: str) -> NoReturn:
    raise InvalidInput(f"Parameter {name} {what}.", parameter=name)


def _columns(features: Sequence[Feature], cells: Cells | None) -> list[tuple[str, float, float]]:
    """Name, lowest and highest value of each feature: the manifest's bounds, and what the model can compute with."""
    largest = sys.float_info.max
    lowest, highest = (
        (cells.lowest, cells.highest) if cells else ([-largest] * len(features), [largest] * len(features))
    )
    return [
        (f.name, max(low, low if f.minimum is None else f.minimum), min(high, high if f.maximum is None else f.maximum))
        for f, low, high in zip(features, lowest, highest, strict=True)
    ]
