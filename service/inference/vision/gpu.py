"""How a GPU runs a network: one batch is decoded while the one before it is computed, images travel as bytes, and what
is computed has one of a few sizes, each captured as a CUDA graph at the start."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from PIL import ExifTags
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor, nn
from torchvision.transforms.v2.functional import InterpolationMode, resize

from service.errors import ConfigurationError, DeviceLost, InvalidInput, Overloaded, ServiceError
from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.predictor import Options
from service.inference.vision.images import Array, ends_of_scans, open_image, place, read_pixels
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
    except (ImportError, RuntimeError) as error:
        remedy = "set a smaller PREDICT_MAX_BATCH_SIZE, or PREDICT_DECODE=pillow"
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"The GPU cannot serve {manifest.name} ({reason:.200}): {remedy}.") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA, cuDNN and cuBLAS do not always raise torch's own type."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error) or "ALLOC_FAILED" in str(error)


def suits_nvjpeg(file: bytes, picture: PIL.Image.Image, spec: Image) -> bool:
    """Whether the GPU is to decode this file: a whole, upright colour JPEG of the plainest kind. Its own bytes alone
    decide, so that its pixels never depend on its company."""
    with suppress(Exception):  # what is damaged, or too long to be resized, is left to Pillow
        place(picture.size, spec)
        return (
            spec.mode == picture.mode == "RGB"
            and isinstance(picture, JpegImageFile)
            and "progressive" not in picture.info
            and picture.info.get("adobe_transform", 1) == 1  # YCbCr
            and [layer[0] for layer in picture.layer] != list(b"RGB")
            and picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
            and len(ends_of_scans(file)) == 1
            # nvJPEG may not say what is missing. A block takes two bits at least, and 256 pixels six blocks.
            and file.rstrip(b"\0").endswith(b"\xff\xd9")
            and picture.width * picture.height <= 170 * len(file)
        )
    return False


def decode_jpegs(files: Sequence[bytes], spec: Image, device: torch.device) -> list[Tensor | InvalidInput]:
    """The pixels of each, height × width × channels; by Pillow, or its error, where the GPU cannot decode one."""
    try:
        pictures = nvjpeg(files, device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        if len(files) > 1:  # one by one, so that a bad file changes nothing for its neighbours
            return [decode_jpegs([file], spec, device)[0] for file in files]
        try:
            return [torch.tensor(read_pixels(files[0], spec, sys.maxsize))]  # it has been found small enough
        except InvalidInput as fault:
            return [fault]
    alike = len({picture.shape for picture in pictures}) == 1
    cut = _cut(torch.stack(pictures), spec) if alike else [_cut(one[None], spec)[0] for one in pictures]
    # nvJPEG writes on a stream of its own: its memory must not be free again before this stream has read it.
    torch.get_device_module(device).synchronize()
    return list(cut)


def nvjpeg(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # here: torchvision says that it is to go one day

    contents = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
    pictures: list[Tensor] = decode_jpeg(contents, ImageReadMode.RGB, device)
    return pictures


def _cut(pictures: Tensor, spec: Image) -> Tensor:
    """As ``images.crop`` does, but in float32: from channels × height × width to height × width × channels."""
    height, width = spec.size
    (across, down), (left, top) = place((pictures.shape[3], pictures.shape[2]), spec)
    resized: Tensor = resize(pictures, [down, across], InterpolationMode(spec.interpolation), antialias=True)
    return resized[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)


class GpuRunner:
    """Runs a network on a GPU. Of its batch, an answer's bits depend only on the size that the batch is padded to."""

    device = "cuda"
    slots = 2
    kernels = "program"
    libraries: tuple[str, ...] = ("torch", "torchvision")

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
        self._most, self._changed, self._clock = self.chunk, 0.0, clock
        self._spec = spec
        self._device = device
        self._dtype: torch.dtype = getattr(torch, options.precision)
        self._network = network.to(self._dtype).to(memory_format=torch.channels_last)
        self._decodes = options.decode == "gpu"
        if self._decodes:  # whether it can is known only when it does
            PIL.Image.new("RGB", (16, 16)).save(file := io.BytesIO(), "JPEG")
            nvjpeg([file.getvalue()], device)
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

    def load(self, file: bytes, max_pixels: int) -> bytes | Tensor:
        """The file itself if the GPU is to decode it, else its pixels; raises InvalidInput."""
        if self._decodes and suits_nvjpeg(file, open_image(file, max_pixels), self._spec):
            return file
        return torch.tensor(read_pixels(file, self._spec, max_pixels))

    @torch.inference_mode()
    def run(self, images: Sequence[bytes | Tensor | Array]) -> list[Array | ServiceError]:
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

    def _pass(self, images: Sequence[bytes | Tensor | Array]) -> list[Array | ServiceError]:
        count = len(images)
        files = [image for image in images if isinstance(image, bytes)]
        decoded = iter(decode_jpegs(files, self._spec, self._device) if files else ())
        given = [next(decoded) if isinstance(image, bytes) else image for image in images]
        normalised = self._normalised(given)
        with self._computing:  # all batches are computed in the same memory
            self._images[:count].copy_(normalised)
            self._steps[self.bucket(count)]()
            vectors = self._answers[:count].to("cpu", copy=True).numpy()
        return [image if isinstance(image, InvalidInput) else vectors[row] for row, image in enumerate(given)]

    def _normalised(self, images: Sequence[Tensor | Array | InvalidInput]) -> Tensor:
        """On the device: pixels as images.normalise makes them, and arrays as they are."""
        pixels = torch.zeros(len(images), *self._images.shape[1:], dtype=torch.uint8, device=self._device)
        for row, image in enumerate(images):
            if isinstance(image, Tensor):
                pixels[row].copy_(image, non_blocking=True)
        # By a tensor: CUDA multiplies by the reciprocal of a Python number, which moves last bits.
        normalised = torch.div(pixels, self._white).sub_(self._mean).div_(self._std)
        for row, image in enumerate(images):
            if isinstance(image, np.ndarray):
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
