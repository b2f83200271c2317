"""Train an image model: ``python -m training.resnet [--data digits | --data DIR | --imagenet]``.

digits: scikit-learn's bundled scans, nothing to download. DIR: your own pictures, a folder per class.
--imagenet: no training; the published weights, downloaded or from a file. --architecture: any of torchvision's.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from service.errors import ConfigurationError, InvalidInput
from service.inference.artifact import Artifact
from service.inference.loading import load_predictor
from service.inference.manifest import Image, Manifest
from service.inference.predictor import Options, unpack
from service.inference.vision.images import read
from training import MODELS_DIR, check_name, command, digits, publish, published
from training.export import export, one_line
from training.networks import draft, make, publish_files
from training.published import adopt, build, read_state

SEED = 0
BATCH = 64
EVALUATION_BATCH = 64
HELD_OUT = 0.2
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
DIGITS = Image(architecture="resnet18", size=(32, 32), mean=(0.3, 0.3, 0.3), std=(0.38, 0.38, 0.38))

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
    """A sub-directory of images per class; hidden files and folders are passed by. Raises ConfigurationError."""
    try:
        folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ConfigurationError(f"--data {directory} cannot be read ({error.strerror}).") from None
    found = {folder.name: list(_images(folder)) for folder in folders}
    if empty := [label for label, files in found.items() if not files]:
        raise ConfigurationError(f"--data {directory}: there is no image of {', '.join(empty)}.")
    items: list[Labelled] = [(file, label) for label, files in enumerate(found.values()) for file in files]
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(SEED)).tolist()
    shuffled = [items[index] for index in order]
    tests = max(1, round(HELD_OUT * len(items)))
    if len(items) - tests < 2:
        raise ConfigurationError(f"--data {directory}: {len(items)} images are too few to train with.")
    name = name or re.sub(r"[^a-z0-9_.\-]+", "-", directory.resolve().name.lower()).lstrip("-_.")
    return Source(name, f"One of {len(found)} kinds of pictures.", list(found), shuffled[tests:], shuffled[:tests])


def _images(folder: Path) -> Iterator[Path]:
    """Those of sub-folders, too; prints which hidden ones are passed by, such as the ``._photo.jpg`` of a Mac."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                print(f"{path} is hidden, and is passed by.")
            else:
                yield path


def load(item: Labelled, spec: Image) -> Tensor:
    """The file as the service would read it, however large, channels × height × width; raises ConfigurationError."""
    file, _ = item
    try:
        return torch.from_numpy(read(contents(file), spec, sys.maxsize)).permute(2, 0, 1)
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
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
                found = network(images.to(device))
                logits = found if isinstance(found, Tensor) else found[0]  # GoogLeNet returns more while it is trained
                loss = nn.functional.cross_entropy(logits, labels.to(device))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                progress = f"epoch {epoch}/{epochs}, batch {step}/{steps}, loss {loss.item():.3f}"
                print(f"\r{source.name}: {progress} ", end="", flush=True)
    print()
    network.cpu().eval()


def accuracy(made: Artifact, items: Sequence[Labelled]) -> float:
    """The share of the files of which the model, as it is served, predicts the class."""
    predictor = load_predictor(made, Options(threads=os.cpu_count() or 1, max_image_pixels=sys.maxsize))
    right = 0
    for start in range(0, len(items), EVALUATION_BATCH):
        batch = items[start : start + EVALUATION_BATCH]
        answers = predictor.predict([contents(file) for file, _ in batch])
        for answer, (_, label) in zip(answers, batch, strict=True):
            if isinstance(answer, Exception):
                raise ConfigurationError(f"A held-out image is refused: {answer}")
            right += int(unpack(answer).argmax()) == label
    return right / len(items)


def train(source: Source, spec: Image, options: argparse.Namespace) -> Manifest:
    """Fit, measure on the held-out files and publish; raises ConfigurationError."""
    smallest = min((contents(file) for file, _ in source.held_out), key=len)
    plan = draft(source.name, spec, source.labels, smallest, source.description)
    if options.epochs < 1 and options.weights is None:
        raise ConfigurationError("--epochs 0 publishes --weights as they are: name their file.")
    torch.manual_seed(SEED)
    network = build(spec.architecture, len(source.labels))
    if options.weights is not None:
        adopt(network, read_state(options.weights), other_classes=options.epochs > 0)
    if options.epochs > 0:
        try:
            fit(network, source, spec, options.epochs, options.rate)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ConfigurationError(f"{spec.architecture} cannot learn {source.name} ({one_line(error)}).") from error
    made = make(plan, export(network.eval(), spec, len(source.labels), "logits"))
    measured = made.manifest.model_copy(update={"accuracy": accuracy(made, source.held_out)})
    return publish(options.out, measured, made.weights, *made.parts)


def imagenet(architecture: str, out: Path, name: str, file: Path | None) -> Manifest:
    """Publish the weights that torchvision publishes, downloaded or from ``file``; raises ConfigurationError."""
    found = published.fetch(architecture, file)
    files = export(found.network, found.spec, len(found.labels), "logits")
    about = "One of ImageNet's thousand kinds of things."
    return publish_files(
        files, name, found.spec, found.labels, models_dir=out, accuracy=found.accuracy, description=about
    )


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
    parser.add_argument(
        "--weights", type=Path, help="a state dict, .pt or .safetensors, to start from, or (--imagenet) to publish"
    )
    parser.add_argument("--name", help="what the model is called in URLs")
    parser.add_argument("--architecture", default="resnet18", help="any classification network of torchvision's")
    parser.add_argument("--epochs", type=int, default=6, help="0 publishes --weights as they are")
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--out", type=Path, default=MODELS_DIR, help="where model directories live")
    return parser


def run(options: argparse.Namespace) -> Manifest:
    """Raises ConfigurationError. The name is checked before anything is trained."""
    check_name(options.name or "digits")
    if options.imagenet:
        return imagenet(options.architecture, options.out, options.name or "imagenet", options.weights)
    if options.data == "digits":
        source, spec = digits_source(options.name or "digits"), DIGITS
        spec = spec.model_copy(update={"architecture": options.architecture})
    else:
        spec = published.spec_of(options.architecture)
        source = folder_source(Path(options.data), options.name)
    return train(source, spec, options)


def main(arguments: Sequence[str] | None = None) -> None:
    options = arguments_parser().parse_args(arguments)
    if options.export_test:
        print(f"{options.export_test}: {digits.export(options.export_test)} images")
        return
    command(partial(run, options), options.out)


if __name__ == "__main__":
    main()
