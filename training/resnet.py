"""Make an image model: ``python -m training.resnet [--data digits | --data DIR | --imagenet]``.

digits: scikit-learn's bundled scans, nothing to download. DIR: your own pictures, a folder per class.
--imagenet: no training; the published weights, downloaded or from a file.
"""

from __future__ import annotations

import argparse
import base64
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from service.errors import ConfigurationError, InvalidInput
from service.inference.artifact import Artifact, library_versions
from service.inference.loading import load_predictor
from service.inference.manifest import Class, Example, Image, Manifest, Weights, reason
from service.inference.predictor import Options, unpack
from service.inference.vision.cpu import has_openvino
from service.inference.vision.device import resolve_device
from service.inference.vision.images import read
from service.inference.vision.predictor import LIBRARIES
from service.inference.vision.state_dict import Tensors, read_state
from service.inference.vision.torch_network import LIBRARIES as TORCH
from service.inference.vision.torch_network import build
from training import MODELS_DIR, check_name, digits, publish, published

SEED = 0
BATCH = 64
EVALUATION_BATCH = 64
HELD_OUT = 0.2
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
DIGITS = Image(architecture="resnet18", size=(32, 32), mean=(0.3, 0.3, 0.3), std=(0.38, 0.38, 0.38))
FOLDER = Image(
    architecture="resnet18", size=(224, 224), resize=256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)

Labelled = tuple[bytes | Path, int]
"""An image file, in memory or on disk, and the index of its class."""


@dataclass(frozen=True, slots=True)
class Source:
    """What to learn: the model's name, its classes' labels, and files to train and to test with."""

    name: str
    description: str
    labels: Sequence[str]
    train: Sequence[Labelled]
    held_out: Sequence[Labelled]


def contents(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def digits_source(name: str) -> Source:
    train, held_out = digits.split()
    description = "The handwritten digit in a small picture, white ink on black."
    return Source(name, description, [str(digit) for digit in range(10)], train, held_out)


def folder_source(directory: Path, name: str | None) -> Source:
    """A sub-directory per class, as torchvision's ImageFolder; raises ConfigurationError."""
    try:
        found = ImageFolder(directory, is_valid_file=lambda path: path.lower().endswith(SUFFIXES))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigurationError(f"--data {directory}: {error}") from None
    items: list[Labelled] = [(Path(path), label) for path, label in found.samples]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(SEED)).tolist()
    shuffled = [items[index] for index in order]
    tests = max(1, round(HELD_OUT * len(items)))
    if len(items) - tests < 2:
        raise ConfigurationError(f"--data {directory}: {len(items)} images are too few to train with.")
    description = f"One of {len(found.classes)} kinds of pictures."
    name = name or re.sub(r"[^a-z0-9_.\-]+", "-", directory.resolve().name.lower()).lstrip("-_.")
    return Source(name, description, found.classes, shuffled[tests:], shuffled[:tests])


def load(item: Labelled, spec: Image) -> Tensor:
    """The file as the service would read it, channels × height × width; raises ConfigurationError."""
    file, _ = item
    try:
        return torch.from_numpy(read(contents(file), spec)).permute(2, 0, 1)
    except InvalidInput as error:
        raise ConfigurationError(f"{file if isinstance(file, Path) else 'A training image'}: {error}") from None


