"""What runs a network: one interface for CPU and GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput, ServiceError

Vector: TypeAlias = NDArray[np.float32]
"""What a network says to one image: probabilities, or other numbers."""

Compute: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A network as a function: what it says to each of images × height × width × channels."""


class Batch(Protocol):
    """Payloads on their way through the network."""

    def load(self, row: int, payload: bytes) -> InvalidInput | None:
        """Decode a payload into its row, or say what is wrong with it. Any thread may call it, once for each row."""

    def compute(self, rows: Sequence[int]) -> Sequence[Vector | ServiceError]:
        """The network's answer to each row, or the reason why there is none. The rows ascend, and all are loaded.

        Raises DeviceLost when the device can compute nothing any more.
        """


class Runner(Protocol):
    """A network on a device. An answer does not depend on what it is batched with."""

    device: str
    """"cpu" or "cuda"."""
    kernels: str
    """What computes the network. It decides the last bits of an answer."""
    libraries: tuple[str, ...]
    """The distributions that compute the network."""
    slots: int
    """Most batches that may be open at once."""
    chunk: int
    """Most rows that are worth computing at once."""

    def open(self) -> AbstractContextManager[Batch]:
        """A batch of at most ``max_batch_size`` rows. Every load has ended before it is closed."""
