"""What only a card can prove: `make test-gpu`, or `python -m pytest -m gpu` with any Python that has torch.

Everything else about GPUs is tested on a CPU in tests/inference/test_gpu.py.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("pydantic", reason="pydantic is not installed")

from service.errors import InvalidInput  # noqa: E402
from service.inference.predictor import Options, unpack  # noqa: E402
from service.inference.vision.gpu import open_gpu  # noqa: E402
from service.inference.vision.images import normalise, read, read_pixels  # noqa: E402
from service.inference.vision.predictor import TOLERANCES, VisionPredictor, load  # noqa: E402
from tests.inference.pictures import encode  # noqa: E402
from tests.inference.test_vision import JPEG, PNG, SPEC, artifact, many, untrained  # noqa: E402
from tests.support.probe import ROOT, environment  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here: nothing was tested"),
]

OPTIONS = Options(device="cuda", threads=8, max_batch_size=64)
LARGE = SPEC.model_copy(update={"size": (224, 224), "resize": 256})


class House:
    """A predictor on the card, and its runner."""

    def __init__(self, options: Options = OPTIONS, spec: Any = SPEC) -> None:
        made = artifact(spec)
        self.runner = open_gpu(made, spec, options, "cuda")
        self.predictor = VisionPredictor(made, spec, self.runner, options)

    def vectors(self, payloads: list[bytes]) -> Any:
        answers = self.predictor.predict(payloads)
        return np.stack([unpack(answer) for answer in answers])  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def house() -> House:
    return House()


def exact(payloads: list[bytes], spec: Any = SPEC) -> Any:
    """By torch's own network, on the CPU and in float64."""
    images = torch.from_numpy(np.stack([read(payload, spec) for payload in payloads])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        return torch.softmax(untrained(spec).double()(images.double()), 1).numpy()


def test_auto_takes_the_card(house: House) -> None:
    assert load(artifact(), replace(OPTIONS, device="auto")).fingerprint == house.predictor.fingerprint
    assert load(artifact(), Options(device="cpu")).fingerprint != house.predictor.fingerprint


@pytest.mark.parametrize("spec", [SPEC, LARGE], ids=["32 pixels", "224 pixels"])
def test_float32_is_within_a_hundred_thousandth_of_float64_on_a_cpu(spec: Any) -> None:
    payloads = many(64)
    assert np.abs(House(spec=spec).vectors(payloads) - exact(payloads, spec)).max() <= 1e-5


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_near(precision: Any) -> None:
    payloads = many(64)
    difference = np.abs(House(replace(OPTIONS, precision=precision)).vectors(payloads) - exact(payloads)).max()
    print(f"{precision}: {difference:.1e} from float64")
    assert 1e-6 < difference <= TOLERANCES[precision]


def test_the_card_normalises_every_value_as_the_cpu_does_to_the_last_bit() -> None:
    spec = SPEC.model_copy(update={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "size": (16, 16)})
    house = House(spec=spec)
    ramp = PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    house.vectors([encode(ramp)])
    assert house.runner._images[0].cpu().numpy().tobytes() == normalise(np.asarray(ramp), spec).tobytes()


def test_an_answer_depends_on_the_padded_size_and_not_on_place_or_neighbours(house: House) -> None:
    payloads = many(64)
    for size in (4, 8, 64):
        some = payloads[:size]
        together = list(house.predictor.predict(some))
        assert list(house.predictor.predict(some[::-1])) == together[::-1]
        assert list(house.predictor.predict(some[: size - 1])) == together[: size - 1]
        for _ in range(20):
            assert list(house.predictor.predict(some)) == together


@pytest.mark.parametrize("precision", TOLERANCES)
def test_how_far_the_padded_sizes_move_an_answer_is_within_what_audits_bear(precision: Any) -> None:
    house, payloads = House(replace(OPTIONS, precision=precision)), many(64)
    whole = house.vectors(payloads)
    moved = {}
    for size in (1, 2, 4, 8, 16, 32):
        parts = [house.vectors(payloads[start : start + size]) for start in range(0, 64, size)]
        moved[size] = float(np.abs(np.concatenate(parts) - whole).max())
    print(precision, {size: f"{difference:.1e}" for size, difference in moved.items()})
    assert max(moved.values()) <= TOLERANCES[precision]


@torch.inference_mode()
def test_graphs_answer_as_the_kernels_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        house = House()
    assert "without a CUDA graph" not in caplog.text
    house.vectors(many(64))
    for size in house.runner.sizes:
        answers = house.runner._answers[:size]
        house.runner._steps[size]()
        torch.cuda.synchronize()
        by_graph = answers.clone()
        answers.zero_()
        house.runner._compute(size)
        torch.cuda.synchronize()
        assert torch.equal(answers, by_graph)


def test_files_arrays_and_bad_images_are_answered_in_order(house: House) -> None:
    pixels = normalise(read_pixels(PNG, SPEC), SPEC).transpose(2, 0, 1)
    array = house.predictor.parse({"input": pixels}, b"", "application/json").payload or b""
    found = house.predictor.predict([PNG, JPEG[:-20], array, JPEG])
    assert [type(answer) for answer in found] == [bytes, InvalidInput, bytes, bytes]
    assert found[0] == found[2]
    assert np.abs(unpack(found[3]) - exact([JPEG])[0]).max() <= 1e-5  # type: ignore[arg-type]


def test_batches_in_both_slots_at_once_do_not_mix(house: House) -> None:
    payloads = many(192)
    sets = [payloads[start : start + 64] for start in (0, 64, 128)]
    right = [list(house.predictor.predict(some)) for some in sets]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(house.predictor.predict, sets * 20))
    assert [list(answers) for answers in found] == right * 20


