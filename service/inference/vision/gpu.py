"""How a GPU runs a network.

A batch takes one of two slots, memory that its images are decoded into as bytes. It is copied on one stream
and normalised and computed on another, so that one batch is decoded and copied while the one before it is computed.
What is launched for a batch has one of a few sizes, each of them captured as a CUDA graph at the start.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.errors import DeviceLost, InvalidInput, Overloaded, ServiceError
from service.inference.manifest import Image
from service.inference.predictor import Options
from service.inference.vision.batch_limit import BatchLimit, buckets
from service.inference.vision.cuda import Device, Event, Launch, is_out_of_memory
from service.inference.vision.image_input import array_of
from service.inference.vision.images import read_pixels
from service.inference.vision.jpeg import JpegDecoder, suits
from service.inference.vision.runner import Vector

logger = logging.getLogger(__name__)


class GpuRunner:
    """Runs a network on a GPU. Of its batch, an answer's bits depend only on the size that the batch is padded to."""

    slots = 2
    kernels = "program"
    libraries: tuple[str, ...] = ("torch", "torchvision")

    def __init__(
        self,
        network: nn.Module,
        spec: Image,
        width: int,
        device: Device,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``network``: on that device, for images × height × width × channels. ``width``: numbers an answer has."""
        self.device = device.name.type
        self.chunk = options.max_batch_size
        self.limit = BatchLimit(buckets(options.max_batch_size), clock)
        self._spec = spec
        self._device = device
        self._dtype: torch.dtype = getattr(torch, options.precision)
        self._network = network.to(self._dtype).to(memory_format=torch.channels_last)
        self._decoder = JpegDecoder(spec, device) if options.decode == "gpu" else None
        shape = (options.max_batch_size, *spec.size, len(spec.mode))
        self._images = torch.zeros(shape, device=device.name)
        self._answers = torch.zeros(options.max_batch_size, width, device=device.name)
        self._white, self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device.name)
            for values in ((255.0,) * len(spec.mode), spec.mean, spec.std)
        )
        self._launching = threading.Lock()
        self._lost = False
        self._free: SimpleQueue[Slot] = SimpleQueue()
        for _ in range(self.slots):
            self._free.put(Slot(device, shape, width))
        # The largest first: the others then fit into its memory.
        self._steps = {size: self._captured(size) for size in reversed(self.limit.sizes)}

    @contextmanager
    def open(self) -> Iterator[GpuBatch]:
        self.check()
        slot = self._free.get()
        try:
            yield GpuBatch(self, slot, self._spec, self._device, self._decoder)
        finally:
            self._free.put(slot)

    def launch(self, pixels: Tensor, arrays: Mapping[int, Tensor], copied: Event, answers: Tensor) -> Event:
        """Launch the work on images that will be ``copied``. The answers are in host memory at the event returned."""
        count = len(pixels)
        images = self._images[:count]
        with self._launching, self._device.computing():
            copied.wait()
            # By a tensor: CUDA multiplies by the reciprocal of a Python number, which moves last bits.
            torch.div(pixels, self._white, out=images)
            images.sub_(self._mean).div_(self._std)
            for row, array in arrays.items():
                images[row].copy_(array)
            self._steps[self.limit.bucket(count)]()
            answers.copy_(self._answers[:count], non_blocking=True)
            return self._device.mark()

    def check(self) -> None:
        if self._lost:
            raise DeviceLost

    def shrinks(self, error: RuntimeError, count: int) -> bool:
        """Whether to try fewer images than the ``count`` that failed. Raises an error that is no lack of memory."""
        if self._device.is_lost():
            if not self._lost:
                logger.error("The device fails and computes nothing more in this process.", exc_info=error)
            self._lost = True
            raise DeviceLost from error
        if not is_out_of_memory(error):
            raise error
        self._device.release()
        shrunk = self.limit.shrink(count)
        logger.warning("The device had no memory for %d images; now at most %d at once.", count, self.limit.now())
        return shrunk

    @torch.inference_mode()
    def _captured(self, size: int) -> Launch:
        step = self._step(size)
        try:
            return self._device.graph(step)
        except RuntimeError as error:
            if self._device.is_lost():
                raise
            logger.warning("Batches of %d are computed without a CUDA graph: %s", size, str(error).partition("\n")[0])
            self._device.release()
            return step

    def _step(self, size: int) -> Launch:
        images, answers = self._images[:size], self._answers[:size]

        def step() -> None:
            answers.copy_(self._network(images.to(self._dtype)))

        return step


class Slot:
    """The memory of one batch under way; what earlier batches left in it is never read."""

    def __init__(self, device: Device, shape: tuple[int, ...], width: int) -> None:
        self.host = torch.zeros(shape, dtype=torch.uint8)
        self.rows: NDArray[np.uint8] = self.host.numpy()
        self.pixels = torch.zeros(shape, dtype=torch.uint8, device=device.name)
        self.answers = torch.zeros(shape[0], width)


class GpuBatch:
    """A batch in its slot. Files for the GPU's own decoder, and arrays, go beside the slot's bytes."""

    def __init__(self, runner: GpuRunner, slot: Slot, spec: Image, device: Device, decoder: JpegDecoder | None) -> None:
        self._runner, self._slot, self._spec, self._device, self._decoder = runner, slot, spec, device, decoder
        self._files: dict[int, bytes] = {}
        self._arrays: dict[int, NDArray[np.float32]] = {}

    def load(self, row: int, payload: bytes) -> InvalidInput | None:
        try:
            if self._decoder is not None and suits(payload, self._spec):
                self._files[row] = payload
            else:
                self._load_here(row, payload)
        except InvalidInput as error:
            return error
        return None

    def _load_here(self, row: int, payload: bytes) -> None:
        array = array_of(payload)
        if array is None:
            self._slot.rows[row] = read_pixels(payload, self._spec)
        else:
            self._arrays[row] = array

    @torch.inference_mode()
    def compute(self, rows: Sequence[int]) -> list[Vector | ServiceError]:
        answers: list[Vector | ServiceError] = []
        while len(answers) < len(rows):
            self._runner.check()
            rest = rows[len(answers) :]
            end = rest[0] + self._runner.limit.now()
            part = [row for row in rest if row < end]
            try:
                answers += self._pass(part)
            except RuntimeError as error:
                if not self._runner.shrinks(error, part[-1] + 1 - part[0]):
                    full = Overloaded("The device has no memory left for an image.")
                    answers += [full] * len(rest)
        return answers

    def _pass(self, rows: Sequence[int]) -> list[Vector | ServiceError]:
        """One launch, of everything from the first row to the last: what lies between them is computed for nobody."""
        slot, device = self._slot, self._device
        first, end = rows[0], rows[-1] + 1
        pixels, answers = slot.pixels[: end - first], slot.answers[: end - first]
        with device.copying():
            decoded, faults = self._decode(rows)
            pixels.copy_(slot.host[first:end], non_blocking=True)
            if decoded:
                places = torch.tensor([row - first for row in decoded], device=device.name)
                pixels.index_copy_(0, places, torch.stack(list(decoded.values())))
            arrays = {
                row - first: torch.tensor(self._arrays[row], device=device.name) for row in rows if row in self._arrays
            }
            copied = device.mark()
        self._runner.launch(pixels, arrays, copied, answers).synchronize()
        vectors = answers.numpy().copy()
        return [faults.get(row) or vectors[row - first] for row in rows]

    def _decode(self, rows: Sequence[int]) -> tuple[dict[int, Tensor], dict[int, InvalidInput]]:
        """The pictures that the GPU decodes, and what is wrong with those that neither it nor Pillow can read."""
        decoded: dict[int, Tensor] = {}
        faults: dict[int, InvalidInput] = {}
        files = {row: self._files[row] for row in rows if row in self._files}
        if self._decoder is None or not files:
            return decoded, faults
        for row, picture in zip(files, self._decoder(list(files.values())), strict=True):
            if picture is not None:
                decoded[row] = picture
                continue
            try:
                self._load_here(row, files[row])
            except InvalidInput as error:
                faults[row] = error
        return decoded, faults
