"""Before a version is deployed its owner is told what it will change, and afterwards can take it back."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeClassifier
from torch import nn

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
    with pytest.raises(SystemExit, match=r"^3.00% of the predictions change, and the limit is 2.00%.$"):
        told(capsys, tmp_path, questions, "--limit", "0.02")


def test_a_question_that_one_version_refuses_changes_and_one_that_both_refuse_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(tmp_path, tree := from_on(50))
    publish(tmp_path, tree, maximum=9)
    said = told(capsys, tmp_path, requests(tmp_path, [1, 10, "x"]))
    assert "1 of 3 predictions change" in said and re.search(r"\n  low → refused: 1, first line 3 \(.*9", said)
    assert re.search(r"\nBoth versions refuse 1: .*number", said)
    with pytest.raises(SystemExit, match="a must be"):
        told(capsys, tmp_path, requests(tmp_path, ["x", "y"]))


def test_numbers_change_when_they_move_by_more_than_the_tolerance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for slope in (1.0, 1.01):
        publish(tmp_path, LinearRegression().fit(NUMBERS, slope * NUMBERS[:, 0]))
    questions = requests(tmp_path, range(1, 101))
    assert "100 of 100 predictions change" in told(capsys, tmp_path, questions)
    said = told(capsys, tmp_path, questions, "--tolerance", "0.505")
    assert "50 of 100 predictions change" in said and "differ by 1 at most, and by 0.505 in the median" in said


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
    (tmp_path / "pictures" / ".hidden").write_bytes(b"no picture")
    said = told(capsys, tmp_path, tmp_path / "pictures")
    assert "1 of 1 predictions change (100.00%).\n  0 (left) → 1 (right): 1, first 1.png\n" in said
    for change in ("1 (right) → 0 (left)", "0 (left) → 1 (right)"):
        rollback.main(["own", "--models", str(tmp_path)])
        assert change in told(capsys, tmp_path, tmp_path / "pictures")


@pytest.mark.parametrize("command", [compare, rollback])
def test_without_a_previous_version_there_is_one_sentence(tmp_path: Path, command: ModuleType) -> None:
    publish(tmp_path, from_on(50))
    arguments = ["own", *([str(tmp_path / "requests.csv")] if command is compare else []), "--models", str(tmp_path)]
    with pytest.raises(SystemExit, match=r"^\S+ has no previous version: none was published before"):
        command.main(arguments)
