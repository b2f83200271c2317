"""The network itself: a torchvision ResNet, its weights, and the device it runs on."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from service.errors import ConfigurationError
from service.inference.manifest import Image

ARCHITECTURES = tuple(name for name in resnet.__all__ if name.islower())
"""Every ResNet that torchvision can build: resnet18 … resnet152, resnext…, wide_resnet…"""


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


def fold(network: ResNet) -> ResNet:
    """The same network, in place, with each batch norm folded into the convolution before it."""
    _fold(network, "conv1", "bn1")
    for block in blocks(network):
        for number in convolutions(block):
            _fold(block, f"conv{number}", f"bn{number}")
        if block.downsample is not None:
            _fold(block.downsample, "0", "1")
    return network


def blocks(network: ResNet) -> list[BasicBlock | Bottleneck]:
    """All residual blocks, in order."""
    return [block for layer in (network.layer1, network.layer2, network.layer3, network.layer4) for block in layer]


def convolutions(block: BasicBlock | Bottleneck) -> str:
    """The numbers of a block's convolutions, in order, without its shortcut's."""
    return "123" if isinstance(block, Bottleneck) else "12"


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    setattr(parent, convolution, fuse_conv_bn_eval(getattr(parent, convolution), getattr(parent, norm)))
    setattr(parent, norm, nn.Identity())


def use_threads(count: int) -> None:
    """How many threads torch computes with; the second pool that it would start stays at one."""
    torch.set_num_threads(count)
    if torch.get_num_interop_threads() != 1:
        with suppress(RuntimeError):  # too late once something has run in parallel; we do not use it
            torch.set_num_interop_threads(1)
