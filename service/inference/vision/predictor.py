"""Any network, on images or arrays. torch is imported only where it is needed."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from ctypes import CDLL
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from service.errors import ConfigurationError, PredictionFailed, ServiceError
from service.inference.artifact import Artifact, fingerprint, library_versions
from service.inference.manifest import Image
from service.inference.predictor import EXAMPLE_TOLERANCE, Options, Prediction, Question, pack
from service.inference.vision import image_input
from service.inference.vision.cpu import CpuRunner
from service.inference.vision.images import PREPROCESSING_VERSION, Array, reuse_memory

if TYPE_CHECKING:
    from service.inference.vision.gpu import GpuRunner

Runner: TypeAlias = "CpuRunner | GpuRunner"

LIBRARIES = ("pillow", "numpy")
"""Those that make a file into what the network is given."""

TOLERANCES = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""How far apart two answers to one question may be that were computed in batches of other sizes."""

MAX_DECODE_THREADS = 4
"""More decode no faster: they wait for Python's lock, and the event loop with them. Measured with up to 16."""


def load(artifact: Artifact, options: Options) -> VisionPredictor:
    """Restore the network on the device that ``options`` ask for; raises ConfigurationError."""
    manifest = artifact.manifest
    if manifest.image is None:
        raise ConfigurationError(f"Model {manifest.name} is of the kind vision, but its manifest has no image.")
    reuse_memory()
    return VisionPredictor(artifact, manifest.image, _runner(artifact, manifest.image, options), options)


def _runner(artifact: Artifact, spec: Image, options: Options) -> Runner:
    if not _finds_gpu(options):
        if options.precision != "float32":
            raise ConfigurationError(f"PREDICT_PRECISION={options.precision} needs a GPU; without one, use float32.")
        return CpuRunner(artifact, spec, max(1, options.threads), options.max_batch_size)
    if not options.owns_device:
        raise ConfigurationError(
            "Several workers would share one GPU: set PREDICT_WORKERS=1, or PREDICT_DEVICE=cpu, "
            "or PREDICT_SHARE_DEVICE=true."
        )
    from service.inference.vision.gpu import open_gpu  # it imports torch

    return open_gpu(artifact, spec, options, "cuda")


def _finds_gpu(options: Options) -> bool:
    """Raises ConfigurationError for a GPU that is missing. Where there can be none, torch is not imported."""
    if options.device == "cpu" or (options.device == "auto" and not has_driver()):
        return False
    available: bool = find_spec("torch") is not None and import_module("torch").cuda.is_available()
    if options.device == "cuda" and not available:
        raise ConfigurationError("PREDICT_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu.")
    return available


def has_driver() -> bool:
    """Whether a GPU's driver is installed, NVIDIA's or AMD's: then only torch can tell whether it is of use."""
    with suppress(OSError):
        return bool(CDLL("libcuda.so.1"))
    return Path("/dev/kfd").exists()


class VisionPredictor:
    """Images or channels × height × width arrays in, float32 probability vectors out."""

    key_kind: Literal["exact", "cells", "digest"] = "digest"

    def __init__(self, artifact: Artifact, spec: Image, runner: Runner, options: Options) -> None:
        self._spec = spec
        self._runner = runner
        self._max_pixels = options.max_image_pixels
        self._threads = max(1, min(options.threads, MAX_DECODE_THREADS))
        self._pool = ThreadPoolExecutor(self._threads, "decode")
        started = Barrier(self._threads)
        # Start all threads now. Where one cannot start later, submit raises, and the file is decoded all the same.
        list(self._pool.map(lambda _: started.wait(), range(self._threads)))
        self.slots, self.chunk = runner.slots, runner.chunk
        self._free_slots = SimpleQueue[int]()
        for slot in range(self.slots):
            self._free_slots.put(slot)
        scale = max(1.0, *map(abs, artifact.manifest.example.golden))  # probabilities are not larger, numbers may be
        self.tolerance = TOLERANCES[options.precision] * scale
        self.example_tolerance = max(self.tolerance, EXAMPLE_TOLERANCE * scale)
        self._example = artifact.manifest.example.inputs.get("image")
        self.fingerprint = fingerprint(
            artifact,
            preprocessing=f"vision-{PREPROCESSING_VERSION}",
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
            digest["example"] = image_input.image_question(file).digest
        return {"image": image, "sha256": digest}

    def parse(self, params: Mapping[str, Any], body: bytes, content_type: str | None) -> Question:
        """One image, array or digest; see image_input.py."""
        return image_input.parse(params, body, content_type, self._spec)

    def predict(self, batch: Sequence[bytes]) -> Sequence[Prediction | Exception]:
        """Its files are decoded by several threads, while the batch in the other slot is computed."""
        answers: list[Prediction | Exception] = []
        for start in range(0, len(batch), self.chunk):
            slot = self._free_slots.get()
            try:
                answers += self._predict(batch[start : start + self.chunk], slot)
            finally:
                self._free_slots.put(slot)
        return answers

    def _predict(self, batch: Sequence[bytes], slot: int) -> list[Prediction | Exception]:
        places = self._runner.places[slot]
        if min(self._threads, len(batch)) == 1:
            images = list(map(self._load, batch, places))
        else:
            loads = [self._pool.submit(self._load, *each) for each in zip(batch, places, strict=False)]
            wait(loads)  # also for those behind one that fails: the next batch is decoded to the same places
            images = [load.result() for load in loads]
        good = [image for image in images if not isinstance(image, Exception)]
        said = iter(self._runner.run(good, slot) if good else ())
        return [image if isinstance(image, Exception) else _answer(next(said)) for image in images]

    def _load(self, payload: bytes, place: Any) -> Any:
        """What the network is given, or the reason why it is not."""
        try:
            array = image_input.array_of(payload)
            return self._runner.load(payload, self._max_pixels, place) if array is None else array
        except Exception as error:
            return error


def _answer(vector: Array | ServiceError) -> Prediction | ServiceError:
    if isinstance(vector, ServiceError):
        return vector
    return pack(vector) if np.isfinite(vector).all() else PredictionFailed("the model's answer is not finite")