def test_the_card_needs_no_more_memory_after_a_thousand_batches(house: House) -> None:
    payloads = many(64)
    counts = [1 + index * 37 % 64 for index in range(1000)]
    for count in counts[:64]:
        house.predictor.predict(payloads[:count])
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    for count in counts:
        house.predictor.predict(payloads[:count])
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before


@contextmanager
def only(gibibytes: float) -> Iterator[None]:
    """So much more memory than is in use now."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + gibibytes * 2**30) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_without_memory_batches_are_halved_and_everybody_is_answered(caplog: pytest.LogCaptureFixture) -> None:
    payloads = many(512)
    with only(1.5), caplog.at_level(logging.WARNING):
        house = House(replace(OPTIONS, max_batch_size=512), LARGE)
        assert "Batches of 512 are computed without a CUDA graph" in caplog.text
        vectors = house.vectors(payloads)
        assert "had no memory for 512 images" in caplog.text
    assert np.abs(vectors[:32] - exact(payloads[:32], LARGE)).max() <= 1e-5
    assert np.isfinite(vectors).all()


LOSE = """
import torch
from tests.gpu.test_card import House
from tests.inference.test_vision import PNG
from service.errors import DeviceLost
house = House()
house.vectors([PNG])
torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")]  # asserts on the device, and sticks
for _ in range(2):
    try:
        house.predictor.predict([PNG])
    except DeviceLost:
        print("lost", flush=True)
import os; os._exit(0)
"""


def test_an_error_that_sticks_is_known_as_such() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOSE], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.stdout == "lost\nlost\n", done.stderr


def test_a_service_answers_from_the_card(tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn", "orjson", "redis", "prometheus_client", "http_sf"):
        pytest.importorskip(package, reason=f"{package} is not installed: no service was started")
    from urllib.request import Request, urlopen

    from tests.support.server import running_server
    from tests.support.untrained import write_untrained

    files = write_untrained(tmp_path / "models")
    with running_server(tmp_path / "server", models_dir=tmp_path / "models", device="cuda") as server:

        def ask(file: bytes) -> tuple[str, bytes]:
            request = Request(f"{server.url}/predict", file, {"Content-Type": "image/png"})
            with urlopen(request, timeout=30) as response:
                return response.headers["cache-status"], response.read()

        with ThreadPoolExecutor(8) as pool:
            first = list(pool.map(ask, files))
        assert all("fwd=uri-miss" in status for status, _ in first)
        assert [body for _, body in map(ask, files)] == [body for _, body in first]
