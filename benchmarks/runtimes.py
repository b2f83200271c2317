# /// script
# requires-python = "==3.11.*"
# dependencies = [
#   "torch==2.15.0", "torchvision==0.29.2", "numpy==2.4.6",
#   "onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.31.1", "openvino==2026.4.1",
# ]
# ///
"""ResNet-18 called directly in a loop: ``runtimes.py ROLE DIRECTORY [SECONDS]``.

ROLE is prepare, export, decode or a runtime. A runtime stays: for each line it reads, a batch's size and seconds, it
measures for so long.

Imports nothing but numpy until it knows its role: ONNX Runtime and OpenVINO live in an environment of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 8, 32)
TOLERANCE = 1e-4
"""Of the largest logit: float32 in another order stays a hundred times below it, bfloat16 is a hundred times above."""

Array = NDArray[np.float32]
Call = Callable[[], Array]
"""One call of the network with inputs that are ready; returns the logits."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(directory: Path) -> Path:
    """Random but seeded weights, inputs, and what torch eager says to them; the weights' file."""
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    unnamed = directory / "weights"
    torch.save(resnet18().state_dict(), unnamed)
    weights = unnamed.rename(directory / f"resnet18-{hashlib.sha256(unnamed.read_bytes()).hexdigest()[:8]}.pth")
    for batch in BATCHES:
        np.save(directory / f"images-{batch}.npy", torch.randn(batch, 3, 224, 224).numpy())
        np.save(directory / f"logits-{batch}.npy", eager(directory, batch)())
    return weights


def export(directory: Path) -> None:
    """An ONNX file for every batch size."""
    import torch

    for batch in BATCHES:
        images = torch.from_numpy(_images(directory, batch))
        path = directory / f"resnet18-{batch}.onnx"
        torch.onnx.export(_network(directory), (images,), path, input_names=["images"], dynamo=True)


def eager(directory: Path, batch: int, *, channels_last: bool = False) -> Call:
    import torch

    torch.set_num_threads(CORES)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network = _network(directory).to(memory_format=layout)
    images = torch.from_numpy(_images(directory, batch)).contiguous(memory_format=layout)

    @torch.inference_mode()
    def call() -> Array:
        logits: Array = network(images).numpy()
        return logits

    return call


def channels_last(directory: Path, batch: int) -> Call:
    return eager(directory, batch, channels_last=True)


def onnxruntime(directory: Path, batch: int) -> Call:
    library: Any = import_module("onnxruntime")
    options = library.SessionOptions()
    options.intra_op_num_threads = CORES
    path = directory / f"resnet18-{batch}.onnx"
    session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {"images": _images(directory, batch)}
    return lambda: session.run(None, inputs)[0]


def openvino(directory: Path, batch: int) -> Call:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # importing openvino would report
    library: Any = import_module("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": CORES, "PERFORMANCE_HINT": "LATENCY"}
    compiled = library.Core().compile_model(str(directory / f"resnet18-{batch}.onnx"), "CPU", settings)
    request = compiled.create_infer_request()
    inputs = [_images(directory, batch)]
    return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


def decode(directory: Path, seconds: float) -> float:
    """Seconds, the median, that Pillow and NumPy take to make a picture into the network's input."""
    import PIL.Image

    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    files = cycle([path.read_bytes() for path in directory.glob("*.jpg")])

    def call() -> Array:
        picture = PIL.Image.open(io.BytesIO(next(files))).convert("RGB")
        picture = picture.resize((256, 256), PIL.Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
        pixels: Array = (np.asarray(picture, np.float32) / np.float32(255) - mean) / std
        return pixels

    return float(np.median(_durations(call, seconds)))


def _images(directory: Path, batch: int) -> Array:
    images: Array = np.load(directory / f"images-{batch}.npy")
    return images


def _network(directory: Path) -> nn.Module:
    import torch
    from torchvision.models import resnet18

    (weights,) = directory.glob("resnet18-*.pth")
    network: nn.Module = resnet18()
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network.eval()


RUNTIMES: dict[str, Callable[[Path, int], Call]] = {
    "torch-eager": eager,
    "torch-channels-last": channels_last,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def checked(name: str, directory: Path, batch: int) -> Call:
    """The runtime's call for so many images; raises SystemExit when it has another answer than torch."""
    call = RUNTIMES[name](directory, batch)
    difference = distance(call(), np.load(directory / f"logits-{batch}.npy"))
    if not difference <= TOLERANCE:
        raise SystemExit(f"{name}, batch {batch}: {difference:.1e} from torch eager")
    return call


def measure(call: Call, batch: int, seconds: float) -> dict[str, float]:
    """Images per second, and the median call in seconds."""
    _durations(call, seconds / 4)  # others have had the caches meanwhile
    durations = _durations(call, seconds)
    return {"rate": batch * len(durations) / sum(durations), "p50": float(np.median(durations))}


def stay(name: str, directory: Path) -> None:
    """Answer each line of a batch and seconds with what they measured, until there are no more."""
    calls = {batch: checked(name, directory, batch) for batch in BATCHES}
    print("ready", flush=True)
    for line in sys.stdin:
        batch, seconds = line.split()
        print(json.dumps(measure(calls[int(batch)], int(batch), float(seconds))), flush=True)


def distance(answer: Array, reference: Array) -> float:
    """The largest difference, as a part of the reference's largest value."""
    return float(np.abs(answer - reference).max() / np.abs(reference).max())


def _durations(call: Call, seconds: float) -> list[float]:
    durations: list[float] = []
    while sum(durations) < seconds:
        began = time.perf_counter()
        call()
        durations.append(time.perf_counter() - began)
    return durations


if __name__ == "__main__":
    role, place = sys.argv[1], Path(sys.argv[2])
    if role in ("prepare", "export"):
        {"prepare": prepare, "export": export}[role](place)
    elif role == "decode":
        print(decode(place, float(sys.argv[3])))
    else:
        stay(role, place)
