"""How a CPU runs a network: by OpenVINO, or by torch where that is not installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.models.resnet import ResNet

from service.errors import ConfigurationError, InvalidInput
from service.inference.image_input import array_of
from service.inference.images import read
from service.inference.manifest import Image
from service.inference.network import fold
from service.inference.runner import Compute, Vector

CHUNK = 8
"""Images computed at once: larger numbers are no faster, and keep decoding and computing from overlapping."""


def has_openvino() -> bool:
    return find_spec("openvino") is not None


class CpuRunner:
    """Runs a network on so many ``threads``, which share its layers, so that a lone image has them all."""

    device = "cpu"
    slots = 1
    libraries: tuple[str, ...] = ()

    def __init__(self, network: ResNet, spec: Image, threads: int) -> None:
        self._spec = spec
        if has_openvino():
            try:
                from service.inference import graph
            except ImportError as error:
                raise ConfigurationError(f"openvino is broken ({error}): install it anew or remove it.") from error
            folded = fold(network)
            # One for a lone image: knowing the number makes it a thirtieth faster.
            self._lone, self._many = (graph.compute(folded, spec, threads, images) for images in (1, -1))
            self.kernels, self.libraries, self.chunk = "openvino", ("openvino",), CHUNK
        else:
            self._lone = self._many = _by_torch(network)
            self.kernels, self.chunk = "torch", 1  # its kernels are not batch-invariant

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


def _by_torch(network: ResNet) -> Compute:
    network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def compute(images: NDArray[np.float32]) -> NDArray[np.float32]:
        # Channels-last is this very layout under another name, so nothing is copied.
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        probabilities: NDArray[np.float32] = torch.softmax(logits, dim=1).numpy()
        return probabilities

    return compute
