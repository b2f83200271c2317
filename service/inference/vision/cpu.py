"""How a CPU runs a network: by OpenVINO, or by torch where that is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from service.errors import ConfigurationError
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.vision.images import Array, read

CHUNK = 8
"""Images that a stream computes at once: more are no faster, and keep decoding and computing from overlapping."""
STREAMS = 2
"""Several images are computed in so many streams, which share the threads. The threads of a stream wait for each other
in every layer, so all of them would stand still whenever the event loop or a decoder takes the CPU from one."""


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
            self._lone, self._streams = _requests(artifact, spec, threads)
            self.kernels, self.chunk = "openvino", max(1, CHUNK * len(self._streams))
        else:
            from service.inference.vision.program import compute, restore

            self._lone, self._streams = compute(restore(artifact), threads), []
            self.kernels, self.chunk = "torch", 1  # its kernels are not batch-invariant
        self.libraries: tuple[str, ...] = (self.kernels,)
        self._batch = np.empty((self.chunk, *spec.size, len(spec.mode)), np.float32)  # to clear new pages takes long

    def load(self, file: bytes, max_pixels: int) -> Array:
        """What ``run`` wants of an image file; raises InvalidInput. Any thread may call it."""
        return read(file, self._spec, max_pixels)

    def run(self, images: Sequence[Array]) -> list[Array]:
        """What the network says to each of as many images as one pass takes. It does not depend on the others."""
        streams = self._streams if len(images) > 1 else []
        share = len(images) // max(1, len(streams))
        try:
            for number, request in enumerate(streams):
                part = slice(number * share, (number + 1) * share)
                np.stack(images[part], out=self._batch[part])
                request.start_async([self._batch[part]], share_inputs=True)
        finally:  # none may still read the batch when the next call writes it
            failed = [error for error in map(_wait, streams) if error is not None]
        if failed:
            raise failed[0]
        answers = [row for request in streams for row in request.get_output_tensor().data.copy()]
        # A lone image, or one that is left of an odd number.
        return answers + [self._lone(image[np.newaxis])[0] for image in images[len(answers) :]]


def _wait(request: Any) -> RuntimeError | None:
    """Until it has ended; why it failed, if it did."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _requests(artifact: Artifact, spec: Image, threads: int) -> tuple[Callable[[Array], Array], list[Any]]:
    """The network for one image on all ``threads``, and a request for each stream of several, if there may be several.
    Raises ConfigurationError."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it would take bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }

    def requests(count: int, streams: int) -> list[Any]:
        network.reshape([count, *spec.size, len(spec.mode)])
        compiled = core.compile_model(network, "CPU", {**settings, "NUM_STREAMS": streams})
        return [compiled.create_infer_request() for _ in range(streams)]

    try:
        import openvino

        core = openvino.Core()
        network = core.read_model(artifact.file("xml"), artifact.file("bin"))
        # A lone image has a graph of its own: for a known number of images it is a thirtieth faster.
        (lone,) = requests(1, 1)
        streams = requests(-1, STREAMS if threads % STREAMS == 0 else 1) if spec.batched else []

        def infer(images: Array) -> Array:
            # Not by infer's own arguments and results: their Python takes 0.3 ms.
            lone.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            lone.infer(share_outputs=True)
            answers: Array = lone.get_output_tensor().data.copy()
            return answers

        return infer, streams
    except (ImportError, RuntimeError) as error:
        remedy = "install it anew, or remove it" if isinstance(error, ImportError) else "register the model again"
        reason = f"{artifact.manifest.name} ({' '.join(str(error).split()):.200})"
        raise ConfigurationError(f"OpenVINO cannot compute {reason}: {remedy}.") from error
