"""ResNet-18 beside the runtimes: the same network and versions, inputs never repeated, ratios within one round."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import resnet, resnet_report, runtimes
from benchmarks.ours import ROOT
from benchmarks.peers.environments import requirements
from benchmarks.peers.results import Results, Sample


def test_the_runtimes_have_the_torch_that_is_locked() -> None:
    needed = requirements(Path(runtimes.__file__))["dependencies"]
    locked = re.findall(r"^(\S+==[^\s;]+)", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE)
    assert all("==" in each for each in needed)
    assert {each for each in needed if each.startswith(("torch", "numpy"))} <= set(locked)


def test_every_runtime_has_a_line() -> None:
    assert set(resnet_report.TITLES) == set(runtimes.RUNTIMES)


def test_no_picture_is_sent_twice_and_each_can_be_decoded() -> None:
    bodies = [request.partition(b"\r\n\r\n")[2] for request in resnet.pictures(random.Random(0), 20)]
    pixels = {Image.open(io.BytesIO(body)).convert("RGB").tobytes() for body in bodies}
    assert len(pixels) == 20
    assert {Image.open(io.BytesIO(body)).size for body in bodies} == {(224, 224)}


def test_bfloat16_is_told_from_float32() -> None:
    logits = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32)
    rounded = (logits.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert runtimes.distance(np.nextafter(logits, np.float32(9)), logits) < runtimes.TOLERANCE
    assert runtimes.distance(rounded, logits) > runtimes.TOLERANCE


@pytest.mark.parametrize("slower", [1, 3], ids=["quiet", "one round three times slower"])
def test_we_are_compared_with_the_fastest_runtime_of_each_kind_within_a_round(slower: float) -> None:
    results = Results(reasons={"openvino": "not installed"})
    rates = {"ours-1": 80, "ours-32": 95, "torch-eager-1": 50, "torch-eager-8": 60, "torch-eager-32": 50}
    rates |= {"onnxruntime-1": 100, "onnxruntime-8": 90, "onnxruntime-32": 100}
    for row, rate in rates.items():
        results.samples[row] = [Sample(n, rate / k, k / rate, 0) for n, k in enumerate((1, 1, slower))]
    results.samples["decoding"] = [Sample(0, 400, 0.0025, 0)]
    text = resnet_report.report(results)
    assert "takes 2.5 ms of a core" in text
    assert re.search(r"one at a time ÷ ONNX Runtime, the fastest +\| +≥ 0.85 \| +0.8 ", text)
    assert re.search(r"32 at once ÷ ONNX Runtime, the fastest +\| +≥ 0.9 \| +0.95 ", text)
    assert "OpenVINO, fp32 (not run: not installed)" in text and "1.58 ×" in text
