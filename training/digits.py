"""scikit-learn's bundled scans of handwritten digits as image files, split into a training and a held-out part."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 0
HELD_OUT = 0.2


def split() -> tuple[list[tuple[bytes, int]], list[tuple[bytes, int]]]:
    """PNG files and the digits they show: four fifths to train with, one to test with, always the same ones."""
    digits = load_digits()
    parts = train_test_split(
        digits.images, digits.target, test_size=HELD_OUT, stratify=digits.target, random_state=SEED
    )
    train_scans, test_scans, train_digits, test_digits = parts
    return list(_files(train_scans, train_digits)), list(_files(test_scans, test_digits))


def png(scan: NDArray[np.float64]) -> bytes:
    """An 8 × 8 scan of values 0 to 16 as a greyscale PNG, ink white on black."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.rint(scan * 255 / 16).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def export(directory: Path) -> int:
    """Write the held-out files as ``<digit>_<number>.png``; returns how many."""
    directory.mkdir(parents=True, exist_ok=True)
    _, held_out = split()
    for number, (file, digit) in enumerate(held_out):
        (directory / f"{digit}_{number:03}.png").write_bytes(file)
    return len(held_out)


def _files(scans: NDArray[np.float64], digits: NDArray[np.int64]) -> Iterator[tuple[bytes, int]]:
    for scan, digit in zip(scans, digits, strict=True):
        yield png(scan), int(digit)
