"""Before a version is deployed its owner is told what it will change, and afterwards can take it back."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from service.inference.artifact import read_artifact
from service.inference.loading import load_model
from service.inference.predictor import Options
from tests.inference.pictures import encode, picture
from training import compare, register, register_network, rollback

NUMBERS = np.arange(100.0).reshape(-1, 1)


def publish(models: Path, model: Any, **feature: Any) -> str:
    """The version that is published. ``feature``: what its only one has beside a name."""
    register(model, name="own", models_dir=models, features=[{"name": "a", **feature}], show=lambda _: None)
    return load_model(models / "own", Options()).predictor.fingerprint.hex()[:12]


def from_on(least: int) -> DecisionTreeClassifier:
    """Says ``high`` from that number on."""
    return DecisionTreeClassifier().fit(NUMBERS, np.where(NUMBERS[:, 0] >= least, "high", "low"))


def requests(tmp_path: Path, values: Any) -> Path:
    (tmp_path / "requests.csv").write_text("\n".join(["a", *map(str, values)]))
    return tmp_path / "requests.csv"


def told(capsys: pytest.CaptureFixture[str], tmp_path: Path, questions: Path, *options: str) -> str:
    compare.main(["own", str(questions), "--models", str(tmp_path), *options])
    return capsys.readouterr().out


def test_the_share_of_the_traffic_that_changes_is_exact_and_held_to_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """97 requests stay, and one that comes three times changes."""
    versions = publish(tmp_path, from_on(50)), publish(tmp_path, from_on(51))
    questions = requests(tmp_path, [*range(48), *range(51, 100), 50, 50, 50])
    said = told(capsys, tmp_path, questions, "--limit", "3%")
    assert f"own: {' → '.join(versions)}\n" in said
    assert "3 of 100 predictions change (3.00%).\n  high → low: 3, first line 99\n" in said
    with pytest.raises(SystemExit, match=r"^3 of 100 predictions change, more than 2%\.$"):
        told(capsys, tmp_path, questions, "--limit", "0.02")


def test_a_question_that_one_version_refuses_changes_and_one_that_both_refuse_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, tree := from_on(50))
    publish(tmp_path, tree, maximum=9)
    said = told(capsys, tmp_path, requests(tmp_path, [1, 10, "x"]))
    assert "1 of 2 predictions change" in said and re.search(r"\n  low → refused: 1, first line 3 \(.*9", said)
    assert re.search(r"\n1 more are refused by both: .*number", said)
    with pytest.raises(SystemExit, match="a must be"):
        told(capsys, tmp_path, requests(tmp_path, ["x", "y"]))
    with pytest.raises(SystemExit, match=r"^1 of 2 predictions change, more than 10%\.$"):
        told(capsys, tmp_path, requests(tmp_path, [1, 10, *["x"] * 98]), "--limit", "10 %")


def test_a_class_called_refused_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for least in (50, 51):
        says = np.where(NUMBERS[:, 0] >= least, "granted", "refused")
        publish(tmp_path, DecisionTreeClassifier().fit(NUMBERS, says), maximum=90)
    said = told(capsys, tmp_path, requests(tmp_path, [1, 2, 50, 99]))
    assert "1 of 3 predictions change" in said and "granted → refused: 1, first line 4\n" in said
    assert "1 more are refused by both: Parameter a" in said


def test_limits_are_exact_and_a_wrong_one_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for least in (50, 51):
        publish(tmp_path, from_on(least))
    questions = requests(tmp_path, [50] * 7 + [1] * 993)
    for enough in ("0.7%", "0.7 %", "0.007", "1", "100%"):
        told(capsys, tmp_path, questions, "--limit", enough)
    with pytest.raises(SystemExit, match=r"^7 of 1,000 predictions change, more than 0.69%\.$"):
        told(capsys, tmp_path, questions, "--limit", "0.69%")
    for flag, wrong in [("limit", x) for x in ("2", "nan", "inf", "-1", "101%", "x")] + [("tolerance", "nan")]:
        with pytest.raises(SystemExit, match="2"):
            told(capsys, tmp_path, questions, f"--{flag}={wrong}")
        said = capsys.readouterr().err
        assert f"argument --{flag}: {wrong!r} is no" in said and "write" in said


def test_numbers_change_when_they_move_by_more_than_the_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for slope in (1.0, 1.01):
        publish(tmp_path, LinearRegression().fit(NUMBERS, slope * NUMBERS[:, 0]))
    questions = requests(tmp_path, range(1, 101))
    assert "100 of 100 predictions change" in told(capsys, tmp_path, questions)
    said = told(capsys, tmp_path, questions, "--tolerance", "0.505")
    assert "50 of 100 predictions change" in said and "differ by 1 at most, and by 0.505 in the median" in said


def test_numbers_are_compared_by_name_and_only_where_they_mean_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for outputs, slopes in ((["x", "y"], [1, 2]), (["y", "x"], [2, 1]), (["x", "z"], [1, 2])):
        line = LinearRegression().fit(NUMBERS, NUMBERS * slopes)
        register(line, name="own", models_dir=tmp_path, features=[{"name": "a"}], outputs=outputs, show=lambda _: None)
        if outputs[0] == "y":
            said = told(capsys, tmp_path, requests(tmp_path, range(9)), "--tolerance", "1e-6")
            assert "0 of 9 predictions change" in said and "The numbers" in said
    said = told(capsys, tmp_path, requests(tmp_path, range(9)), "--tolerance", "1e9")
    assert "9 of 9 predictions change" in said and "The numbers" not in said
    for names in (["no", "yes"], ["a", "b"]):
        publish(tmp_path, DecisionTreeClassifier().fit(NUMBERS, np.array(names)[(NUMBERS[:, 0] > 49).astype(int)]))
    assert "The numbers" not in told(capsys, tmp_path, requests(tmp_path, range(9)))
    for seed in (0, 1):
        publish(tmp_path, KMeans(8, n_init=1, random_state=seed).fit(NUMBERS))
    said = told(capsys, tmp_path, requests(tmp_path, range(100)), "--tolerance", "1e9")
    assert "The numbers" not in said and not re.search(r"\n0 of", said)


def test_a_csv_skips_empty_lines_and_names_no_column_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for least in (50, 51):
        publish(tmp_path, from_on(least))
    assert "1 of 2 predictions change" in told(capsys, tmp_path, requests(tmp_path, ["", 1, "", 50, ""]))
    for line, wrong in ((",a\n1,2", "the first line names a column twice"), ("\n1,2", "line 2 has more or fewer")):
        (tmp_path / "requests.csv").write_text("a" + line)
        with pytest.raises(SystemExit, match=wrong):
            told(capsys, tmp_path, tmp_path / "requests.csv")


def test_images_are_compared_and_a_version_is_taken_back_and_brought_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    how: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "models_dir": tmp_path}
    for bias in (9.0, -9.0):
        with torch.no_grad():
            net[2].bias[:] = torch.tensor([bias, 0.0])
        register_network(net, name="own", size=20, classes=["left", "right"], **how)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "1.png").write_bytes(encode(picture((20, 20)), "PNG"))
    (tmp_path / "pictures" / ".git").mkdir()
    for passed_by in ("notes.txt", ".hidden.png", ".git/1.png"):
        (tmp_path / "pictures" / passed_by).write_bytes(b"no picture")
    said = told(capsys, tmp_path, tmp_path / "pictures")
    assert "1 of 1 predictions change (100.00%).\n  0 (left) → 1 (right): 1, first 1.png\n" in said
    assert "\n3 files are passed by: they are hidden, or no images.\n" in said
    (tmp_path / "digests.csv").write_text("sha256\n" + "0" * 64)
    with pytest.raises(SystemExit, match=r"^Nothing can be computed from a digest alone"):
        told(capsys, tmp_path, tmp_path / "digests.csv")
    for change in ("1 (right) → 0 (left)", "0 (left) → 1 (right)"):
        rollback.main(["own", "--models", str(tmp_path)])
        assert change in told(capsys, tmp_path, tmp_path / "pictures")


def test_beside_a_broken_version_the_one_before_becomes_the_only_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = publish(tmp_path, from_on(50))
    publish(tmp_path, from_on(51))
    (tmp_path / "own" / "manifest.json").write_bytes(b"{")
    rollback.main(["own", "--models", str(tmp_path)])
    assert "is broken, so there is no other one now." in capsys.readouterr().out
    assert load_model(tmp_path / "own", Options()).predictor.fingerprint.hex()[:12] == before
    assert len(list((tmp_path / "own").iterdir())) == 2
    with pytest.raises(SystemExit, match="there is none beside the current one"):
        rollback.main(["own", "--models", str(tmp_path)])


def test_a_rollback_swaps_versions_with_the_same_weights_and_says_in_a_sentence_what_fails(tmp_path: Path) -> None:
    tree = from_on(50)
    for most in (9, 99):
        publish(tmp_path, tree, maximum=most)
    for most in (9, 99):
        rollback.main(["own", "--models", str(tmp_path)])
        assert read_artifact(tmp_path / "own").manifest.features[0].maximum == most
    (tmp_path / "own" / "manifest.replaced.json").mkdir()
    with pytest.raises(SystemExit, match=r"^\S+own cannot be written to \(Is a directory\)\.$"):
        rollback.main(["own", "--models", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"cannot be read \(File name too long\)\.$"):
        compare.main(["own", "q" * 300, "--models", str(tmp_path)])
    for command in (rollback, compare):
        with pytest.raises(SystemExit, match="is no name of a model"):
            command.main(["x" * 300, *(["q.csv"] if command is compare else []), "--models", str(tmp_path)])


@pytest.mark.parametrize("command", [compare, rollback])
def test_without_a_previous_version_there_is_one_sentence(tmp_path: Path, command: ModuleType) -> None:
    publish(tmp_path, from_on(50))
    arguments = ["own", *([str(tmp_path / "requests.csv")] if command is compare else []), "--models", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^\S+ has no previous version: there is none beside"):
        command.main(arguments)
