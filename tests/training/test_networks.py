"""Any network is published as it was trained: what it says is torch's own answer, alone and in company."""

from __future__ import annotations

import copy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from service.errors import ConfigurationError
from service.inference.artifact import read_artifact
from service.inference.loading import load_model
from service.inference.manifest import Image
from service.inference.predictor import Options, unpack
from service.inference.vision.cpu import CHUNK, STREAMS, CpuRunner
from service.inference.vision.program import compute, module, restore
from tests.inference.test_vision import lively
from training import register, register_network
from training.export import export
from training.networks import image_spec
from training.published import build

CLASSES = ["ant", "bee", "cat"]
NORM = torch.ops.aten.batch_norm.default


class OneChannel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.last = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(torch.relu(self.norm(self.layer(images))).mean((2, 3)))


class Mean(nn.Module):
    """The mean of each channel, and thus of three a distribution if ``made`` makes one of them."""

    def __init__(self, made: Callable[[Tensor], Any] = torch.clone) -> None:
        super().__init__()
        self.made = made

    def forward(self, images: Tensor) -> Any:
        return self.made(images.mean((2, 3)))


def published(models: Path, net: nn.Module, size: int, channels: int = 3) -> CpuRunner:
    """How the service runs what was registered."""
    how = {"mean": (0.5,) * channels, "std": (0.25,) * channels, "models_dir": models}
    register_network(net, name="test", size=size, classes=CLASSES, **how)
    load_model(models / "test", Options(device="cpu"))
    made = read_artifact(models / "test")
    assert made.manifest.image is not None
    return CpuRunner(made, made.manifest.image, 2)


def check(models: Path, net: nn.Module, size: int, channels: int = 3) -> CpuRunner:
    """Within a hundred-thousandth of torch eager, by OpenVINO and by torch; and alone as in company."""
    net = lively(net, image_spec(size, (0.5,) * channels, (0.25,) * channels))
    images = np.random.default_rng(1).standard_normal((STREAMS * CHUNK, size, size, channels)).astype(np.float32)
    with torch.inference_mode():
        eager = torch.softmax(net(torch.from_numpy(images).permute(0, 3, 1, 2)), 1).numpy()
    runner = published(models, net, size, channels)
    together = np.stack(runner.run(list(images)))
    assert eager.std(axis=0).max() > 1e-3, "these answers would be right for any image"
    assert np.abs(together - eager).max() <= 1e-5
    assert np.array_equal(together, np.concatenate([runner.run([image]) for image in images]))
    program = restore(read_artifact(models / "test"))
    assert np.abs(compute(program, 1)(images) - eager).max() <= 1e-5
    return runner


def test_a_module_of_ones_own_with_one_channel_is_served_as_it_is_and_stays_as_it_is(tmp_path: Path) -> None:
    net = OneChannel()
    check(tmp_path, net, 20, channels=1)
    net.train()
    before = copy.deepcopy(net.state_dict())
    published(tmp_path, net, 20, channels=1)
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    program = restore(read_artifact(tmp_path / "test"))
    assert not module(program).graph.find_nodes(op="call_function", target=NORM), "a GPU would compute it by itself"
    stored = sum(tensor.numel() for tensor in program.state_dict.values())
    assert stored < sum(tensor.numel() for tensor in net.state_dict().values()), "nothing is stored twice"


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small"])
def test_torchvisions_networks_say_what_torch_says(architecture: str, tmp_path: Path) -> None:
    check(tmp_path, build(architecture, 3), 64)


@pytest.mark.contract
@pytest.mark.timeout(600)
@pytest.mark.parametrize("architecture", ["resnet50", "efficientnet_b0", "convnext_tiny", "vit_b_16", "swin_t"])
def test_torchvisions_larger_networks_say_what_torch_says(architecture: str, tmp_path: Path) -> None:
    check(tmp_path, build(architecture, 3), 224)


