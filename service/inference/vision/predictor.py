"""Any network, on images or arrays. torch is imported only where it is needed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from service.errors import ConfigurationError, InvalidInput, PredictionFailed, ServiceError
from service.inference.artifact import Artifact, fingerprint, library_versions
from service.inference.manifest import Image
from service.inference.predictor import EXAMPLE_TOLERANCE, Options, Prediction, Question, pack
from service.inference.vision import image_input
from service.inference.vision.cpu import CpuRunner
from service.inference.vision.device import resolve_device
from service.inference.vision.images import PREPROCESSING_VERSION, reuse_memory
from service.inference.vision.runner import Batch, Runner, Vector

LIBRARIES = ("pillow", "numpy")
"""Those that make a file into what the network is given."""

TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""How far apart two answers to one question may be that were computed in batches of other sizes."""

MAX_DECODE_THREADS = 4
"""More threads decode no faster, since they wait for Python's lock, and the event loop waits with them: on 16 cores an
image took 1.13, 0.90, 0.44, 0.41 and 0.42 ms with 1, 2, 4, 8 and 16 threads, and 256 clients got 1,590 images/s with 4
threads and 1,120 with 16."""

DECODERS = {"pillow": "", "gpu": "-nvjpeg"}
"""What each adds to the fingerprint: a file's pixels depend on who decodes it."""


def load(artifact: Artifact, options: Options) -> VisionPredictor:
    """Restore the network on the device that ``options`` ask for; raises ConfigurationError."""
    manifest = artifact.manifest
    if manifest.image is None:
        raise ConfigurationError(f"Model {manifest.name} is of the kind vision, but its manifest has no image.")
    check_spec(manifest.image, manifest.name)
    reuse_memory()
    if artifact.file("xml") is None and artifact.file("pt2") is None:
        raise ConfigurationError(
            f"Model {manifest.name} is of an older version: make it again with training.resnet or training.register."
        )
    device = resolve_device(options.device)
    _check_options(options, device)
    runner: Runner
    if device == "cpu":
        runner = CpuRunner(artifact, manifest.image, max(1, options.threads))
    else:
        runner, options = _on_gpu(artifact, manifest.image, options)
    return VisionPredictor(artifact, manifest.image, runner, options)


def _check_options(options: Options, device: str) -> None:
    """Raises ConfigurationError for what the device cannot do, or may not be used for."""
    if device == "cuda" and not options.owns_device:
        raise ConfigurationError(
            "Several workers would share one GPU: set PREDICT_WORKERS=1, or PREDICT_DEVICE=cpu, "
            "or PREDICT_SHARE_DEVICE=true."
        )
    if device == "cpu" and options.precision != "float32":
        raise ConfigurationError(f"PREDICT_PRECISION={options.precision} needs a GPU; a CPU computes in float32.")
    if device == "cpu" and options.decode == "gpu":
        raise ConfigurationError("PREDICT_DECODE=gpu needs a GPU; without one, use pillow.")


def _on_gpu(artifact: Artifact, spec: Image, options: Options) -> tuple[Runner, Options]:
    """The runner, and the options that suit the network: some networks take one image at a time."""
    from service.inference.vision.cuda import Cuda, compute_exactly, is_out_of_memory
    from service.inference.vision.gpu import GpuRunner
    from service.inference.vision.program import module, restore, takes_batches, use_threads

    use_threads(max(1, options.threads))
    compute_exactly()
    program, cuda, width = restore(artifact), Cuda(), len(artifact.manifest.example.golden)
    if not takes_batches(program):
        options = replace(options, max_batch_size=1)
    try:
        return GpuRunner(module(program, cuda.name), spec, width, cuda, options), options
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigurationError("The GPU has too little free memory: set a smaller PREDICT_MAX_BATCH_SIZE.") from None


def check_spec(spec: Image, name: str) -> None:
    """Raises ConfigurationError."""
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
        self._most = options.max_batch_size
        self._max_pixels = options.max_image_pixels
        self._threads = max(1, min(options.threads, MAX_DECODE_THREADS))
        self._pool = ThreadPoolExecutor(self._threads, "decode")
        self.slots = runner.slots
        scale = max(1.0, *map(abs, artifact.manifest.example.golden))  # probabilities are not larger, numbers may be
        self.tolerance = TOLERANCES[options.precision] * scale
        decoding = EXAMPLE_TOLERANCE if options.decode == "pillow" else 0.05
        self.example_tolerance = max(self.tolerance, decoding * scale)
        self._example = artifact.manifest.example.inputs.get("image")
        self.fingerprint = fingerprint(
            artifact,
            preprocessing=f"vision-{PREPROCESSING_VERSION}{DECODERS[options.decode]}",
            libraries=library_versions(*LIBRARIES, *runner.libraries),
            device=runner.device,
            precision=f"{options.precision}-{runner.kernels}",
        )

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        image: dict[str, Any] = {
            "type": "string",
            "contentEncoding": "base64url",
            "description": "A PNG, JPEG, WebP, GIF, BMP or TIFF file in base64url, padding optional.",
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
        return image_input.parse(params, body, content_type, self._spec, self._max_pixels)

    def predict(self, batch: Sequence[bytes]) -> Sequence[Prediction | Exception]:
        """Later images are decoded in other threads while earlier ones are computed."""
        answers: list[Prediction | Exception] = []
        for start in range(0, len(batch), self._most):
            answers += self._predict(batch[start : start + self._most])
        return answers

    def _predict(self, payloads: Sequence[bytes]) -> list[Prediction | Exception]:
        answers: list[Prediction | Exception] = []
        with self._runner.open() as batch, self._loading(batch, payloads) as loaded:
            while faults := list(islice(loaded, self._runner.chunk)):
                rows = [row for row, fault in enumerate(faults, len(answers)) if fault is None]
                vectors = iter(batch.compute(rows) if rows else ())
                answers += [_answer(next(vectors)) if fault is None else fault for fault in faults]
        return answers

    @contextmanager
    def _loading(self, batch: Batch, payloads: Sequence[bytes]) -> Iterator[Iterator[InvalidInput | None]]:
        """What loading each payload says, in order and as soon as it is known."""
        if min(self._threads, len(payloads)) <= 1:
            yield map(batch.load, range(len(payloads)), payloads)
            return
        loads = [self._pool.submit(batch.load, row, payload) for row, payload in enumerate(payloads)]
        try:
            yield (load.result() for load in loads)
        finally:
            wait(loads)  # or a load would write into memory that belongs to another batch by then


def _answer(vector: Vector | ServiceError) -> Prediction | ServiceError:
    if isinstance(vector, ServiceError):
        return vector
    if not np.isfinite(vector).all():
        return PredictionFailed("the model's answer is not finite")
    return pack(vector)
