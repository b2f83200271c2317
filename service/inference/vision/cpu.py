"""How a CPU runs a network: by OpenVINO, or by torch where that is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
    ``kernels``, of ``libraries``, decide the last bits of an answer. ``chunk``: most images worth computing at once.

    The files of a batch are decoded to where the network reads them: a copy took a tenth of decoding.
    """

    device = "cpu"
    slots = 1  # for there is one such place

    def __init__(self, artifact: Artifact, spec: Image, threads: int, places: int = CHUNK * STREAMS) -> None:
        self._spec = spec
        self._images = np.empty((places, *spec.size, len(spec.mode)), np.float32)
        self._places = list(self._images)
        if artifact.file("xml") is not None and has_openvino():
            self._lone, self._streams = _requests(artifact, self._images[:1], threads)
            self.kernels, self.chunk = "openvino", max(1, CHUNK * len(self._streams))
        else:
            from service.inference.vision.program import compute, restore

            self._lone, self._streams = partial(compute(restore(artifact), threads), self._images[:1]), []
            self.kernels, self.chunk = "torch", 1  # its kernels are not batch-invariant
        self.libraries: tuple[str, ...] = (self.kernels,)

    def load(self, file: bytes, max_pixels: int, number: int = 0) -> Array:
        """The batch's image of that number, out of its file; raises InvalidInput. Any thread may call it."""
        return read(file, self._spec, max_pixels, self._places[number])

    def run(self, images: Sequence[Array], first: int = 0) -> list[Array]:
        """What the network says to each of as many images as one pass takes. It does not depend on the others.
        ``first``: the number of the first one in its batch."""
        streams = self._streams if len(images) > 1 else []
        share = len(images) // max(1, len(streams))
        for place, image in zip(self._places[first:], images[: share * len(streams)], strict=False):
            if image is not place:  # an array, or behind a file that cannot be read
                place[:] = image
        try:
            for number, request in enumerate(streams):
                start = first + number * share
                request.start_async([self._images[start : start + share]], share_inputs=True)
        finally:  # none may still read the images when the next call writes them
            failed = [error for error in map(_wait, streams) if error is not None]
        if failed:
            raise failed[0]
        answers = [row for request in streams for row in request.get_output_tensor().data.copy()]
        # A lone image, or one that is left of an odd number.
        return answers + [self._compute_lone(image) for image in images[len(answers) :]]

    def _compute_lone(self, image: Array) -> Array:
        """At the batch's first place, whose own image is computed first."""
        if image is not self._places[0]:
            self._places[0][:] = image
        answer: Array = self._lone()[0]
        return answer


def _wait(request: Any) -> RuntimeError | None:
    """Until it has ended; why it failed, if it did."""
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _requests(artifact: Artifact, image: Array, threads: int) -> tuple[Callable[[], Array], list[Any]]:
    """A function that computes the lone ``image`` on all ``threads``, and a request for each stream of several images,
    if there may be several. Raises ConfigurationError."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it would take bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }

    def requests(count: int, streams: int) -> list[Any]:
        network.reshape([count, *image.shape[1:]])
        compiled = core.compile_model(network, "CPU", {**settings, "NUM_STREAMS": streams})
        return [compiled.create_infer_request() for _ in range(streams)]

    try:
        import openvino

        core = openvino.Core()
        network = core.read_model(artifact.file("xml"), artifact.file("bin"))
        # A lone image has a graph of its own: for a known number of images it is a thirtieth faster.
        (lone,) = requests(1, 1)
        lone.set_input_tensor(openvino.Tensor(image, shared_memory=True))
        is_batched = artifact.manifest.image is not None and artifact.manifest.image.batched
        streams = requests(-1, STREAMS if threads % STREAMS == 0 else 1) if is_batched else []

        def infer() -> Array:
            # Not by infer's own arguments and results: their Python takes 0.3 ms.
            lone.infer(share_outputs=True)
            answers: Array = lone.get_output_tensor().data.copy()
            return answers

        return infer, streams
    except (ImportError, RuntimeError) as error:
        remedy = "install it anew, or remove it" if isinstance(error, ImportError) else "register the model again"
        reason = f"{artifact.manifest.name} ({' '.join(str(error).split()):.200})"
        raise ConfigurationError(f"OpenVINO cannot compute {reason}: {remedy}.") from error
