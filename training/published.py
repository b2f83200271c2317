"""The ImageNet weights that torchvision publishes, with their own preprocessing and labels."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import PIL.Image
from torch import Tensor
from torch.hub import load_state_dict_from_url
from torchvision.models import get_model_weights

from service.errors import ConfigurationError
from service.inference.manifest import Image

DIGEST_IN_NAME = re.compile(r"-[0-9a-f]{8,}\.[^/]*$")


@dataclass(frozen=True, slots=True)
class Published:
    """A state dict with all that its publisher says about it. ``accuracy``: of the first guess, from 0 to 1."""

    state: dict[str, Tensor]
    spec: Image
    labels: list[str]
    accuracy: float
    example: bytes


def fetch(architecture: str, file: Path | None = None) -> Published:
    """The recommended weights of that network, downloaded or from ``file``; raises ConfigurationError."""
    weights = get_model_weights(architecture).DEFAULT
    steps = weights.transforms()
    (size,), (resize,) = steps.crop_size, steps.resize_size
    return Published(
        state=load(weights.url if file is None else file.resolve().as_uri()),
        spec=Image(architecture=architecture, size=(size, size), resize=resize, mean=steps.mean, std=steps.std),
        labels=list(weights.meta["categories"]),
        accuracy=weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] / 100,
        example=gradient(),
    )


def load(url: str) -> dict[str, Tensor]:
    """By torchvision's own loader, which checks the digest in the file's name; raises ConfigurationError."""
    if not DIGEST_IN_NAME.search(url):
        raise ConfigurationError(f"{url} cannot be verified: its name has no digest, as resnet18-f37072fd.pth has.")
    try:
        with TemporaryDirectory() as directory:
            state: dict[str, Tensor] = load_state_dict_from_url(
                url, directory, map_location="cpu", check_hash=True, weights_only=True
            )
    except (OSError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"{url}: {reason}; get the file elsewhere and name it with --weights.") from None
    return state


def gradient() -> bytes:
    """A small picture to warm up and measure with, where there is none of the model's own."""
    ramp = np.arange(0, 256, 4, dtype=np.uint8)
    file = io.BytesIO()
    channels = np.broadcast_arrays(ramp, ramp[:, None], 128)
    PIL.Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()
