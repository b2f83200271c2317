"""Model directories: whole or not at all, checked before anything is executed, the last good pair kept."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from service.errors import ConfigurationError
from service.inference import artifact as module
from service.inference.artifact import Artifact, discover, read_artifact, swap_previous, write_artifact
from service.inference.loading import import_kinds, load_current, load_model
from service.inference.manifest import Manifest, Weights
from service.inference.predictor import Options
from tests.inference.estimators import IRIS_X, IRIS_Y, artifact_of


def tree(depth: int) -> Artifact:
    model = DecisionTreeClassifier(max_depth=depth, random_state=0).fit(IRIS_X, IRIS_Y)
    artifact = artifact_of(model)
    golden = model.predict_proba([[1.0] * 4])[0].tolist()
    example = artifact.manifest.example.model_copy(update={"golden": golden})
    return Artifact(artifact.manifest.model_copy(update={"example": example}), artifact.weights)


ONE, TWO, THREE = tree(1), tree(2), tree(3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "model", ONE)
    return tmp_path / "model"


def edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def put_weights(directory: Path, data: bytes) -> None:
    """Weights that the manifest rightly names."""
    weights = Weights.of(data, "joblib")
    (directory / weights.file).write_bytes(data)
    edit(directory, lambda manifest: manifest.update(weights=weights.model_dump()))


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def failure(directory: Path) -> str:
    """The one sentence that the start fails with."""
    with pytest.raises(ConfigurationError) as caught:
        load_model(directory, Options())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read_back(directory: Path) -> None:
    assert read_artifact(directory) == ONE
    assert files(directory) == {"manifest.json", ONE.manifest.weights.file}
    assert load_model(directory, Options()).warning is None


def test_publishing_keeps_the_previous_pair_and_deletes_older_weights(directory: Path) -> None:
    write_artifact(directory, TWO)
    write_artifact(directory, THREE)
    weights = {TWO.manifest.weights.file, THREE.manifest.weights.file}
    assert files(directory) == {"manifest.json", "manifest.previous.json", *weights}
    assert read_artifact(directory) == THREE
    assert read_artifact(directory, "manifest.previous.json") == TWO


def test_publishing_the_same_weights_again_keeps_the_older_pair_to_fall_back_on(directory: Path) -> None:
    write_artifact(directory, TWO)
    write_artifact(directory, TWO)
    assert read_artifact(directory, "manifest.previous.json") == ONE


def test_a_broken_current_pair_never_becomes_the_previous_one(directory: Path) -> None:
    write_artifact(directory, TWO)
    (directory / TWO.manifest.weights.file).write_bytes(b"damaged")
    write_artifact(directory, THREE)
    assert read_artifact(directory, "manifest.previous.json") == ONE


def cut_power(monkeypatch: pytest.MonkeyPatch, step: int, work: Callable[[], object]) -> None:
    """Before the n-th rename or deletion of ``work``."""
    left = step

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(module.os, "replace", failing(os.replace))
        patch.setattr(Path, "unlink", failing(Path.unlink))
        work()


@pytest.mark.parametrize("step", range(8))
def test_a_crash_at_any_step_of_publishing_leaves_a_model_that_loads(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write_artifact(directory, TWO)
    cut_power(monkeypatch, step, lambda: write_artifact(directory, THREE))
    assert read_artifact(directory) in (TWO, THREE)
    assert load_model(directory, Options()).warning is None


@pytest.mark.parametrize("step", range(7))
def test_a_crash_at_any_step_of_a_rollback_leaves_a_model_that_loads_and_loses_no_version(
    directory: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write_artifact(directory, TWO)
    cut_power(monkeypatch, step, lambda: swap_previous(directory))
    assert read_artifact(directory) in (ONE, TWO)
    assert load_model(directory, Options()).warning is None
    assert swap_previous(directory)
    found = [read_artifact(directory, name) for name in ("manifest.json", "manifest.previous.json")]
    assert found == ([TWO, ONE] if step >= 4 else [ONE, TWO])
    weights = {ONE.manifest.weights.file, TWO.manifest.weights.file}
    assert files(directory) == {"manifest.json", "manifest.previous.json", *weights}


def test_requirements_beside_the_manifest_are_those_of_the_current_model(directory: Path) -> None:
    needing = replace(TWO, manifest=TWO.manifest.model_copy(update={"requirements": ("numpy>=1",)}))
    write_artifact(directory, needing)
    for is_there in (False, True):
        swap_previous(directory)
        assert (directory / "requirements.txt").exists() == is_there
    write_artifact(directory, THREE)
    assert not (directory / "requirements.txt").exists()


@pytest.mark.parametrize("damage", [b"", ONE.weights[:-1], ONE.weights[:-1] + b"\x00", TWO.weights])
def test_weights_of_another_digest_are_never_executed(
    directory: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    monkeypatch.setattr(joblib, "load", lambda file: pytest.fail("unpickled before the digest was checked"))
    path = directory / ONE.manifest.weights.file
    path.write_bytes(damage)
    assert str(path) in failure(directory)
    assert "make train" in failure(directory)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.path,))

    def __init__(self, path: str) -> None:
        self.path = path


def test_a_pickle_that_the_manifest_does_not_name_does_nothing(directory: Path, tmp_path: Path) -> None:
    (directory / ONE.manifest.weights.file).write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    failure(directory)
    assert not (tmp_path / "exploded").exists()


def test_the_very_bytes_that_were_checked_are_loaded(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.name) or real(self))
    load_model(directory, Options())
    assert sorted(read) == sorted(["manifest.json", ONE.manifest.weights.file])


def test_missing_files_are_named_with_the_remedy(directory: Path) -> None:
    (directory / ONE.manifest.weights.file).unlink()
    assert ONE.manifest.weights.file in failure(directory)
    (directory / "manifest.json").unlink()
    assert "manifest.json" in failure(directory)
    assert "make train" in failure(directory)


@pytest.mark.parametrize("data", [b"no pickle", b"", pickle.dumps(ONE)[:-9]])
def test_what_cannot_be_unpickled_is_named(directory: Path, data: bytes) -> None:
    put_weights(directory, data)
    assert "cannot be read" in failure(directory)


def test_a_module_that_cannot_be_imported_is_named_with_the_remedy(directory: Path) -> None:
    put_weights(directory, b"cmissing_module\nModel\n.")
    assert "missing_module" in failure(directory)
    assert "PYTHONPATH" in failure(directory)


def test_what_is_no_estimator_is_named(directory: Path) -> None:
    put_weights(directory, pickle.dumps({"not": "a model"}))
    assert "a dict, which has no predict method" in failure(directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(kind="magic"), "magic"),
        (lambda m: m.update(format=2), "format"),
        (lambda m: m.update(nmae="x"), "nmae"),
        (lambda m: m.pop("classes"), "classes"),
        (lambda m: m.update(classes=[]), "classes"),
        (lambda m: m["classes"][1].update(m["classes"][0]), "not unique"),
        (lambda m: m["classes"][1].update(label=m["classes"][0]["label"]), "not unique"),
        (lambda m: m["features"][1].update(name="a"), "not unique"),
        (lambda m: m["features"][1].update(name="top_k"), "top_k"),
        (lambda m: m["features"][1].update(name="model"), "model"),
        (lambda m: m["features"][1].update(minimum=2, maximum=1), "minimum"),
        (lambda m: m.update(features=[]), "features"),
        (lambda m: m["example"].update(golden=[1.0]), "golden"),
        (lambda m: m.update(cost_seconds=0), "cost_seconds"),
        (lambda m: m["weights"].update(sha256="0"), "sha256"),
        (lambda m: m["weights"].update(file="../other/weights.joblib"), "file"),
        (lambda m: m["weights"].update(file="/etc/passwd"), "file"),
        (lambda m: m.update(name="other"), "other"),
        (lambda m: m["example"].update(inputs={"a": 1.0}), "example"),
        (lambda m: m["example"].update(golden=[0.0, 0.0, 1.0]), "example"),
    ],
)
def test_a_wrong_manifest_is_named_with_what_is_wrong(
    directory: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit(directory, change)
    assert said in failure(directory)


def test_a_manifest_that_is_not_json_is_named(directory: Path) -> None:
    (directory / "manifest.json").write_bytes(b"{")
    assert "manifest.json" in failure(directory)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: (d / TWO.manifest.weights.file).write_bytes(TWO.weights[:100]),
        lambda d: (d / TWO.manifest.weights.file).unlink(),
        lambda d: (d / "manifest.json").write_bytes(b"{"),
        lambda d: (d / "manifest.json").unlink(),
        lambda d: put_weights(d, b"no pickle"),
        lambda d: edit(d, lambda m: m["features"].pop()),
        lambda d: edit(d, lambda m: m["example"].update(golden=[0.0, 0.0, 1.0])),
    ],
    ids=["truncated", "no weights", "bad manifest", "no manifest", "unpicklable", "feature count", "other answer"],
)
def test_beside_a_broken_model_the_last_good_one_is_served_and_said_so(
    directory: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], object]
) -> None:
    write_artifact(directory, TWO)
    damage(directory)
    model = load_model(directory, Options())
    assert model.manifest.weights == ONE.manifest.weights
    assert model.warning is not None
    assert "previous" in model.warning
    assert model.warning in caplog.text
    with pytest.raises(ConfigurationError):
        load_current(directory, Options())


def test_a_rollback_finds_its_own_fingerprint_again(directory: Path) -> None:
    first = load_model(directory, Options()).predictor.fingerprint
    write_artifact(directory, TWO)
    second = load_model(directory, Options()).predictor.fingerprint
    write_artifact(directory, ONE)
    assert load_model(directory, Options()).predictor.fingerprint == first != second


def test_every_directory_with_a_manifest_that_is_not_hidden_is_a_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b", "a", ".git", "..data"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / "README").write_text("a file")
    (tmp_path / "lost+found").mkdir(0)
    assert discover(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "lost+found" in caplog.text


def test_no_models_at_all_is_a_sentence_with_the_remedy(tmp_path: Path) -> None:
    for nothing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ConfigurationError, match="make train"):
            discover(nothing)


def test_other_libraries_devices_and_precisions_have_other_fingerprints() -> None:
    def of(**changes: Any) -> bytes:
        return module.fingerprint(ONE, **({"preprocessing": "1", "libraries": {"numpy": "2"}} | changes))

    assert of() == of()
    others = [
        of(preprocessing="2"),
        of(libraries={"numpy": "3"}),
        of(device="cuda"),
        of(precision="bfloat16"),
        module.fingerprint(TWO, preprocessing="1", libraries={"numpy": "2"}),
    ]
    assert len({of(), *others}) == 6


def test_a_compressed_joblib_file_is_served_too(tmp_path: Path) -> None:
    model, file = LogisticRegression(max_iter=500).fit(IRIS_X, IRIS_Y), io.BytesIO()
    joblib.dump(model, file, compress=3)
    golden = [float(model.predict([[1.0] * 4])[0]), *model.predict_proba([[1.0] * 4])[0].tolist()]
    facts = artifact_of(model).manifest.model_dump()
    facts |= {"weights": Weights.of(file.getvalue(), "joblib").model_dump(), "name": "model"}
    facts["example"]["golden"] = golden
    write_artifact(tmp_path / "model", Artifact(Manifest.model_validate(facts), file.getvalue()))
    assert load_model(tmp_path / "model", Options()).warning is None


@pytest.mark.parametrize("manifest", ["[]", '{"kind": []}', '{"kind": "other"}', "[" * 100_000])
def test_a_manifest_that_is_none_does_not_stop_the_start(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text(manifest)
    import_kinds(tmp_path)
    with pytest.raises(ConfigurationError):
        load_model(tmp_path / "broken", Options())
