"""A classifier of rows of numbers, scikit-learn's or one that behaves so. Payloads are big-endian float64s."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from service.errors import PredictionFailed
from service.inference.artifact import Artifact, fingerprint, library_versions
from service.inference.predictor import Options, Prediction, Question, pack
from service.inference.tabular.cells import find_cells
from service.inference.tabular.estimator import Proba, check_model, own_proba, run_single_threaded
from service.inference.tabular.features import row_reader
from service.inference.tabular.files import load_estimator
from service.inference.tabular.forest import LeafTable, fast_forest

VERSION = "1"
"""Part of the fingerprint: raise it when a change here, in estimator, forest or cells moves answers or identities."""

MAX_BYTES_ON_LOOP = 2 * 2**20
"""A leaf table that reads no more than this for a full batch is done in well under a millisecond. Threads would take
longer to hand the batch to each other, and fight for the interpreter while they do."""


def load(artifact: Artifact, options: Options) -> TabularPredictor:
    """Of weights whose digest is already checked; raises ConfigurationError."""
    manifest = artifact.manifest
    where = f"The model {manifest.name} ({manifest.weights.file})"
    extension = manifest.weights.file.rpartition(".")[2]
    model = load_estimator(artifact.weights, extension, options.trusted_types, where)
    # Of a DataFrame a model may pass some columns over: the example shows whether it has what it needs.
    count = getattr(model, "n_features_in_", 0) if manifest.rows == "frame" else len(manifest.features)
    check_model(model, count, [c.value for c in manifest.classes], where)
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
        self._classes = len(manifest.classes)
        self._own_proba = own_proba(model)
        are_finite = manifest.rows == "array" and not any(f.missing for f in manifest.features)
        self._proba = (fast_forest(model) if are_finite else None) or self._own_proba
        self.runs_on_loop = _is_quick(self._proba, max_batch_size)
        self._cells = find_cells(model) if are_finite else None
        self._reader = row_reader(manifest, self._cells)
        self._rows = self._reader.rows
        self._head = pack(np.zeros(self._classes))[: -8 * self._classes]
        self.cells = self._cells.count if self._cells else None
        self.key_kind: Literal["exact", "cells", "digest"] = "cells" if self._cells else "exact"
        libraries = library_versions("numpy", "scikit-learn", *self._rows.libraries)
        self.fingerprint = fingerprint(
            artifact, preprocessing=f"tabular-{VERSION}-{self.key_kind}", libraries=libraries
        )

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        return self._reader.parameters

    def parse(self, params: Mapping[str, Any], body: bytes, content_type: str | None) -> Question:
        """One row, from texts (a query string) or values (JSON; also ``{"input": [...]}`` in feature order)."""
        values = self._reader.read(params, content_type)
        payload = self._rows.pack(values)
        if self._cells is None:
            return Question(self._rows.mark + payload, payload)
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
        answers = np.ascontiguousarray(proba(self._rows.table(batch)), dtype="<f8")
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


def _is_quick(proba: Proba, max_batch_size: int) -> bool:
    return isinstance(proba, LeafTable) and max_batch_size * proba.row_bytes <= MAX_BYTES_ON_LOOP
