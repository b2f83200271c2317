"""A kind of model is one file, and one line in KINDS: here the mean of a row's features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from service.errors import ConfigurationError
from service.inference.artifact import Artifact, fingerprint, library_versions
from service.inference.loading import KINDS, load_model
from service.inference.manifest import Example, Feature, Manifest, Output, Weights
from service.inference.predictor import Options, Prediction, Question, pack, unpack
from service.inference.tabular.features import RowReader
from training import publish

DRAFT = Manifest(
    name="average",
    kind="mean",
    weights=Weights.of(b"", "none"),
    features=(Feature(name="a"), Feature(name="b")),
    output=Output(kind="numbers"),
    cost_seconds=1,
    example=Example(inputs={"a": 1, "b": 2}, golden=[0]),
    versions={},
)


class Mean:
    """All that a predictor must have."""

    key_kind: Literal["exact", "cells", "digest"] = "exact"
    dtype: ClassVar[str] = "<f8"

    def __init__(self, artifact: Artifact, _: Options) -> None:
        self._reader = RowReader(artifact.manifest)
        self.fingerprint = fingerprint(artifact, preprocessing="mean-1", libraries=library_versions("numpy"))

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        return self._reader.parameters

    def parse(self, params: Mapping[str, Any], body: bytes, content_type: str | None) -> Question:
        payload = self._reader.rows.pack(self._reader.read(params, content_type))
        return Question(payload, payload)

    def predict(self, batch: Sequence[bytes]) -> Sequence[Prediction | Exception]:
        return [pack(mean.astype(self.dtype)) for mean in np.mean(self._reader.rows.table(batch), 1, keepdims=True)]


class NarrowMean(Mean):
    dtype = "<f4"


def test_a_model_of_a_new_kind_is_published_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "mean", f"{__name__}:Mean")
    assert publish(tmp_path, DRAFT, b"").example.golden == [1.5]
    predictor = load_model(tmp_path / "average", Options()).predictor
    payload = predictor.parse({"input": [1.0, 4.0]}, b"", "application/json").payload
    assert payload is not None
    assert [unpack(answer).tolist() for answer in predictor.predict([payload])] == [[2.5]]  # type: ignore[arg-type]


def test_a_kind_whose_answers_no_cache_would_take_is_refused_before_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "mean", f"{__name__}:NarrowMean")
    with pytest.raises(ConfigurationError, match=r"does not allow: float32 \[1\.5\]"):
        publish(tmp_path, DRAFT, b"")
    assert not list(tmp_path.iterdir())
