"""A torchvision ResNet without any service: ``python -m benchmarks.bare weights …`` or ``measure …``; prints JSON.

Run in a process of its own, so that it has the device to itself and leaves nothing on it.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import get_model

from benchmarks.inputs import jpeg
from benchmarks.machine import ALL_CORES

SIDE = 224
CORES = len(ALL_CORES)


def weights(architecture: str, directory: Path) -> Path:
    """Random but seeded weights, in a file named as torchvision names its own."""
    torch.manual_seed(0)
    unnamed = directory / "weights"
    torch.save(get_model(architecture, weights=None, zero_init_residual=True).state_dict(), unnamed)
    digest = hashlib.sha256(unnamed.read_bytes()).hexdigest()[:8]
    return unnamed.rename(directory / f"{architecture}-{digest}.pth")


def measure(architecture: str, device: str, precision: str, batch: int, seconds: float) -> dict[str, Any]:
    """Images per second of each way to run the network, and seconds of each stage before it, the fastest way each."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    place, dtype = torch.device(device), getattr(torch, precision)
    chance = random.Random(0)
    files = [jpeg(chance) for _ in range(min(batch, 256))]
    one, many = (_fastest(architecture, place, dtype, count, seconds) for count in (1, batch))
    return {
        "batch": batch,
        "rates": {way: batch / spent for way, spent in many.items()},
        "seconds": {
            "inference of one": min(one.values()),
            "inference of a batch": min(many.values()),
            **_decoding(files, seconds),
            **_copying(batch, place, seconds),
        },
        "device": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if device == "cuda" else "CPU alone",
    }


@torch.inference_mode()
def _fastest(
    architecture: str, device: torch.device, dtype: torch.dtype, batch: int, seconds: float
) -> dict[str, float]:
    """Seconds of one call by each way to make it, inputs on the device."""
    torch.manual_seed(0)
    network = get_model(architecture, weights=None, zero_init_residual=True).eval().to(device, dtype)
    images = torch.randn(batch, 3, SIDE, SIDE, device=device, dtype=dtype)
    found = {"eager": _time(lambda: network(images), device, seconds)}
    network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    found["channels-last"] = _time(lambda: network(images), device, seconds)
    if device.type == "cuda":
        found["channels-last, CUDA graph"] = _time(_graph(network, images), device, seconds)
        torch.backends.cudnn.benchmark = True
        found["channels-last, cudnn.benchmark"] = _time(lambda: network(images), device, seconds)
        found["channels-last, cudnn.benchmark, CUDA graph"] = _time(_graph(network, images), device, seconds)
        torch.backends.cudnn.benchmark = False
    return found


def _graph(network: nn.Module, images: Tensor) -> Callable[[], object]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        network(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        network(images)
    return graph.replay


def _decoding(files: list[bytes], seconds: float) -> dict[str, float]:
    """Seconds for one file by one thread, and per file of many by all cores."""

    def pillow(file: bytes) -> object:
        return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))

    cpu = torch.device("cpu")
    found = {"Pillow, one thread": _time(lambda: pillow(files[0]), cpu, seconds)}
    with ThreadPoolExecutor(CORES) as pool:
        together = _time(lambda: list(pool.map(pillow, files)), cpu, seconds)
    found[f"Pillow, {CORES} threads"] = together / len(files)
    return found


def _copying(batch: int, device: torch.device, seconds: float) -> dict[str, float]:
    pinned = device.type == "cuda"
    host = torch.zeros(batch, SIDE, SIDE, 3, dtype=torch.uint8, pin_memory=pinned)
    there = torch.zeros_like(host, device=device)
    return {
        "copy of one": _time(lambda: there[:1].copy_(host[:1], non_blocking=True), device, seconds),
        "copy of a batch": _time(lambda: there.copy_(host, non_blocking=True), device, seconds),
    }


def _time(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The mean over ``seconds``, after a third as long to warm up."""
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else int
    for length in (seconds / 3, seconds):
        wait()
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < length or not count:
            call()
            wait()
            count += 1
        spent = (time.perf_counter() - began) / count
    return spent


if __name__ == "__main__":
    role, *words = sys.argv[1:]
    if role == "weights":
        print(weights(words[0], Path(words[1])))
    else:
        print(json.dumps(measure(words[0], words[1], words[2], int(words[3]), float(words[4]))))
