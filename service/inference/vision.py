"""Any torchvision ResNet, on images or arrays. The one module by which torch enters the service, when first needed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, InvalidInput, PredictionFailed
from service.inference import image_input
from service.inference.artifact import Artifact, fingerprint, library_versions
from service.inference.image_input import Pixels
from service.inference.images import PREPROCESSING_VERSION
from service.inference.manifest import Image
from service.inference.network import Runner, compute_in_float32, resolve_device, restore, use_threads
from service.inference.predictor import Options, Prediction, Question, pack

LIBRARIES = ("torch", "torchvision", "pillow", "numpy")


def load(artifact: Artifact, options: Options) -> VisionPredictor:
    """Restore the network on the device that ``options`` ask for; raises ConfigurationError."""
    manifest = artifact.manifest
    if manifest.image is None:
        raise ConfigurationError(f"Model {manifest.name} is of the kind vision, but its manifest has no image.")
    _check_spec(manifest.image, manifest.name)
    use_threads(max(1, options.threads))
    device = resolve_device(options.device)
    compute_in_float32()
    network = restore(manifest.image, len(manifest.classes), artifact.weights, manifest.weights.file)
    return VisionPredictor(artifact, manifest.image, Runner(network, device, options.max_batch_size), options)


def _check_spec(spec: Image, name: str) -> None:
    channels = len(spec.mode)
    if not len(spec.mean) == len(spec.std) == channels:
        raise ConfigurationError(f"Model {name} takes {spec.mode} images: mean and std need {channels} values each.")
    if min(spec.size) < 1 or (spec.resize is not None and spec.resize < max(spec.size)):
        raise ConfigurationError(f"Model {name} cannot crop {spec.size} out of images resized to {spec.resize}.")
    if min(spec.std) <= 0:
        raise ConfigurationError(f"Model {name} divides by a std of {min(spec.std)}.")


class VisionPredictor:
    """Images or channels × height × width arrays in, float32 probability vectors out."""

    key_kind: Literal["exact", "cells", "digest"] = "digest"

    def __init__(self, artifact: Artifact, spec: Image, runner: Runner, options: Options) -> None:
        self._spec = spec
        self._runner = runner
        self._threads = max(1, options.threads)
        self._example = artifact.manifest.example.inputs.get("image")
        self.fingerprint = fingerprint(
            artifact,
            preprocessing=f"vision-{PREPROCESSING_VERSION}",
            libraries=library_versions(*LIBRARIES),
            device=runner.device.type,
            precision=f"float32-{runner.kernels}",
        )

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        image: dict[str, Any] = {
            "type": "string",
            "contentEncoding": "base64url",
            "description": "A PNG, JPEG or WebP file in base64url, padding optional.",
        }
        digest: dict[str, Any] = {
            "type": "string",
            "pattern": "^[0-9A-Fa-f]{64}$",
            "description": "Instead of the image, the SHA-256 in hex of a file that was asked before.",
        }
        if self._example is not None:
            file = image_input.decode_base64(self._example)
            image["example"] = base64.urlsafe_b64encode(file).rstrip(b"=").decode()
            digest["example"] = hashlib.sha256(file).hexdigest()
        return {"image": image, "sha256": digest}

    def parse(self, params: Mapping[str, Any], body: bytes, content_type: str | None) -> Question:
        """One image, array or digest; see image_input.py."""
        return image_input.parse(params, body, content_type, self._spec)

    def predict(self, batch: Sequence[bytes]) -> Sequence[Prediction | Exception]:
        """Later images are decoded in other threads while earlier ones are computed."""
        workers = min(self._threads, len(batch))
        if workers <= 1:
            return self._answers(map(self._load, batch))
        with ThreadPoolExecutor(workers, "decode") as pool:
            return self._answers(pool.map(self._load, batch))

    def _load(self, payload: bytes) -> Pixels | InvalidInput:
        try:
            return image_input.load_pixels(payload, self._spec)
        except InvalidInput as error:
            return error

    def _answers(self, items: Iterator[Pixels | InvalidInput]) -> list[Prediction | Exception]:
        answers: list[Prediction | Exception] = []
        while chunk := list(islice(items, self._runner.chunk)):
            images = [item for item in chunk if not isinstance(item, InvalidInput)]
            rows = iter(self._runner(np.stack(images))) if images else iter(())
            answers += [item if isinstance(item, InvalidInput) else _answer(next(rows)) for item in chunk]
        return answers


def _answer(probabilities: NDArray[np.float32]) -> Prediction | PredictionFailed:
    if not np.isfinite(probabilities).all():
        return PredictionFailed("the model's answer is not finite")
    return pack(probabilities)