def batches(items: Sequence[Labelled], spec: Image, pool: Executor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels; each batch is read while the one before it is learnt from."""

    def submit(start: int) -> list[Future[Tensor]]:
        return [pool.submit(load, item, spec) for item in items[start : start + BATCH]]

    ahead = submit(0)
    for start in range(0, len(items), BATCH):
        reading, ahead = ahead, submit(start + BATCH)
        images = torch.stack([image.result() for image in reading])
        yield images, torch.tensor([label for _, label in items[start : start + BATCH]])


def fit(network: nn.Module, source: Source, spec: Image, epochs: int, rate: float) -> None:
    """Train in place: AdamW, the learning rate up to ``rate`` and down again; prints its progress."""
    device = resolve_device("auto")
    network.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), rate, fused=True)
    # A batch norm cannot learn from a single image, so a last batch of one is left out.
    count = len(source.train) - (len(source.train) % BATCH == 1)
    steps = math.ceil(count / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs=epochs, steps_per_epoch=steps)
    with ThreadPoolExecutor(os.cpu_count(), "read") as pool:
        for epoch in range(1, epochs + 1):
            order = torch.randperm(len(source.train)).tolist()[:count]
            shuffled = [source.train[index] for index in order]
            for step, (images, labels) in enumerate(batches(shuffled, spec, pool), 1):
                loss = nn.functional.cross_entropy(network(images.to(device)), labels.to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                progress = f"epoch {epoch}/{epochs}, batch {step}/{steps}, loss {loss.item():.3f}"
                print(f"\r{source.name}: {progress} ", end="", flush=True)
    print()
    network.cpu().eval()


def accuracy(draft: Manifest, weights: bytes, items: Sequence[Labelled]) -> float:
    """The share of the files that the model, served, gives their own class."""
    predictor = load_predictor(Artifact(draft, weights), Options(threads=os.cpu_count() or 1))
    right = 0
    for start in range(0, len(items), EVALUATION_BATCH):
        batch = items[start : start + EVALUATION_BATCH]
        answers = predictor.predict([contents(file) for file, _ in batch])
        for answer, (_, label) in zip(answers, batch, strict=True):
            if isinstance(answer, Exception):
                raise ConfigurationError(f"A held-out image is refused: {answer}")
            right += int(unpack(answer).argmax()) == label
    return right / len(items)


def draft(name: str, description: str, spec: Image, labels: Sequence[str], weights: bytes, example: bytes) -> Manifest:
    """The manifest up to what is measured later; raises ConfigurationError."""
    try:
        return Manifest(
            name=name,
            kind="vision",
            weights=Weights.of(weights, "safetensors"),
            image=spec,
            classes=tuple(Class(value=str(index), label=label) for index, label in enumerate(labels)),
            cost_seconds=1.0,
            example=Example(inputs={"image": base64.b64encode(example).decode()}, golden=[0.0] * len(labels)),
            versions=library_versions(*TORCH, *LIBRARIES, *(("openvino",) if has_openvino() else ())),
            description=description,
        )
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {reason(error)}.") from None


def train(source: Source, spec: Image, out: Path, epochs: int, rate: float, start: Path | None = None) -> Manifest:
    """Fit, measure on the held-out files and publish; raises ConfigurationError. ``start``: weights to begin with."""
    torch.manual_seed(SEED)
    network = build(spec.architecture, spec.mode, len(source.labels))
    if start is not None:
        adopt(network, read_state(read_file(start), start.name))
    fit(network, source, spec, epochs, rate)
    weights = state_bytes(network.state_dict())
    smallest = min((contents(file) for file, _ in source.held_out), key=len)
    manifest = draft(source.name, source.description, spec, source.labels, weights, smallest)
    return publish(out, manifest.model_copy(update={"accuracy": accuracy(manifest, weights, source.held_out)}), weights)


def adopt(network: nn.Module, state: Tensors) -> None:
    """Take over all weights but, where the classes are others, those of the last layer; raises ConfigurationError."""
    own, found = network.state_dict(), {name: torch.as_tensor(each) for name, each in state.items()}
    if any(found[name].shape != own[name].shape for name in ("fc.weight", "fc.bias") if name in found):
        found |= {name: own[name] for name in ("fc.weight", "fc.bias")}
    try:
        network.load_state_dict(found)
    except RuntimeError as error:
        raise ConfigurationError(f"--weights: {error!s:.300}") from None


def imagenet(architecture: str, out: Path, name: str, file: Path | None) -> Manifest:
    """Publish the weights that torchvision publishes, downloaded or from ``file``; raises ConfigurationError."""
    build(architecture, "RGB", 1)
    found = published.fetch(architecture, file)
    weights = state_bytes(found.state)
    manifest = draft(
        name, "One of ImageNet's thousand kinds of things.", found.spec, found.labels, weights, found.example
    )
    return publish(out, manifest.model_copy(update={"accuracy": found.accuracy}), weights)


def state_bytes(state: dict[str, Tensor]) -> bytes:
    """As safetensors, which the service reads without importing torch."""
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read ({error.strerror}).") from None


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.resnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--data", default="digits", help="`digits`, or a folder with a sub-folder of images per class")
    what.add_argument("--imagenet", action="store_true", help="publish torchvision's ImageNet weights")
    what.add_argument(
        "--export-test", type=Path, metavar="DIR", help="write the held-out digits as <digit>_<number>.png"
    )
    parser.add_argument("--weights", type=Path, help="a state dict to start from, or (--imagenet) the published file")
    parser.add_argument("--name", help="what the model is called in URLs")
    parser.add_argument("--architecture", default="resnet18", help="any torchvision ResNet")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--out", type=Path, default=MODELS_DIR, help="where model directories live")
    return parser


def run(options: argparse.Namespace) -> Manifest:
    if options.imagenet:
        return imagenet(options.architecture, options.out, options.name or "imagenet", options.weights)
    source, spec = (
        (digits_source(options.name or "digits"), DIGITS)
        if options.data == "digits"
        else (folder_source(Path(options.data), options.name), FOLDER)
    )
    spec = spec.model_copy(update={"architecture": options.architecture})
    return train(source, spec, options.out, options.epochs, options.rate, options.weights)


def main(arguments: Sequence[str] | None = None) -> None:
    options = arguments_parser().parse_args(arguments)
    if options.export_test:
        print(f"{options.export_test}: {digits.export(options.export_test)} images")
        return
    try:
        check_name(options.name or "digits")
        manifest = run(options)
    except ConfigurationError as error:
        sys.exit(str(error))
    cost = f"{manifest.cost_seconds * 1e3:.1f} ms a prediction"
    print(f"{manifest.name}: held-out accuracy {manifest.accuracy:.3f}, {cost}: {options.out / manifest.name}")


if __name__ == "__main__":
    main()
