"""Publish any image network: ``register_network(module, name=…, size=…, classes=…)``, or one from a file:

``python -m training.register weights.safetensors --architecture efficientnet_b0 --classes labels.txt``
"""

from __future__ import annotations

import argparse
import base64
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from torch import nn

from service.errors import ConfigurationError
from service.inference.artifact import Artifact, library_versions
from service.inference.manifest import PROBABILITIES, Class, Example, Image, Manifest, Output, Weights, reason
from service.inference.vision.cpu import CpuRunner, has_openvino
from service.inference.vision.predictor import LIBRARIES
from training import MODELS_DIR, command, publish
from training.export import Files, Meaning, export, export_onnx, noise
from training.published import adopt, build, gradient, read_state, spec_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def register_network(
    module: nn.Module,
    *,
    name: str,
    size: int | tuple[int, int],
    classes: Sequence[str] = (),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    **more: Any,
) -> Manifest:
    """Publish a trained network from images, normalised and channels × height × width, to one number per class.

    Without classes its numbers are the answer: one, or one for each of ``names``. ``mean`` and ``std`` of one value:
    grey images. ``more``: ``resize`` and ``interpolation`` (see Image); ``output``
    ("logits" or "probabilities"; default: found out); ``example``, an image file to warm up and measure with;
    ``models_dir``; ``accuracy`` and ``description``. Raises ConfigurationError; the module stays as it is.
    """
    how = {key: more.pop(key) for key in ("resize", "interpolation") if key in more}
    spec = image_spec(size, mean, std, architecture=type(module).__name__, **how)
    width = len(classes) or len(more.get("names", ())) or 1
    files = export(module, spec, width, more.pop("output", None) if classes else "numbers")
    return publish_files(files, name, spec, classes, **more)


def image_spec(size: int | tuple[int, int], mean: Sequence[float], std: Sequence[float], **how: Any) -> Image:
    """Raises ConfigurationError."""
    sides = (size, size) if isinstance(size, int) else size
    mode: Literal["L", "RGB"] = "L" if len(mean) == 1 else "RGB"
    try:
        return Image(size=sides, mode=mode, mean=tuple(mean), std=tuple(std), **how)
    except ValidationError as error:
        raise ConfigurationError(f"The network's images: {reason(error)}.") from None


def publish_files(
    files: Files,
    name: str,
    spec: Image,
    labels: Sequence[str],
    *,
    names: Sequence[str] = (),
    example: bytes | None = None,
    models_dir: Path = MODELS_DIR,
    accuracy: float | None = None,
    description: str = "",
) -> Manifest:
    """Publish what ``export`` made; raises ConfigurationError."""
    made = make(draft(name, spec, labels, example or gradient(), description, names), files)
    return publish(models_dir, made.manifest.model_copy(update={"accuracy": accuracy}), made.weights, *made.parts)


def draft(
    name: str, spec: Image, labels: Sequence[str], example: bytes, description: str, names: Sequence[str] = ()
) -> Manifest:
    """The manifest up to its files and what is measured; raises ConfigurationError."""
    output = PROBABILITIES if labels else Output(kind="numbers", names=tuple(names))
    golden = [0.0] * (len(labels or names) or 1)
    try:
        return Manifest(
            name=name,
            kind="vision",
            weights=Weights.of(b"", "pt2"),
            image=spec,
            classes=tuple(Class(value=str(index), label=label) for index, label in enumerate(labels)),
            output=output,
            cost_seconds=1.0,
            example=Example(inputs={"image": base64.b64encode(example).decode()}, golden=golden),
            versions=library_versions("torch", *LIBRARIES, *(("openvino",) if has_openvino() else ())),
            description=description,
        )
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {reason(error)}.") from None


def make(draft: Manifest, files: Files) -> Artifact:
    """The model with its files, and with what a CPU may compute at once; raises ConfigurationError."""
    named, *others = (Weights.of(data, extension) for extension, data in files.items())
    weights, *parts = files.values()
    manifest = draft.model_copy(update={"weights": named, "parts": tuple(others)})
    made = Artifact(manifest, weights, tuple(parts))
    if "xml" not in files or manifest.image is None or is_batch_invariant(made, manifest.image):
        return made
    print(f"{draft.name}: an image has other last bits among others than alone, so a CPU computes one at a time.")
    image = manifest.image.model_copy(update={"batched": False})
    return Artifact(manifest.model_copy(update={"image": image}), weights, tuple(parts))


