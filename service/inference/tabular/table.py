"""From the values of rows to payloads, and from payloads to what a model is called with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

import numpy as np
import orjson

from service.inference.manifest import Feature, Manifest

Value = float | int | bool | str | None
"""None: it is missing."""


class Arrays:
    """Payloads are big-endian float64s. A missing value is NaN, always with the same bits."""

    mark = b"x"
    libraries: tuple[str, ...] = ()

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
        self.libraries = ("pandas",) if manifest.rows == "frame" else ()

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