def test_a_network_that_fixes_its_number_of_images_is_computed_one_at_a_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = nn.Sequential(Mean(lambda found: found.reshape(int(found.shape[0]), 3) if len(found) < 3 else found[:2]))
    runner = published(tmp_path, fixed, 20)
    assert "so a CPU computes one at a time" in capsys.readouterr().out
    assert runner.chunk == 1
    made = read_artifact(tmp_path / "test")
    assert made.manifest.image is not None and not made.manifest.image.batched
    assert not restore(made).range_constraints
    images = list(np.random.default_rng(1).standard_normal((3, 20, 20, 3)).astype(np.float32))
    assert np.array_equal(runner.run(images), np.concatenate([runner.run([image]) for image in images]))


def test_probabilities_are_served_as_they_are_and_of_logits_the_softmax(tmp_path: Path) -> None:
    image = np.random.default_rng(1).standard_normal((1, 20, 20, 3)).astype(np.float32)
    means = image.mean((1, 2))
    softmax = np.exp(means) / np.exp(means).sum()
    for net in (Mean(), Mean(lambda found: torch.softmax(found, 1))):
        assert np.abs(published(tmp_path, net, 20).run(list(image)) - softmax).max() <= 1e-6


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (lambda found: 1e4 * found.sum(1), ()),
        (lambda found: 1e4 * found[:, :1], ("height",)),
        (lambda found: 1e4 * found[:, :2], ("height", "width")),
    ],
)
def test_without_classes_the_numbers_are_the_answer(
    made: Callable[[Tensor], Tensor], names: tuple[str, ...], tmp_path: Path
) -> None:
    register_network(
        Mean(made), name="test", size=20, mean=(0.5,) * 3, std=(0.25,) * 3, names=names, models_dir=tmp_path
    )
    model = load_model(tmp_path / "test", Options(device="cpu"))
    assert (model.manifest.output.kind, model.manifest.output.names, model.manifest.classes) == ("numbers", names, ())
    image = np.random.default_rng(1).uniform(-2, 2, (3, 20, 20)).astype(np.float32)
    payload = model.predictor.parse({"input": image}, b"", "application/json").payload or b""
    (found,) = model.predictor.predict([payload])
    assert isinstance(found, bytes)
    right = made(torch.from_numpy(image[None]).mean((2, 3))).reshape(-1)
    assert np.allclose(unpack(found), right, rtol=1e-5, atol=1e-2)
    assert unpack(found).shape == (len(names) or 1,)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda found: found[:, :2], r"makes \[2, 2\] numbers, not 3 for each"),
        (lambda found: (found, found), "makes tuple, not 3 for each"),
        (lambda found: found @ found, "cannot compute its images"),
    ],
)
def test_what_is_no_row_of_numbers_for_each_image_is_refused(made: Callable[[Tensor], Any], message: str) -> None:
    spec = Image(size=(20, 20), mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ConfigurationError, match=message) as refused:
        export(Mean(made), spec, 3)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_computed_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = OneChannel().to(dtype)
    image = np.random.default_rng(1).standard_normal((1, 20, 20, 1)).astype(np.float32)
    found = published(tmp_path, net, 20, channels=1).run(list(image))
    with torch.inference_mode():
        exact = torch.softmax(net.float().eval()(torch.from_numpy(image).permute(0, 3, 1, 2)), 1).numpy()
    assert np.abs(found - exact).max() <= 1e-6


# From a file


