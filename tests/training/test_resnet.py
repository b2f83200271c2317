"""Image models: the digits that ``make train`` makes, a folder of one's own, and the published ImageNet weights."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.datasets import load_digits

from service.inference.loading import load_model
from service.inference.manifest import Image
from service.inference.predictor import Options, unpack
from service.inference.vision.images import read
from tests.support.probe import ROOT, environment
from training import digits, published, resnet
from training.published import build

CPU = Options(device="cpu")
SMALL = Image(architecture="squeezenet1_1", size=(40, 40), mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A models directory with ``digits`` in it, and what training printed."""
    models = tmp_path_factory.mktemp("trained") / "models"
    command = [sys.executable, "-m", "training.resnet", "--out", str(models)]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return models, done.stdout


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_digits_are_learnt_to_97_percent_with_progress_and_accuracy_printed(trained: tuple[Path, str]) -> None:
    models, said = trained
    manifest = load_model(models / "digits", CPU).manifest
    assert (manifest.accuracy or 0) >= 0.97
    assert "epoch 6/6, batch 23/23, loss 0.0" in said
    assert f"accuracy {manifest.accuracy:.3f}" in said
    assert [(c.value, c.label) for c in manifest.classes] == [(str(digit), str(digit)) for digit in range(10)]
    assert manifest.cost_seconds < 1


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_the_exported_held_out_files_give_the_accuracy_that_training_printed(
    trained: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resnet.main(["--export-test", str(tmp_path / "test")])
    files = sorted((tmp_path / "test").glob("*.png"))
    assert f"{len(files)} images" in capsys.readouterr().out
    model = load_model(trained[0] / "digits", CPU)
    answers = model.predictor.predict([file.read_bytes() for file in files])
    right = [
        int(unpack(answer).argmax()) == int(file.stem.partition("_")[0])
        for file, answer in zip(files, answers, strict=True)
        if isinstance(answer, bytes)
    ]
    assert sum(right) / len(files) == model.manifest.accuracy


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_the_golden_answer_is_what_the_model_says(trained: tuple[Path, str]) -> None:
    model = load_model(trained[0] / "digits", CPU)
    example = model.manifest.example
    (found,) = model.predictor.predict([model.predictor.parse(example.inputs, b"", "application/json").payload or b""])
    assert isinstance(found, bytes)
    assert unpack(found).tolist() == example.golden


def test_a_digits_file_is_the_scan_and_the_split_is_the_same_every_time_and_without_overlap() -> None:
    train, held_out = digits.split()
    assert digits.split() == (train, held_out)
    assert len(train) + len(held_out) == 1797
    assert len(held_out) == 360
    scans = load_digits().images
    seen = np.asarray(PIL.Image.open(io.BytesIO(digits.png(scans[0]))))
    assert np.array_equal(np.rint(seen * (16 / 255)), scans[0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of either colour."""
    for colour in ("red", "blue"):
        (tmp_path / "My pictures" / colour).mkdir(parents=True)
        for side in range(20, 30):
            picture = PIL.Image.new("RGB", (side, 24), colour)
            picture.save(tmp_path / "My pictures" / colour / f"{side}.{('png', 'webp')[side % 2]}")
    return tmp_path / "My pictures"


def test_a_folder_of_ones_own_becomes_a_model_named_after_it_and_can_start_from_weights(
    folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = tmp_path / "start.pt"
    torch.save(build("squeezenet1_1", 1000).state_dict(), start)
    about = ["--data", str(folder), "--architecture", "squeezenet1_1", "--weights", str(start), "--epochs", "1"]
    resnet.main([*about, "--out", str(tmp_path / "models")])
    manifest = load_model(tmp_path / "models" / "my-pictures", CPU).manifest
    assert [c.label for c in manifest.classes] == ["blue", "red"]
    assert manifest.accuracy in {0.0, 0.25, 0.5, 0.75, 1.0}  # four of the twenty are held out


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: [file.unlink() for file in folder.glob("red/*")], "there is no image of red"),
        (lambda folder: (folder / "red" / "20.png").write_bytes(b"not an image"), "20.png: The image is not a PNG"),
        (lambda folder: [file.unlink() for file in folder.glob("*/2[1-9].*")], "2 images are too few"),
        (lambda folder: folder.rename(folder.with_name("gone")), "My pictures"),
    ],
)
def test_a_folder_that_cannot_be_learnt_ends_with_one_sentence(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(folder)
    with pytest.raises(SystemExit, match=message) as stopped:
        resnet.main(["--data", str(folder), "--epochs", "1", "--out", str(tmp_path / "models")])
    assert "\n" not in str(stopped.value)
    assert not (tmp_path / "models").exists()


def test_hidden_files_and_folders_are_passed_by_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "red" / "._20.png").write_bytes(b"what a Mac leaves beside a picture")
    (folder / ".cache").mkdir()
    source = resnet.folder_source(folder, None)
    assert list(source.labels) == ["blue", "red"]
    assert len(source.train) + len(source.held_out) == 20
    assert "red/._20.png is hidden, and is passed by." in capsys.readouterr().out


def test_a_name_that_no_url_can_have_is_refused_before_anything_is_learnt(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="is no name of a model"):
        resnet.main(["--data", str(folder), "--name", "My Birds", "--out", str(tmp_path / "models")])
    assert "epoch" not in capsys.readouterr().out


def test_no_epochs_publish_the_weights_as_they_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    network = build("squeezenet1_1", 2).eval()
    torch.save(network.state_dict(), tmp_path / "birds.pt")
    monkeypatch.setattr(resnet.published, "spec_of", lambda architecture: SMALL)
    about = ["--data", str(folder), "--architecture", "squeezenet1_1", "--epochs", "0"]
    resnet.main([*about, "--weights", str(tmp_path / "birds.pt"), "--out", str(tmp_path / "models")])
    predictor = load_model(tmp_path / "models" / "my-pictures", CPU).predictor
    file = next(folder.glob("red/*.png")).read_bytes()
    with torch.inference_mode():
        eager = torch.softmax(network(torch.from_numpy(read(file, SMALL)).permute(2, 0, 1)[None]), 1)[0].numpy()
    (found,) = predictor.predict([file])
    assert isinstance(found, bytes)
    assert np.abs(unpack(found) - eager).max() <= 1e-5
    with pytest.raises(SystemExit, match="--epochs 0 publishes --weights as they are: name their file"):
        resnet.main([*about, "--out", str(tmp_path / "models")])


@pytest.fixture(scope="module")
def published_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What torchvision publishes, but for the numbers: a state dict under a name with its digest."""
    torch.manual_seed(0)
    saved = io.BytesIO()
    torch.save(build("resnet18", 1000).state_dict(), saved)
    data = saved.getvalue()
    file = tmp_path_factory.mktemp("published") / f"resnet18-{hashlib.sha256(data).hexdigest()[:8]}.pth"
    file.write_bytes(data)
    return file


def test_published_weights_are_served_with_their_own_preprocessing_and_labels_from_a_file_of_any_name(
    published_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "any-name.pt"
    file.write_bytes(published_file.read_bytes())
    resnet.main(["--imagenet", "--weights", str(file), "--out", str(tmp_path)])
    manifest = load_model(tmp_path / "imagenet", CPU).manifest
    assert manifest.image is not None
    assert (manifest.image.resize, manifest.image.size, manifest.image.mean) == (256, (224, 224), (0.485, 0.456, 0.406))
    assert [manifest.classes[index].label for index in (0, 134, 517)] == ["tench", "crane bird", "crane"]
    assert manifest.accuracy is None, "these are not the weights whose accuracy is known"
    assert "accuracy not known" in capsys.readouterr().out


def test_weights_with_the_published_digest_have_the_published_accuracy(
    published_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "_digest", lambda name: hashlib.sha256(published_file.read_bytes()).hexdigest()[:8])
    assert published.fetch("resnet18", published_file).accuracy == pytest.approx(0.69758)


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet18-00000000.pth", "does not have the digest in its name"), ("", "No such file")],
)
def test_published_weights_of_another_digest_or_none_are_refused(
    published_file: Path, tmp_path: Path, name: str, message: str
) -> None:
    file = tmp_path / (name or "resnet18-00001234.pth")
    if name:
        file.write_bytes(published_file.read_bytes())
    with pytest.raises(SystemExit, match=message):
        resnet.main(["--imagenet", "--weights", str(file), "--out", str(tmp_path / "models")])
    assert not (tmp_path / "models").exists()


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    for arguments in (["--imagenet"], [], ["--data", str(tmp_path)]):
        with pytest.raises(SystemExit, match="Unknown architecture 'resnet19'; it is one of alexnet, convnext_base"):
            resnet.main([*arguments, "--architecture", "resnet19", "--out", str(tmp_path)])
