"""The network in torch: to train it, for a GPU, and for a CPU where OpenVINO is not installed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet
from torchvision.models.resnet import ResNet

from service.inference.artifact import Artifact
from service.inference.manifest import Image
from service.inference.vision.resnet import describe
from service.inference.vision.runner import Compute
from service.inference.vision.state_dict import network_of

LIBRARIES: tuple[str, ...] = ("torch", "torchvision")


def build(architecture: str, mode: Literal["L", "RGB"], classes: int) -> ResNet:
    """An untrained network for grey or colour images, with one output per class; raises ConfigurationError."""
    describe(architecture, len(mode))  # raises for one that is unknown
    builder: Callable[..., ResNet] = getattr(resnet, architecture)
    network = builder(num_classes=classes)
    if mode == "L":
        network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


def restore(artifact: Artifact, spec: Image) -> ResNet:
    """The network with its weights, in float32, ready to answer; raises ConfigurationError."""
    _, state = network_of(artifact, spec)
    with torch.device("meta"):  # no time lost on random weights that are about to be replaced
        network = build(spec.architecture, spec.mode, len(artifact.manifest.classes))
    network.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def compute(network: ResNet) -> Compute:
    """The network as a function, on the CPU."""
    network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(images: NDArray[np.float32]) -> NDArray[np.float32]:
        # Channels-last is this very layout under another name, so nothing is copied.
        logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
        probabilities: NDArray[np.float32] = torch.softmax(logits, dim=1).numpy()
        return probabilities

    return infer


def fold(network: ResNet, spec: Image) -> ResNet:
    """The same network, in place, with each batch norm folded into the convolution before it."""
    for layer in describe(spec.architecture, len(spec.mode)).convolutions:
        folded = fuse_conv_bn_eval(network.get_submodule(layer.name), network.get_submodule(layer.norm))
        network.set_submodule(layer.name, folded)
        network.set_submodule(layer.norm, nn.Identity())
    return network


def use_threads(count: int) -> None:
    """How many threads torch computes with; the second pool that it would start stays at one."""
    torch.set_num_threads(count)
    if torch.get_num_interop_threads() != 1:
        with suppress(RuntimeError):  # too late once something has run in parallel; we do not use it
            torch.set_num_interop_threads(1)
