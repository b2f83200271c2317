"""The Iris model that ``make train`` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.inference.artifact import read_artifact
from service.inference.loading import load_model
from service.inference.predictor import Options, unpack
from training import iris


def test_the_trained_model_answers_the_readmes_question(iris_models: Path) -> None:
    model = load_model(iris_models / "iris", Options())
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    question = model.predictor.parse(dict(zip(names, ("5.1", "3.5", "1.4", "0.2"), strict=True)), b"", None)
    (answer,) = model.predictor.predict([question.payload or b""])
    assert isinstance(answer, bytes)
    assert unpack(answer).tolist() == [1.0, 0.0, 0.0]
    assert [(c.value, c.label) for c in model.manifest.classes] == [
        ("0", "setosa"),
        ("1", "versicolor"),
        ("2", "virginica"),
    ]


def test_it_is_good_has_cells_and_is_cheaper_than_a_lease(iris_models: Path) -> None:
    model = load_model(iris_models / "iris", Options())
    assert (model.manifest.accuracy or 0) >= 0.9
    assert model.predictor.key_kind == "cells"
    assert model.manifest.cost_seconds < 0.001


def test_training_again_gives_the_same_weights_and_prints_progress_and_accuracy(
    iris_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = iris.main(["--out", str(tmp_path)])
    assert manifest.weights == read_artifact(iris_models / "iris").manifest.weights
    said = capsys.readouterr().out
    assert "100/100 trees" in said
    assert f"accuracy {manifest.accuracy:.3f}" in said
