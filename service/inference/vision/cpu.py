"""How a CPU runs a network: by OpenVINO, or by torch where that is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from service.errors import ConfigurationError, InvalidInput
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.vision.image_input import array_of
from service.inference.vision.images import read
from service.inference.vision.runner import Vector
from service.inference.vision.state_dict import network_of

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
        if has_openvino():
            try:
                from service.inference.vision import graph
            except ImportError as error:
                raise ConfigurationError(f"openvino is broken ({error}): install it anew or remove it.") from error
            network, state = network_of(artifact, spec)
            graph.fold(network, state)
            # One for a lone image: knowing the number makes it a thirtieth faster.
            self._lone, self._many = (graph.compute(network, state, spec, threads, images) for images in (1, -1))
            self.kernels, self.chunk = "openvino", CHUNK
            self.libraries: tuple[str, ...] = ("openvino",)
        else:
            from service.inference.vision import torch_network

            torch_network.use_threads(threads)
            self._lone = self._many = torch_network.compute(torch_network.restore(artifact, spec))
            self.kernels, self.chunk = "torch", 1  # its kernels are not batch-invariant
            self.libraries = torch_network.LIBRARIES

    @contextmanager
    def open(self) -> Iterator[CpuBatch]:
        yield CpuBatch(self, self._spec)

    def run(self, images: Sequence[NDArray[np.float32]]) -> list[Vector]:
        """The probabilities of each image, height × width × channels."""
        if len(images) == 1:
            return list(self._lone(images[0][np.newaxis]))
        return list(self._many(np.stack(images)))


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
