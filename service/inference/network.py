"""The network itself: a torchvision ResNet, its weights, the device it runs on, and the fastest exact way to run it."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.resnet import ResNet

from service.errors import ConfigurationError
from service.inference.fused import FusedResNet, can_fuse
from service.inference.manifest import Image

ARCHITECTURES = tuple(name for name in resnet.__all__ if name.islower())
"""Every ResNet that torchvision can build: resnet18 … resnet152, resnext…, wide_resnet…"""

CPU_CHUNK = 8
"""Images per pass on a CPU: larger ones are no faster, and keep decoding and computing from overlapping."""


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


def compute_in_float32() -> None:
    """Keep a GPU from rounding to TF32, which torch does in convolutions unless told."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class Runner:
    """Runs a network on one device, float32 in and out; an answer does not depend on what it is batched with.

    On a CPU the fused kernels see to that; without them, images are computed one by one. On a GPU batches are padded
    to a few sizes, each of which always takes the same kernels.
    """

    def __init__(self, network: ResNet, device: torch.device, max_batch_size: int) -> None:
        self.device = device
        fused = device.type == "cpu" and can_fuse()
        self.kernels = "fused" if fused else "stock"
        """Which way the network is computed: it moves last bits."""
        self.chunk = max_batch_size if device.type == "cuda" else CPU_CHUNK if fused else 1
        """Most images per call."""
        self._network: nn.Module = (
            FusedResNet(network) if fused else network.to(device, memory_format=torch.channels_last)
        )

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities, images × classes, of images × height × width × channels."""
        count = len(images)
        # Channels-last is this very layout under another name, so nothing is copied.
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).to(self.device)
        if self.device.type == "cuda":
            batch = nn.functional.pad(batch, (0, 0, 0, 0, 0, 0, 0, bucket(count, self.chunk) - count))
        probabilities = torch.softmax(self._network(batch), dim=1)[:count]
        array: NDArray[np.float32] = probabilities.cpu().numpy()
        return array


def bucket(count: int, limit: int) -> int:
    """The padded size of a batch: the next power of two, and at most ``limit``."""
    return min(1 << (count - 1).bit_length(), limit)


def use_threads(count: int) -> None:
    """How many threads this process computes with; the second pool torch would start stays at one."""
    torch.set_num_threads(count)
    if torch.get_num_interop_threads() != 1:
        with suppress(RuntimeError):  # too late once something has run in parallel; we do not use it
            torch.set_num_interop_threads(1)
