"""A CPU in the place of a GPU: the service's own code for GPUs runs on it, with neither streams nor graphs."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from service.inference.vision.cuda import Launch


class Event:
    def wait(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeCuda:
    """``released``: how often memory was given back. Set ``error``: every batch fails with it; ``lost``: it sticks."""

    name = torch.device("cpu")

    def __init__(self) -> None:
        self.released = 0
        self.error: RuntimeError | None = None
        self.lost = False

    def copying(self) -> nullcontext[None]:
        return nullcontext()

    def computing(self) -> nullcontext[None]:
        return nullcontext()

    def mark(self) -> Event:
        if self.error is not None:
            raise self.error
        return Event()

    def graph(self, step: Launch) -> Launch:
        step()
        return step

    def release(self) -> None:
        self.released += 1

    def is_lost(self) -> bool:
        return self.lost


class Memory:
    """A network's forward hook that bears ``images`` at once. ``tried``: the size of every batch."""

    def __init__(self, network: nn.Module, images: int) -> None:
        self.images = images
        self.tried: list[int] = []
        network.register_forward_pre_hook(self)

    def __call__(self, network: nn.Module, inputs: tuple[Tensor]) -> None:
        self.tried.append(len(inputs[0]))
        if len(inputs[0]) > self.images:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to hold {len(inputs[0])} images.")
