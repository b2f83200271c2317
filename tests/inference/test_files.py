"""Files that execute nothing, and what a model needs installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.naive_bayes import GaussianNB
from skops.io import dump

from service.errors import ConfigurationError
from service.inference.loading import load_model
from service.inference.manifest import Manifest
from service.inference.predictor import Options, unpack
from tests.inference.estimators import IRIS_X, IRIS_Y
from training import register
from training.flags import parse_requirements

TREE = "sklearn.tree._tree.Tree"
FOREST = RandomForestClassifier(3, random_state=0).fit(IRIS_X, IRIS_Y)


def registered(tmp_path: Path, model: Any, **details: Any) -> Manifest:
    return register(model, name="own", models_dir=tmp_path / "models", **details)


def test_a_skops_file_answers_like_its_estimator_where_the_operator_trusts_its_types(tmp_path: Path) -> None:
    dump(FOREST, tmp_path / "forest.skops")
    manifest = registered(tmp_path, tmp_path / "forest.skops", trusted_types=[TREE])
    assert manifest.weights.file.endswith(".skops")
    predictor = load_model(tmp_path / "models" / "own", Options(trusted_types=(TREE,))).predictor
    question = predictor.parse({"input": IRIS_X[0].tolist()}, b"", "application/json")
    (answer,) = predictor.predict([question.payload or b""])
    assert isinstance(answer, bytes)
    assert unpack(answer).tolist() == FOREST.predict_proba(IRIS_X[:1])[0].tolist()
    with pytest.raises(ConfigurationError, match=rf"holds {TREE}: if you trust it, name it in PREDICT_TRUSTED_TYPES"):
        load_model(tmp_path / "models" / "own", Options())


def test_what_is_no_skops_file_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "own.skops").write_bytes(b"text")
    with pytest.raises(ConfigurationError, match=r"\(BadZipFile: .*\): write it again with skops"):
        registered(tmp_path, tmp_path / "own.skops")


def test_a_skops_file_of_another_scikit_learn_is_refused_unless_any_version_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as other:
        other.setattr("sklearn.base.__version__", "1.5.2")
        dump(GaussianNB().fit(IRIS_X, IRIS_Y), tmp_path / "old.skops")
    with pytest.raises(ConfigurationError, match=r"written by scikit-learn 1\.5\.2, and this is"):
        registered(tmp_path, tmp_path / "old.skops")
    assert registered(tmp_path, tmp_path / "old.skops", any_version=True).versions["scikit-learn"] == "1.5.2"


def test_a_model_is_loaded_only_where_its_requirements_are_installed(tmp_path: Path) -> None:
    model, later = GaussianNB().fit(IRIS_X, IRIS_Y), 'pandas<1; python_version < "3"'
    path = tmp_path / "models" / "own"
    registered(tmp_path, model, requirements=["numpy>=1  # arrays", "", "-i https://index", later])
    assert (path / "requirements.txt").read_text() == f"numpy>=1\n{later}\n"
    load_model(path, Options())  # this Python does not need pandas
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"requirements": ["no-such-package==1"]}))
    with pytest.raises(ConfigurationError, match="The model own needs no-such-package==1: install it"):
        load_model(path, Options())
    with pytest.raises(ConfigurationError, match=r"needs numpy<1, but numpy \S+ is installed"):
        registered(tmp_path, model, requirements=["numpy<1"])


def test_requirements_are_read_as_pip_writes_them() -> None:
    lines = ["# pinned", "numpy==2.4.6 \\", "    --hash=sha256:0123", 'pandas>=2 ; python_version < "3"', "--no-deps"]
    assert parse_requirements(lines) == ("numpy==2.4.6", 'pandas>=2 ; python_version < "3"')
    with pytest.raises(ConfigurationError, match="is no requirement"):
        parse_requirements(["not a requirement!"])
