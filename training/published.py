"""torchvision's networks: any of them built, its preprocessing, and the ImageNet weights that it publishes."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import torch
import torchvision.models
from safetensors.torch import load as read_safetensors
from torch import Tensor, nn
from torch.hub import load_state_dict_from_url

from service.errors import ConfigurationError
from service.inference.manifest import Image
from training.export import one_line

DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.[^/]*$")

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Published:
    """A network with all that its publisher says about it. ``accuracy``: of the first guess, from 0 to 1."""

    network: nn.Module
    spec: Image
    labels: list[str]
    accuracy: float | None


def build(architecture: str, classes: int) -> nn.Module:
    """An untrained network for colour images, with one output per class; raises ConfigurationError."""
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise ConfigurationError(f"Unknown architecture {architecture!r:.80}; it is one of {', '.join(known)}.")
    # GoogLeNet and Inception warn that they take long to be made.
    how = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    network: nn.Module = torchvision.models.get_model(architecture, weights=None, num_classes=classes, **how)
    return network


def spec_of(architecture: str) -> Image:
    """How torchvision's own weights for it want their images; raises ConfigurationError."""
    steps = _weights(architecture).transforms()
    (size,), (resize,) = steps.crop_size, steps.resize_size
    return Image(
        architecture=architecture,
        size=(size, size),
        resize=resize,
        interpolation=steps.interpolation.value,
        mean=steps.mean,
        std=steps.std,
    )


def fetch(architecture: str, file: Path | None = None) -> Published:
    """The recommended weights of that network, downloaded or from ``file``; raises ConfigurationError."""
    weights = _weights(architecture)
    labels = list(weights.meta["categories"])
    network = build(architecture, len(labels))
    adopt(network, _download(weights.url) if file is None else read_state(file))
    # The published accuracy is that of the published file.
    own = file is None or hashlib.sha256(file.read_bytes()).hexdigest().startswith(_digest(weights.url) or "?")
    accuracy = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100 if own else None
    return Published(network, spec_of(architecture), labels, accuracy)


def _weights(architecture: str) -> Any:
    with torch.device("meta"):
        build(architecture, 1000)  # raises for one that is unknown
    return torchvision.models.get_model_weights(architecture).DEFAULT


def _download(url: str) -> State:
    """Downloaded by torch, which checks the digest in the file's name; raises ConfigurationError."""
    try:
        with TemporaryDirectory() as directory:
            state: State = load_state_dict_from_url(
                url, directory, map_location="cpu", check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"{url}: {one_line(error)}; get the file elsewhere and name it with --weights."
        ) from None
    return state


def read_state(file: Path) -> State:
    """A state dict, as torch saves it or as safetensors; nothing in it is executed. Raises ConfigurationError.

    A digest in the file's name, as in resnet18-f37072fd.pth, is checked.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}).") from None
    if not hashlib.sha256(data).hexdigest().startswith(_digest(file.name) or ""):
        raise ConfigurationError(f"{file} does not have the digest in its name: it is truncated or changed.")
    try:
        state = (
            read_safetensors(data)
            if file.suffix == ".safetensors"
            else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        )
        for name, tensor in state.items():
            if not (isinstance(name, str) and isinstance(tensor, Tensor)):
                raise TypeError(f"its member {name!r:.80} is no tensor with a name")
    except Exception as error:
        raise ConfigurationError(
            f"{file} is not a plain state dict ({one_line(error)}); save `model.state_dict()`."
        ) from None
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def adopt(network: nn.Module, state: State, *, other_classes: bool = False) -> None:
    """Take over the weights; raises ConfigurationError. ``other_classes``: the last layer's only if they fit."""
    own = network.state_dict()
    last = list(own)[-1].rpartition(".")[0]
    layer = {name: tensor for name, tensor in own.items() if name.rpartition(".")[0] == last}
    if other_classes and any(state[name].shape != own[name].shape for name in layer if name in state):
        state = state | layer
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigurationError(f"The weights do not fit the network: {one_line(error)}") from None


def _digest(name: str) -> str | None:
    found = DIGEST_IN_NAME.search(name)
    return found and found[1]


def gradient() -> bytes:
    """A small picture to warm up and measure with, where there is none of the model's own."""
    ramp = np.arange(0, 256, 4, dtype=np.uint8)
    file = io.BytesIO()
    channels = np.broadcast_arrays(ramp, ramp[:, None], 128)
    PIL.Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
