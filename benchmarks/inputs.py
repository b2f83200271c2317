"""Inputs that no server has seen: drawn anew in every run."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Iterator

IRIS = {
    "sepal_length": (4.3, 7.9),
    "sepal_width": (2.0, 4.4),
    "petal_length": (1.0, 6.9),
    "petal_width": (0.1, 2.5),
}
"""Feature -> lowest and highest measurement in the data set."""

HOT_IRIS = (5.1, 3.5, 1.4, 0.2)
"""The one input that warm measurements repeat."""


Row = tuple[float, float, float, float]


def iris_rows(chance: random.Random) -> Iterator[Row]:
    """Flowers drawn uniformly from the box of all measured ones, with more digits than any ruler gives."""
    draw = chance.uniform
    while True:
        a, b, c, d = (draw(low, high) for low, high in IRIS.values())
        yield a, b, c, d


def iris_target(row: tuple[float, ...], prefix: str = "/predict?") -> str:
    """The request target that asks for ``row``."""
    return prefix + "&".join(f"{name}={value!r}" for name, value in zip(IRIS, row, strict=True))


def iris_targets(chance: random.Random) -> Iterator[str]:
    return (iris_target(row) for row in iris_rows(chance))


def jpeg(chance: random.Random, side: int = 224, quality: int = 75) -> bytes:
    """Coloured blurs, in a file about as large as a photograph's."""
    from PIL import Image

    noise = Image.frombytes("RGB", (side // 4, side // 4), chance.randbytes((side // 4) ** 2 * 3))
    file = io.BytesIO()
    noise.resize((side, side)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def small_png(chance: random.Random) -> bytes:
    """8 × 8 pixels of noise, as large as the scanned digits."""
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("L", (8, 8), chance.randbytes(64)).save(file, "PNG")
    return file.getvalue()


def digit_targets(chance: random.Random) -> Iterator[str]:
    """Scanned digits as base64url PNGs in the query string, each with a few random pixels of its own."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    scans = load_digits().images
    while True:
        pixels = scans[chance.randrange(len(scans))] * 15.9
        noisy = np.clip(pixels + [[chance.uniform(0, 15) for _ in range(8)] for _ in range(8)], 0, 255)
        file = io.BytesIO()
        Image.fromarray(noisy.astype(np.uint8)).save(file, "PNG")
        yield "/predict?model=digits&image=" + base64.urlsafe_b64encode(file.getvalue()).rstrip(b"=").decode()
