"""An estimator of rows, scikit-learn's or one that behaves so. Payloads are big-endian float64s."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import MAX_SENTENCE, InvalidInput, PredictionFailed
from service.inference.artifact import Artifact, fingerprint, library_versions
from service.inference.manifest import Manifest
from service.inference.predictor import Options, Outcome, Question, Questions, pack
from service.inference.tabular.cells import Interval, find_cells
from service.inference.tabular.estimator import (
    Compute,
    check_model,
    is_of_libraries,
    own_answers,
    rows_per_call,
    run_single_threaded,
)
from service.inference.tabular.features import RowReader
from service.inference.tabular.files import dependencies, load_estimator
from service.inference.tabular.forest import LeafTable, fast_forest

logger = logging.getLogger(__name__)

VERSION = "1"
"""Part of the fingerprint: raise it when a change here, in estimator, forest or cells moves answers or identities."""

NOT_FINITE = "The model has no finite answer to these values: they are too large, or too far from its training data."

MAX_BYTES_ON_LOOP = 2 * 2**20
"""A call that reads no more than this of a leaf table is done in well under a millisecond. Threads would take longer to
hand a full batch to each other, and fight for the interpreter while they do."""


def load(artifact: Artifact, options: Options) -> TabularPredictor:
    """The predictor of weights whose digest has been checked; raises ConfigurationError."""
    manifest = artifact.manifest
    where = f"The model {manifest.name} ({manifest.weights.file})"
    extension = manifest.weights.file.rpartition(".")[2]
    model = load_estimator(artifact.weights, extension, options.trusted_types, where)
    check_model(model, manifest, where)
    return TabularPredictor(model, artifact, options.max_batch_size)


class TabularPredictor:
    """Rows in, one float64 vector per row out.

    ``cells``: how many different questions there are (cells.py), or None for a model whose inputs are matched exactly.
    ``rows_on_loop``: how many rows the event loop may compute in one call; 0: none.
    """

    def __init__(self, model: Any, artifact: Artifact, max_batch_size: int = 64) -> None:
        manifest = artifact.manifest
        run_single_threaded(model)
        # Raised for models fitted on data frames; the order of the features is the manifest's.
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        self._width = manifest.width
        self._feature_names = [feature.name for feature in manifest.features]
        self._own_answers = own_answers(model, manifest.output)
        is_array = manifest.rows == "array"
        is_plain = is_array and not any(feature.missing for feature in manifest.features)
        fast = fast_forest(model) if is_plain and manifest.output.kind == "probabilities" else None
        self._fast_answers = fast or self._own_answers
        self._rows_per_call = rows_per_call(model, manifest.output)
        self._not_finite = (
            partial(InvalidInput, NOT_FINITE)
            if is_of_libraries(model)
            else partial(PredictionFailed, "the model's answer is not finite")
        )
        most = MAX_BYTES_ON_LOOP // fast.row_bytes if isinstance(fast, LeafTable) else 0
        self.rows_on_loop = most if most >= max_batch_size else 0
        self._cells = find_cells(model) if is_array else None
        self._reader = RowReader(manifest, self._cells)
        self._rows = self._reader.rows
        self._head = pack(np.zeros(self._width))[: -8 * self._width]
        self.cells = self._cells.count if self._cells else None
        self.key_kind: Literal["exact", "cells", "digest"] = "cells" if self._cells else "exact"
        libraries = dependencies(model) | library_versions(*["pandas"] * (manifest.rows == "frame"))
        _tell_of_other_versions(manifest, libraries)
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

    def parse_table(self, table: NDArray[np.float64]) -> Questions | None:
        """The questions of rows of numbers in the order of the features; None where ``parse`` must see each row."""
        if not self._reader.accepts(table):
            return None
        table = table + 0.0  # -0.0 is 0.0
        payloads, size = table.astype(">f8").tobytes(), 8 * table.shape[1]
        if self._cells is None:
            return Questions(self._rows.mark, payloads, payloads, size)
        return Questions(b"c", self._cells.representatives(table), payloads, size)

    def unchanged_within(self, question: Question) -> Mapping[str, Interval | None]:
        """Per feature the smallest and the largest float64 with the same answer; None for one that is missing."""
        assert self._cells is not None
        return dict(zip(self._feature_names, self._cells.box(question.identity[1:]), strict=True))

    def predict(self, batch: Sequence[bytes]) -> Sequence[Outcome]:
        """The same bits as the estimator's own answers.

        A row is its client's fault if the estimator refuses it with a ValueError, such as for a category that it does
        not know, or if an estimator of a library has no finite answer, such as for numbers that overflow in it. Of a
        class of one's own, an answer that is not finite is a PredictionFailed.
        """
        try:
            return self._answers(self._fast_answers, batch)
        except ValueError as error:
            if len(batch) > 1:
                raise  # the caller then asks for each row alone
            return [InvalidInput(str(error).partition("\n")[0][:MAX_SENTENCE])]

    def audit(self, payload: bytes) -> Outcome:
        """As ``predict``, but by the estimator's own method, without this service's short cuts.

        May be called while ``predict`` runs.
        """
        return self._answers(self._own_answers, [payload])[0]

    def _answers(self, compute: Compute, batch: Sequence[bytes]) -> list[Outcome]:
        size = self._rows_per_call
        if size is None:
            return self._packed(compute(self._rows.table(batch)), len(batch))
        answers: list[Outcome] = []
        for start in range(0, len(batch), size):
            block = batch[start : start + size]
            full = [*block, *[block[0]] * (size - len(block))]
            answers += self._packed(compute(self._rows.table(full)), size)[: len(block)]
        return answers

    def _packed(self, said: NDArray[Any], count: int) -> list[Outcome]:
        answers = np.ascontiguousarray(said, dtype="<f8")
        if answers.shape != (count, self._width):
            return [PredictionFailed(f"the model's answer has the shape {answers.shape}") for _ in range(count)]
        rows = np.frombuffer(answers, f"V{8 * self._width}").tolist()
        packed: list[Outcome] = [self._head + row for row in rows]
        if not np.isfinite(answers).all():
            for index in np.flatnonzero(~np.isfinite(answers).all(axis=1)):
                packed[index] = self._not_finite()
        return packed


def _tell_of_other_versions(manifest: Manifest, libraries: Mapping[str, str]) -> None:
    """The warm-up tells whether the difference matters. Cached answers of other versions are never used."""
    for name in sorted(manifest.versions.keys() & libraries.keys()):
        if manifest.versions[name] != libraries[name]:
            logger.warning(
                "The model %s was made with %s %s and is served with %s.",
                *(manifest.name, name, manifest.versions[name], libraries[name]),
            )
