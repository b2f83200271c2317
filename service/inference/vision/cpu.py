"""How a CPU runs a network: by OpenVINO, or by torch where that is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, InvalidInput
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.vision.image_input import array_of
from service.inference.vision.images import read
from service.inference.vision.runner import Compute, Vector

CHUNK = 8
"""Images computed at once: larger numbers are no faster, and keep decoding and computing from overlapping."""


def has_openvino() -> bool:
    return find_spec("openvino") is not None


class CpuRunner:
    """Runs a network on so many ``threads``, which share its layers, so that a lone image has them all."""

    device = "cpu"
    slots = 1

    def __init__(self, artifact: Artifact, spec: Image, threads: int) -> None:
        self._spec = spec
        self.libraries: tuple[str, ...]
        if artifact.file("xml") is not None and has_openvino():
            # A lone image has a graph of its own: for a known number of images it is a thirtieth faster.
            computes = compiled(artifact, spec, threads, (1, -1) if spec.batched else (1,))
            self._lone, self._many = computes[0], computes[-1]
            self.kernels, self.chunk, self.libraries = "openvino", CHUNK if spec.batched else 1, ("openvino",)
        else:
            if artifact.file("xml") is not None and artifact.file("pt2") is None:
                raise ConfigurationError(f"Model {artifact.manifest.name} needs the package openvino.")
            from service.inference.vision import program

            program.use_threads(threads)
            self._lone = self._many = program.compute(program.restore(artifact))
            self.kernels, self.chunk = "torch", 1  # its kernels are not batch-invariant
            self.libraries = program.LIBRARIES

    @contextmanager
    def open(self) -> Iterator[CpuBatch]:
        yield CpuBatch(self, self._spec)

    def run(self, images: Sequence[NDArray[np.float32]]) -> list[Vector]:
        """What the network says to each image, height × width × channels."""
        if len(images) > 1 and self.chunk > 1:
            return list(self._many(np.stack(images)))
        return [self._lone(image[np.newaxis])[0] for image in images]


def compiled(artifact: Artifact, spec: Image, threads: int, counts: Sequence[int]) -> list[Compute]:
    """The network for each count of images at a time, -1 being any; raises ConfigurationError."""
    try:
        import openvino
    except ImportError as error:
        raise ConfigurationError(f"openvino is broken ({error}): install it anew or remove it.") from error
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it would take bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }
    core, name = openvino.Core(), artifact.manifest.name
    try:
        network = core.read_model(artifact.file("xml"), artifact.file("bin"))
        computes = []
        for count in counts:
            network.reshape([count, *spec.size, len(spec.mode)])
            computes.append(_infer(core.compile_model(network, "CPU", settings).create_infer_request()))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ConfigurationError(f"OpenVINO cannot compute {name} ({reason:.200}): register it again.") from error
    return computes


def _infer(request: Any) -> Compute:
    def infer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        answers: NDArray[np.float32] = request.infer([images], share_inputs=True)[0]
        return answers

    return infer


class CpuBatch:
    """Images as the network wants them, each normalised where it was decoded."""

    def __init__(self, runner: CpuRunner, spec: Image) -> None:
        self._runner = runner
        self._spec = spec
        self._images: dict[int, NDArray[np.float32]] = {}

    def load(self, row: int, payload: bytes) -> InvalidInput | None:
        try:
            array = array_of(payload)
            self._images[row] = read(payload, self._spec) if array is None else array
        except InvalidInput as error:
            return error
        return None

    def compute(self, rows: Sequence[int]) -> list[Vector]:
        return self._runner.run([self._images.pop(row) for row in rows])
