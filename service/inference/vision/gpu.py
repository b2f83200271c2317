"""How a GPU runs a network: one batch is decoded while the one before it is computed, images travel as bytes, and what
is computed has one of a few sizes, each captured as a CUDA graph at the start."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from service.errors import ConfigurationError, DeviceLost, Overloaded, ServiceError
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.predictor import Options
from service.inference.vision.images import Array, read_pixels
from service.inference.vision.program import module, restore

RECOVERY_SECONDS = 30.0
"""After so long without a lack of memory, the next larger batch is tried again."""

logger = logging.getLogger(__name__)


def open_gpu(artifact: Artifact, spec: Image, options: Options, device_name: str) -> GpuRunner:
    """Restore the network on that device; raises ConfigurationError."""
    device = torch.empty(0, device=device_name).device  # "cuda" gets the number of the current one
    torch.set_num_threads(max(1, options.threads))
    # No rounding of float32 to TF32, which torch does in convolutions unless told; the same kernels every time.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    manifest, program = artifact.manifest, restore(artifact)
    if not program.range_constraints:  # the number of images was not left open
        options = replace(options, max_batch_size=1)
    try:
        return GpuRunner(module(program, device), spec, manifest.width, device, options)
    except RuntimeError as error:
        reason, remedy = str(error).partition("\n")[0], "set a smaller PREDICT_MAX_BATCH_SIZE"
        raise ConfigurationError(f"The GPU cannot serve {manifest.name} ({reason:.200}): {remedy}.") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA, cuDNN and cuBLAS do not always raise torch's own type."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "ALLOC_FAILED" in str(error)


class GpuRunner:
    """Runs a network on a GPU. Of its batch, an answer's bits depend only on the size that the batch is padded to."""

    device = "cuda"
    slots = 2
    kernels = "program"
    libraries: tuple[str, ...] = ("torch",)

    def __init__(
        self,
        network: nn.Module,
        spec: Image,
        width: int,
        device: torch.device,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``network``: on that device, for images × height × width × channels. ``width``: numbers an answer has."""
        self.chunk = options.max_batch_size
        self.sizes = [*(1 << exponent for exponent in range((self.chunk - 1).bit_length())), self.chunk]
        """What batches are padded to: powers of two, and the largest itself."""
        self.places = [[None] * self.chunk] * self.slots  # the memory for an image is made by load
        self._most, self._changed, self._clock = self.chunk, 0.0, clock
        self._spec = spec
        self._device = device
        self._dtype: torch.dtype = getattr(torch, options.precision)
        self._network = network.to(self._dtype).to(memory_format=torch.channels_last)
        self._images = torch.zeros(self.chunk, *spec.size, len(spec.mode), device=device)
        self._answers = torch.zeros(self.chunk, width, device=device)
        self._white, self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device)
            for values in ((255.0,) * len(spec.mode), spec.mean, spec.std)
        )
        self._computing = threading.Lock()
        self._lost = False
        self._pool: Any = None
        # The largest first: the others then fit into its memory.
        self._steps = {size: self._captured(size) for size in reversed(self.sizes)}

    def load(self, file: bytes, max_pixels: int, place: None = None) -> Tensor:
        """The file's pixels; raises InvalidInput."""
        return torch.tensor(read_pixels(file, self._spec, max_pixels))

    @torch.inference_mode()
    def run(self, images: Sequence[Tensor | Array], slot: int = 0) -> list[Array | ServiceError]:
        """Raises DeviceLost when the device can compute nothing any more."""
        answers: list[Array | ServiceError] = []
        while rest := images[len(answers) :]:
            if self._lost:
                raise DeviceLost
            part = rest[: self._limit()]
            try:
                answers += self._pass(part)
            except RuntimeError as error:
                if not self._shrinks(error, len(part)):
                    answers += [Overloaded("The device has no memory left for an image.")] * len(rest)
        return answers

    def _pass(self, images: Sequence[Tensor | Array]) -> list[Array]:
        count = len(images)
        normalised = self._normalised(images)
        with self._computing:  # all batches are computed in the same memory
            self._images[:count].copy_(normalised)
            self._steps[self.bucket(count)]()
            return list(self._answers[:count].to("cpu", copy=True).numpy())

    def _normalised(self, images: Sequence[Tensor | Array]) -> Tensor:
        """On the device: pixels as images.normalise makes them, and arrays as they are."""
        pixels = torch.zeros(len(images), *self._images.shape[1:], dtype=torch.uint8, device=self._device)
        for row, image in enumerate(images):
            if isinstance(image, Tensor):
                pixels[row].copy_(image, non_blocking=True)
        # By a tensor: CUDA multiplies by the reciprocal of a Python number, which moves last bits.
        normalised = torch.div(pixels, self._white).sub_(self._mean).div_(self._std)
        for row, image in enumerate(images):
            if not isinstance(image, Tensor):
                normalised[row].copy_(torch.tensor(image))
        return normalised

    def bucket(self, count: int) -> int:
        """The size that so many images are padded to."""
        return next(size for size in self.sizes if size >= count)

    def _limit(self) -> int:
        """How many images may fit into memory. Threads need no lock: a size that is too large only fails again."""
        most = self._most
        if most < self.chunk and self._clock() - self._changed >= RECOVERY_SECONDS:
            self._most, self._changed = self.bucket(most + 1), self._clock()
        return self._most

    def _shrinks(self, error: RuntimeError, count: int) -> bool:
        """Whether to try fewer images than the ``count`` that failed. Raises an error that is no lack of memory."""
        self._check(error)
        if not is_out_of_memory(error):
            raise error
        torch.cuda.empty_cache()
        smaller = [size for size in self.sizes if size < self.bucket(count)]
        self._most, self._changed = min(self._most, *smaller[-1:] or [1]), self._clock()
        logger.warning("The device had no memory for %d images; now at most %d at once.", count, self._most)
        return bool(smaller)

    def _check(self, error: RuntimeError) -> None:
        """Raises DeviceLost if the error has stuck, so that every call fails until the process is replaced."""
        try:
            torch.get_device_module(self._device).synchronize()
        except RuntimeError:
            if not self._lost:
                logger.error("The device fails and computes nothing more in this process.", exc_info=error)
            self._lost = True
            raise DeviceLost from error

    @torch.inference_mode()
    def _captured(self, size: int) -> Callable[[], object]:
        """The network on so many images as one launch, or without a CUDA graph where there can be none."""
        step = partial(self._compute, size)
        try:
            step()  # what the libraries set up at a first call cannot be captured
            if self._device.type != "cuda":
                return step
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
            self._pool = graph.pool()
            return graph.replay
        except RuntimeError as error:
            self._check(error)
            logger.warning("Batches of %d are computed without a CUDA graph: %s", size, str(error).partition("\n")[0])
            torch.cuda.empty_cache()
            return step

    def _compute(self, size: int) -> None:
        self._answers[:size].copy_(self._network(self._images[:size].to(self._dtype)))
