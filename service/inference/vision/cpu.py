"""How a CPU runs a network: by OpenVINO, or by torch where that is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np

from service.errors import ConfigurationError
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.vision.images import Array, read

CHUNK = 8
"""Images computed at once: larger numbers are no faster, and keep decoding and computing from overlapping."""


def has_openvino() -> bool:
    return find_spec("openvino") is not None


class CpuRunner:
    """Runs a network on so many ``threads``, which share its layers, so that a lone image has them all.
    ``kernels``, of ``libraries``, decide the last bits of an answer. ``chunk``: most images worth computing at once."""

    device = "cpu"
    slots = 1

    def __init__(self, artifact: Artifact, spec: Image, threads: int) -> None:
        self._spec = spec
        if artifact.file("xml") is not None and has_openvino():
            # A lone image has a graph of its own: for a known number of images it is a thirtieth faster.
            computes = _compiled(artifact, spec, threads, (1, -1) if spec.batched else (1,))
            self._lone, self._many = computes[0], computes[-1]
            self.kernels, self.chunk = "openvino", CHUNK if spec.batched else 1
        else:
            from service.inference.vision.program import compute, restore

            self._lone = self._many = compute(restore(artifact), threads)
            self.kernels, self.chunk = "torch", 1  # its kernels are not batch-invariant
        self.libraries: tuple[str, ...] = (self.kernels,)
        self._batch = np.empty((self.chunk, *spec.size, len(spec.mode)), np.float32)  # to clear new pages takes long

    def load(self, file: bytes, max_pixels: int) -> Array:
        """What ``run`` wants of an image file; raises InvalidInput. Any thread may call it."""
        return read(file, self._spec, max_pixels)

    def run(self, images: Sequence[Array]) -> list[Array]:
        """What the network says to each of as many images as one pass takes. It does not depend on the others."""
        if len(images) > 1 and self.chunk > 1:
            return list(self._many(np.stack(images, out=self._batch[: len(images)])))
        return [self._lone(image[np.newaxis])[0] for image in images]


def _compiled(artifact: Artifact, spec: Image, threads: int, counts: Sequence[int]) -> list[Callable[[Array], Array]]:
    """The network for each count of images at a time, -1 being any; raises ConfigurationError."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it would take bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }

    def compiled(count: int) -> Callable[[Array], Array]:
        network.reshape([count, *spec.size, len(spec.mode)])
        request = core.compile_model(network, "CPU", settings).create_infer_request()
        return lambda images: request.infer([images], share_inputs=True)[0]

    try:
        import openvino

        core = openvino.Core()
        network = core.read_model(artifact.file("xml"), artifact.file("bin"))
        return [compiled(count) for count in counts]
    except (ImportError, RuntimeError) as error:
        remedy = "install it anew, or remove it" if isinstance(error, ImportError) else "register the model again"
        reason = f"{artifact.manifest.name} ({' '.join(str(error).split()):.200})"
        raise ConfigurationError(f"OpenVINO cannot compute {reason}: {remedy}.") from error