def state(tmp_path: Path, name: str, **more: object) -> Path:
    torch.manual_seed(0)
    tensors = build("squeezenet1_1", 3).state_dict()
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(tensors, tmp_path / name)
    else:
        torch.save(tensors | more, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("name", ["birds.pt", "birds.safetensors"])
def test_a_state_dict_is_published_by_its_architecture_and_a_file_of_labels(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    about = ["--architecture", "squeezenet1_1", "--size", "64", "--classes", str(tmp_path / "labels.txt")]
    register.main([str(state(tmp_path, name)), *about, "--out", str(tmp_path)])
    manifest = load_model(tmp_path / "birds", Options(device="cpu")).manifest
    assert [each.label for each in manifest.classes] == CLASSES
    assert manifest.image is not None and manifest.image.size == (64, 64)
    assert "birds: 3 classes" in capsys.readouterr().out


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return Path.touch, (Path("bomb"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("more", "arguments", "message"),
    [
        ({"x": Bomb()}, (), "not a plain state dict"),
        ({"epoch": 3}, (), "its member 'epoch' is no tensor"),
        ({}, ("--architecture", "resnet18"), "do not fit the network: .*Missing key"),
        ({}, ("--architecture", "resnet19"), "Unknown architecture 'resnet19'; it is one of"),
        ({}, ("--classes", "a,b"), "size mismatch for classifier.1.weight"),
        ({}, ("--name", "My Birds"), "name: String should match pattern"),
        ({}, ("--size", "64", "--resize", "32"), "cannot crop"),
        ({"epoch.bias": torch.zeros(3)}, (), "Unexpected key"),
    ],
)
def test_a_file_that_cannot_be_published_ends_in_one_sentence_and_executes_nothing(
    more: dict[str, object],
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    about = ["--architecture", "squeezenet1_1", "--size", "64", "--classes", "a,b,c", "--out", "models", *arguments]
    with pytest.raises(SystemExit, match=message) as stopped:
        register.main([str(state(tmp_path, "birds.pt", **more)), *about])
    assert str(stopped.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["birds.pt"]


def field(number: int, value: int | bytes) -> bytes:
    """One of a protocol buffer's fields."""

    def varint(value: int) -> bytes:
        return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])

    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def onnx(weights: Any) -> bytes:
    """The means of an image's channels times ``weights``, in ONNX's own format."""

    def tensor_type(*sides: int | str) -> bytes:
        shape = b"".join(
            field(1, field(1, side) if isinstance(side, int) else field(2, side.encode())) for side in sides
        )
        return field(2, field(1, field(1, 1) + field(2, shape)))

    def node(kind: str, inputs: list[str], output: str) -> bytes:
        names = b"".join(field(1, name.encode()) for name in inputs)
        return field(1, names + field(2, output.encode()) + field(4, kind.encode()))

    rows, columns = weights.shape
    nodes = [
        node("GlobalAveragePool", ["images"], "pooled"),
        node("Flatten", ["pooled"], "flat"),
        node("MatMul", ["flat", "weights"], "logits"),
    ]
    values = struct.pack(f"<{weights.size}f", *weights.flat)
    initializer = field(1, rows) + field(1, columns) + field(2, 1) + field(8, b"weights") + field(9, values)
    graph = b"".join(nodes) + field(2, b"graph") + field(5, initializer)
    graph += field(11, field(1, b"images") + tensor_type("n", 3, 20, 20))
    graph += field(12, field(1, b"logits") + tensor_type("n", columns))
    return field(1, 8) + field(7, graph) + field(8, field(1, b"") + field(2, 17))


def test_an_onnx_file_is_served_by_cpus(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    (tmp_path / "own.onnx").write_bytes(onnx(weights))
    register.main([str(tmp_path / "own.onnx"), "--size", "20", "--classes", "a,b,c", "--out", str(tmp_path)])
    made = read_artifact(tmp_path / "own")
    image = np.random.default_rng(1).standard_normal((1, 20, 20, 3)).astype(np.float32)
    assert made.manifest.image is not None
    logits = image.mean((1, 2)) @ weights
    found = CpuRunner(made, made.manifest.image, 1).run(list(image))
    assert np.abs(found - np.exp(logits) / np.exp(logits).sum()).max() <= 1e-6
    with pytest.raises(ConfigurationError, match=r"Model own has no program for torch: .* set PREDICT_DEVICE=cpu"):
        restore(made)
