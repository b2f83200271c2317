"""A small image model that has learnt nothing: made in a second, and served like any other."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import nn

from training import register_network
from training.digits import split


def write_untrained(models: Path, name: str = "digits") -> list[bytes]:
    """Write ``models/name``; returns image files to ask it about, the first of them its example."""
    torch.manual_seed(0)
    files = [file for file, _ in split()[1][:20]]
    register_network(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)
        ),
        name=name,
        size=32,
        classes=[str(digit) for digit in range(10)],
        mean=(0.3,) * 3,
        std=(0.38,) * 3,
        example=files[0],
        models_dir=models,
    )
    return files


def write_both(iris_models: Path, directory: Path) -> Path:
    """``directory/models``, with ``iris`` and with ``digits`` that has learnt nothing."""
    models = shutil.copytree(iris_models, directory / "models")
    write_untrained(models)
    return models
