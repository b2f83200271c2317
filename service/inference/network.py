"""The network itself: a torchvision ResNet, its weights, the device it runs on, and how a CPU runs it best."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import ResNet

from service.errors import ConfigurationError, InvalidInput
from service.inference.fused import FusedResNet, can_fuse
from service.inference.image_input import array_of
from service.inference.images import read
from service.inference.manifest import Image
from service.inference.runner import Vector

ARCHITECTURES = tuple(name for name in resnet.__all__ if name.islower())
"""Every ResNet that torchvision can build: resnet18 … resnet152, resnext…, wide_resnet…"""

CPU_CHUNK = 8
"""Images computed at once on a CPU, or one for each thread if those are more: larger numbers are no faster, and keep
decoding and computing from overlapping."""

SMALL_SECONDS = 0.02
"""A network that takes longer than this for an image on one thread is faster on several."""

REPEATS = 8


def build(architecture: str, mode: Literal["L", "RGB"], classes: int) -> ResNet:
    """An untrained network for grey or colour images, with one output per class; raises ConfigurationError."""
    if architecture not in ARCHITECTURES:
        raise ConfigurationError(f"Unknown architecture {architecture!r}; it is one of {', '.join(ARCHITECTURES)}.")
    builder: Callable[..., ResNet] = getattr(resnet, architecture)
    network = builder(num_classes=classes)
    if mode == "L":
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


def restore(spec: Image, classes: int, weights: bytes, file: str) -> ResNet:
    """The network with these weights, in float32, ready to answer; raises ConfigurationError."""
    with torch.device("meta"):  # no time lost on random weights that are about to be replaced
        network = build(spec.architecture, spec.mode, classes)
    try:
        network.load_state_dict(read_state(weights, file), assign=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigurationError(f"{file} does not fit {spec.architecture} with {classes} classes: {reason}") from None
    return network.float().eval().requires_grad_(False)


def read_state(weights: bytes, file: str) -> dict[str, Tensor]:
    """The tensors of a state dict; nothing in the file is executed. Raises ConfigurationError."""
    try:
        if file.endswith(".safetensors"):
            state: dict[str, Tensor] = import_module("safetensors.torch").load(weights)
        else:
            state = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
    except ImportError:
        raise ConfigurationError(f"{file} needs the package safetensors: pip install safetensors.") from None
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{file} is not a plain state dict ({reason}); save `model.state_dict()`.") from error
    return state


def resolve_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device to run on; raises ConfigurationError when a GPU is asked for and there is none."""
    available = torch.cuda.is_available()
    if wanted == "cuda" and not available:
        raise ConfigurationError("PREDICT_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu.")
    return torch.device("cuda" if available and wanted != "cpu" else "cpu")


class CpuRunner:
    """Runs a network on the CPU: by the fused kernels, which are batch-invariant, or without them one by one.

    On so many ``threads``: they share the layers of a lone image, and the images of a batch that has some for each,
    since threads that meet in every layer wait for the slowest in every layer. No bit depends on it.
    """

    device = "cpu"
    slots = 1

    def __init__(self, network: ResNet, spec: Image, threads: int) -> None:
        fused = can_fuse()
        self.kernels = "fused" if fused else "stock"
        self.chunk = max(CPU_CHUNK, threads) if fused else 1
        self._network = FusedResNet(network) if fused else network.to(memory_format=torch.channels_last)
        self._spec = spec
        self._pool = ThreadPoolExecutor(threads, "compute", use_threads, (1,))
        self._threads = threads
        self._lone_threads = 1 if fused and self._is_small() else threads

    @contextmanager
    def open(self) -> Iterator[CpuBatch]:
        yield CpuBatch(self._run, self._spec)

    def _run(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities, images × classes, of images × height × width × channels."""
        if 1 < self._threads <= len(images):
            return np.concatenate(list(self._pool.map(self._pass, np.array_split(images, self._threads))))
        use_threads(self._lone_threads)
        return self._pass(images)

    @torch.inference_mode()
    def _pass(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        # Channels-last is this very layout under another name, so nothing is copied.
        logits = self._network(torch.from_numpy(images).permute(0, 3, 1, 2))
        probabilities: NDArray[np.float32] = torch.softmax(logits, dim=1).numpy()
        return probabilities

    def _is_small(self) -> bool:
        """Whether threads cost a lone image more by waking each other in every layer than they gain."""
        if self._threads == 1:
            return True
        alone = self._seconds(1)
        return alone < SMALL_SECONDS and alone <= self._seconds(self._threads)

    def _seconds(self, threads: int) -> float:
        """The least that a lone image takes, the first time left out, in which kernels are made."""
        use_threads(threads)
        image = np.zeros((1, *self._spec.size, len(self._spec.mode)), np.float32)
        took: list[float] = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            self._pass(image)
            took.append(time.perf_counter() - began)
            if took[-1] >= 10 * SMALL_SECONDS:
                break
        return min(took[1:] or took)


class CpuBatch:
    """Images as the network wants them, each normalised where it was decoded."""

    def __init__(self, run: Callable[[NDArray[np.float32]], NDArray[np.float32]], spec: Image) -> None:
        self._run = run
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
        return list(self._run(np.stack([self._images.pop(row) for row in rows])))


def use_threads(count: int) -> None:
    """How many threads the calling one computes with; the second pool torch would start stays at one."""
    if torch.get_num_threads() != count:  # it forgets all prepared kernels each time
        torch.set_num_threads(count)
    if torch.get_num_interop_threads() != 1:
        with suppress(RuntimeError):  # too late once something has run in parallel; we do not use it
            torch.set_num_interop_threads(1)
