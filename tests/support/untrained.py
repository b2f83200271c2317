"""An image model that has learnt nothing: made in a second, and served like any other."""

from __future__ import annotations

from pathlib import Path

import torch

from service.inference.manifest import Image
from service.inference.vision.torch_network import build
from training import publish
from training.digits import split
from training.resnet import draft, state_bytes

SPEC = Image(architecture="resnet18", size=(32, 32), mean=(0.3, 0.3, 0.3), std=(0.38, 0.38, 0.38))


def write_untrained(models: Path, name: str = "digits") -> list[bytes]:
    """Write ``models/name``; returns image files to ask it about, the first of them its example."""
    torch.manual_seed(0)
    weights = state_bytes(build(SPEC.architecture, SPEC.mode, 10).state_dict())
    files = [file for file, _ in split()[1][:20]]
    labels = [str(digit) for digit in range(10)]
    manifest = draft(name, "Untrained.", SPEC, labels, weights, files[0])
    publish(models, manifest, weights)
    return files