def is_batch_invariant(made: Artifact, spec: Image) -> bool:
    """Whether a CPU gives an image the same bits alone and in a batch. Tested with noise."""
    return all(_says_the_same(made, spec, threads) for threads in {1, os.cpu_count() or 1})


def _says_the_same(made: Artifact, spec: Image, threads: int) -> bool:
    try:
        runner = CpuRunner(made, spec, threads)
        images = list(noise(spec, runner.chunk))
        together = np.stack(runner.run(images))
        parts = [slice(0, 7), *(slice(row, row + 1) for row in range(runner.chunk))]
        return all(np.array_equal(np.stack(runner.run(images[part])), together[part]) for part in parts)
    except (ConfigurationError, RuntimeError):
        return False  # the graph takes one image at a time; if it takes none either, publishing fails with the reason


def main(arguments: Sequence[str]) -> None:
    options = _parser().parse_args(arguments)
    command(partial(register_file, options), options.out)


def register_file(options: argparse.Namespace) -> Manifest:
    """Publish a state dict of one of torchvision's networks, or an ONNX file; raises ConfigurationError."""
    labels, name = _labels(options.classes), options.name or options.file.stem.lower()
    names = () if labels else tuple(_labels(options.names))
    output: Meaning | None = options.output if labels else "numbers"
    width = len(labels or names) or 1
    about = {"models_dir": options.out, "example": options.example and options.example.read_bytes(), "names": names}
    if options.file.suffix.lower() == ".onnx":
        if options.size is None:
            raise ConfigurationError("Of an ONNX file --size says how large its images are.")
        spec = image_spec(
            options.size, options.mean or IMAGENET_MEAN, options.std or IMAGENET_STD, resize=options.resize
        )
        return publish_files(export_onnx(options.file, spec, width, output), name, spec, labels, **about)
    if options.architecture is None:
        raise ConfigurationError("--architecture says which of torchvision's networks these weights belong to.")
    known = spec_of(options.architecture)
    own = options.size is not None or options.resize is not None
    spec = image_spec(
        options.size or known.size,
        options.mean or known.mean,
        options.std or known.std,
        resize=options.resize if own else known.resize,
        interpolation=known.interpolation,
        architecture=options.architecture,
    )
    network = build(options.architecture, width)
    adopt(network, read_state(options.file))
    return publish_files(export(network, spec, width, output), name, spec, labels, **about)


def _labels(text: str) -> list[str]:
    """``x,y``, or a file with one a line; raises ConfigurationError."""
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines() if Path(text).is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--classes {text} cannot be read ({error}).") from None
    return [line.strip() for line in lines if line.strip()]


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.register", description="Serve your own image network.")
    parser.add_argument("file", type=Path, help="a state dict (.pt, .safetensors), or an ONNX file, for CPUs only")
    parser.add_argument("--architecture", help="which of torchvision's networks it is")
    parser.add_argument("--name", help="what it is called in URLs; default the file's name")
    parser.add_argument("--classes", default="", help="x,y, or a file with a label a line, in the network's order")
    parser.add_argument(
        "--names", default="", help="without classes the answer is numbers: x,y, a name for each of them"
    )
    parser.add_argument("--size", type=int, help="side of the square that the network is given")
    parser.add_argument("--resize", type=int, help="length of the shorter side before the square is cut out")
    parser.add_argument("--mean", type=_numbers, help="0.5,0.5,0.5: a value per channel; one value: grey images")
    parser.add_argument("--std", type=_numbers, help="as --mean")
    parser.add_argument("--output", choices=("logits", "probabilities"), help="default: found out")
    parser.add_argument("--example", type=Path, help="an image to warm up and measure with")
    parser.add_argument("--out", type=Path, default=MODELS_DIR, help="where model directories live")
    return parser
