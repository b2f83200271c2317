"""The one place that knows CUDA's streams, events and graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import torch

Launch: TypeAlias = Callable[[], object]
"""Work for the device, always on the same memory."""

MEMORY_ERRORS = ("out of memory", "ALLOC_FAILED")
"""What CUDA, cuDNN and cuBLAS say where torch itself does not raise its own type."""


class Event(Protocol):
    """A point in a stream's work: a CUDA event."""

    def wait(self) -> object:
        """Let the current stream go no further before that point is reached; returns at once."""

    def synchronize(self) -> object:
        """Return when it is reached; raises RuntimeError for what went wrong on the device."""


class Device(Protocol):
    """What is needed of CUDA beyond tensors. The tests have one that needs no GPU (tests/support/fake_cuda.py)."""

    name: torch.device

    def copying(self) -> AbstractContextManager[object]:
        """Inside, this thread's work goes to the copy stream."""

    def computing(self) -> AbstractContextManager[object]:
        """Inside, this thread's work goes to the stream that computes."""

    def mark(self) -> Event:
        """The end of what the current stream has been given so far."""

    def graph(self, step: Launch) -> Launch:
        """``step`` as one launch on the computing stream; raises RuntimeError. Not while anything else is computed."""

    def release(self) -> None:
        """Give memory back that is held only to be used again."""

    def is_lost(self) -> bool:
        """Whether an error has stuck, so that every call fails until the process is replaced."""


class Cuda:
    """The CUDA device that is current now, and two streams on it."""

    def __init__(self) -> None:
        self.name = torch.device("cuda", torch.cuda.current_device())
        self._copying, self._computing = (torch.cuda.Stream(self.name) for _ in range(2))  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def copying(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._copying)

    def computing(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._computing)

    def mark(self) -> Event:
        # Blocking: who waits for it leaves the CPU to those who decode.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def graph(self, step: Launch) -> Launch:
        torch.cuda.synchronize()
        with self.computing():
            step()  # what the libraries set up at a first call cannot be captured
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._computing, capture_error_mode="thread_local"):
            step()
        return graph.replay

    def release(self) -> None:
        torch.cuda.empty_cache()

    def is_lost(self) -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False


def compute_exactly() -> None:
    """No rounding of float32 to TF32, which torch does in convolutions unless told; the same kernels every time."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in MEMORY_ERRORS)
