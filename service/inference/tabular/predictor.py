"""A classifier of rows of numbers, scikit-learn's or one that behaves so. Payloads are big-endian float64s."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Any, Literal, NoReturn

import numpy as np

from service.errors import InvalidInput, PredictionFailed, UnsupportedContent
from service.inference.artifact import Artifact, fingerprint, library_versions
from service.inference.manifest import Feature
from service.inference.predictor import Options, Prediction, Question, pack
from service.inference.tabular.cells import Cells, find_cells
from service.inference.tabular.estimator import Proba, check_model, own_proba, run_single_threaded, unpickle
from service.inference.tabular.forest import LeafTable, fast_forest
from service.large_json import LargeArray

VERSION = "1"
"""Part of the fingerprint: raise it when a change here, in estimator, forest or cells moves answers or identities."""

MAX_DIGITS = 64

MAX_BYTES_ON_LOOP = 2 * 2**20
"""A leaf table that reads no more than this for a full batch is done in well under a millisecond. Threads would take
longer to hand the batch to each other, and fight for the interpreter while they do."""


def load(artifact: Artifact, options: Options) -> TabularPredictor:
    """Unpickle the weights, whose digest is already checked; raises ConfigurationError."""
    manifest = artifact.manifest
    where = f"The model {manifest.name} ({manifest.weights.file})"
    model = unpickle(artifact.weights, where)
    check_model(model, len(manifest.features), [c.value for c in manifest.classes], where)
    return TabularPredictor(model, artifact, options.max_batch_size)


class TabularPredictor:
    """Rows of finite float64s in, float64 probability vectors out.

    ``cells``: how many different questions there are (cells.py), or None for a model whose inputs are matched exactly.
    ``runs_on_loop``: whether the event loop may call ``predict``.
    """

    def __init__(self, model: Any, artifact: Artifact, max_batch_size: int = 64) -> None:
        manifest = artifact.manifest
        run_single_threaded(model)
        # Raised for models fitted on data frames; the order of the features is the manifest's.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        self._features = manifest.features
        self._classes = len(manifest.classes)
        self._own_proba = own_proba(model)
        self._proba = fast_forest(model) or self._own_proba
        self.runs_on_loop = _is_quick(self._proba, max_batch_size)
        self._cells = find_cells(model)
        self._columns = _columns(manifest.features, self._cells)
        self._names = frozenset(f.name for f in manifest.features)
        self._pack_row = Struct(f"!{len(manifest.features)}d").pack
        self._head = pack(np.zeros(self._classes))[: -8 * self._classes]
        self._example = manifest.example.inputs
        self.cells = self._cells.count if self._cells else None
        self.key_kind: Literal["exact", "cells", "digest"] = "cells" if self._cells else "exact"
        libraries = library_versions("numpy", "scikit-learn")
        self.fingerprint = fingerprint(
            artifact, preprocessing=f"tabular-{VERSION}-{self.key_kind}", libraries=libraries
        )

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        return {feature.name: self._schema(feature, index) for index, feature in enumerate(self._features)}

    def parse(self, params: Mapping[str, Any], body: bytes, content_type: str | None) -> Question:
        """One row, from decimals (a query string) or numbers (JSON; also ``{"input": [...]}`` in feature order)."""
        if content_type is None:
            values = self._from_strings(params)
        elif content_type == "application/json":
            values = self._from_numbers(params)
        else:
            raise UnsupportedContent(f"This model reads JSON, not {content_type}.")
        payload = self._pack_row(*values)
        if self._cells is None:
            return Question(b"x" + payload, payload)
        return Question(b"c" + self._cells.representative(values), payload)

    def predict(self, batch: Sequence[bytes]) -> Sequence[Prediction | Exception]:
        """Bit-equal to ``predict_proba``; an answer that is none is that row's PredictionFailed."""
        return self._answers(self._proba, batch)

    def audit(self, payload: bytes) -> Prediction | Exception:
        """As ``predict``, by the estimator's own ``predict_proba`` and none of this module's short cuts.

        May be called while ``predict`` runs.
        """
        return self._answers(self._own_proba, [payload])[0]

    def _answers(self, proba: Proba, batch: Sequence[bytes]) -> list[Prediction | Exception]:
        rows = np.frombuffer(b"".join(batch), ">f8").reshape(len(batch), -1).astype(np.float64)
        answers = np.ascontiguousarray(proba(rows), dtype="<f8")
        if answers.shape != (len(batch), self._classes):
            return [PredictionFailed(f"the model's answer has the shape {answers.shape}") for _ in batch]
        raw, size = answers.tobytes(), 8 * self._classes
        packed: list[Prediction | Exception] = [
            Prediction(self._head + raw[start : start + size]) for start in range(0, len(raw), size)
        ]
        if not np.isfinite(answers).all():
            for index in np.flatnonzero(~np.isfinite(answers).all(axis=1)):
                packed[index] = PredictionFailed("the model's answer is not finite")
        return packed

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


def _is_quick(proba: Proba, max_batch_size: int) -> bool:
    return isinstance(proba, LeafTable) and max_batch_size * proba.row_bytes <= MAX_BYTES_ON_LOOP


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
