"""How a CPU runs a network: by OpenVINO, or by torch where that is not installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from threading import Lock
from typing import Any, TypeAlias

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

Infer: TypeAlias = Callable[[], Array]


def has_openvino() -> bool:
    return find_spec("openvino") is not None


class CpuRunner:
    """Runs a network on so many ``threads``, which share its layers, so that a lone image has them all.
    ``kernels``, of ``libraries``, decide the last bits of an answer. ``chunk``: most images worth computing at once.
    ``places``: of each slot, where the images of its batch are decoded to and the network reads them. A copy would take
    a tenth of decoding.
    """

    device = "cpu"
    slots = 2

    def __init__(self, artifact: Artifact, spec: Image, threads: int, most: int = CHUNK * STREAMS) -> None:
        self._spec = spec
        if artifact.file("xml") is not None and has_openvino():
            lone, self._streams = _requests(artifact, spec, threads)
            self.kernels, self.chunk = "openvino", min(most, max(1, CHUNK * len(self._streams)))
        else:
            from service.inference.vision.program import compute, restore

            infer = compute(restore(artifact), threads)
            lone, self._streams = lambda image: partial(infer, image), []
            self.kernels, self.chunk = "torch", 1  # its kernels are not batch-invariant
        self.libraries: tuple[str, ...] = (self.kernels,)
        self._images = np.empty((self.slots, self.chunk, *spec.size, len(spec.mode)), np.float32)
        self.places = [list(images) for images in self._images]
        self._lone = [lone(images[:1]) for images in self._images]
        self._computing = Lock()

    def load(self, file: bytes, max_pixels: int, place: Array | None = None) -> Array:
        """The file's image, in its place; raises InvalidInput. Any thread may call it."""
        return read(file, self._spec, max_pixels, place)

    def run(self, images: Sequence[Array], slot: int = 0) -> list[Array]:
        """What the network says to each of at most ``chunk`` images. It does not depend on the others."""
        streams = self._streams if len(images) > 1 else []
        share = len(images) // max(1, len(streams))
        for place, image in zip(self.places[slot], images[: share * len(streams)], strict=False):
            if image is not place:  # an array, or behind a file that cannot be read
                place[:] = image
        with self._computing:
            answers = self._compute(streams, slot, share)
            for image in images[len(answers) :]:  # a lone one, or what is left of an odd number
                # Its graph reads the first place. What was there has been computed.
                if image is not (first := self.places[slot][0]):
                    first[:] = image
                answers.append(self._lone[slot]()[0])
        return answers

    def _compute(self, streams: list[Any], slot: int, share: int) -> list[Array]:
        """So many images in each stream."""
        with ExitStack() as started:  # all end, even if one fails, before the next batch is decoded to these places
            for number, request in enumerate(streams):
                part = self._images[slot, number * share : (number + 1) * share]
                request.start_async([part], share_inputs=True)
                started.callback(request.wait)
        return [row for request in streams for row in request.get_output_tensor().data.copy()]


def _requests(artifact: Artifact, spec: Image, threads: int) -> tuple[Callable[[Array], Infer], list[Any]]:
    """What makes a function that computes the lone image in that memory on all ``threads``, and a request for each
    stream of several images, if there may be several. Raises ConfigurationError."""
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # or it would take bfloat16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # several workers would be pinned to the same cores
    }

    def compiled(images: int, streams: int) -> Any:
        network.reshape([images, *spec.size, len(spec.mode)])
        return core.compile_model(network, "CPU", {**settings, "NUM_STREAMS": streams})

    def lone(image: Array) -> Infer:
        request = alone.create_infer_request()
        request.set_input_tensor(openvino.Tensor(image, shared_memory=True))

        def infer() -> Array:
            # Not by infer's own arguments and results: their Python takes 0.3 ms.
            request.infer(share_outputs=True)
            answers: Array = request.get_output_tensor().data.copy()
            return answers

        return infer

    try:
        import openvino

        core = openvino.Core()
        network = core.read_model(artifact.file("xml"), artifact.file("bin"))
        # A lone image has a graph of its own: for a known number of images it is a thirtieth faster.
        alone = compiled(1, 1)
        if not spec.batched:
            return lone, []
        count = STREAMS if threads % STREAMS == 0 else 1
        several = compiled(-1, count)
        return lone, [several.create_infer_request() for _ in range(count)]
    except (ImportError, RuntimeError) as error:
        remedy = "install it anew, or remove it" if isinstance(error, ImportError) else "register the model again"
        reason = f"{artifact.manifest.name} ({' '.join(str(error).split()):.200})"
        raise ConfigurationError(f"OpenVINO cannot compute {reason}: {remedy}.") from error
