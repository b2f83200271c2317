"""The GPU's promises, kept by its own code on a CPU, which torch lets take a GPU's place. Of a card, see tests/gpu."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from service.errors import ConfigurationError, DeviceLost, InvalidInput, Overloaded
from service.inference.batcher import Batcher
from service.inference.predictor import Options, Predictor, unpack
from service.inference.vision import predictor
from service.inference.vision.gpu import RECOVERY_SECONDS, GpuRunner, open_gpu
from service.inference.vision.images import normalise, read_pixels
from service.inference.vision.predictor import TOLERANCES, VisionPredictor, load
from service.inference.vision.program import module, restore
from tests.inference.pictures import encode
from tests.inference.test_vision import CLASSES, JPEG, PNG, SPEC, artifact, many

OPTIONS = Options(max_batch_size=8)
ILLEGAL_ACCESS = RuntimeError("CUDA error: an illegal memory access was encountered")


CPU = torch.device("cpu")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Memory:
    """A network's forward hook that bears ``images`` at once, or fails with ``error``. ``tried``: sizes of batches."""

    def __init__(self, network: nn.Module, images: int) -> None:
        self.images = images
        self.error: RuntimeError | None = None
        self.tried: list[int] = []
        network.register_forward_pre_hook(self)

    def __call__(self, network: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self.tried.append(len(inputs[0]))
        if self.error is not None:
            raise self.error
        if len(inputs[0]) > self.images:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to hold {len(inputs[0])} images.")


class House:
    """A predictor on a CPU in the place of a GPU, with ``memory`` for so many images at once."""

    def __init__(self, options: Options = OPTIONS, memory: int = 1000) -> None:
        made, self.clock = artifact(), Clock()
        network = module(restore(made))
        self.memory = Memory(network, memory)
        self.runner = GpuRunner(network, SPEC, CLASSES, CPU, options, self.clock)
        self.predictor = VisionPredictor(made, SPEC, self.runner, options)
        self.memory.tried.clear()


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error has stuck."""

    def fail() -> None:
        raise ILLEGAL_ACCESS

    monkeypatch.setattr(torch.cpu, "synchronize", fail)


@pytest.fixture(scope="module")
def house() -> House:
    return House()


@pytest.fixture(scope="module")
def cpu() -> Predictor:
    return load(artifact(), Options(device="cpu"))


def vectors(predictor: Predictor, payloads: list[bytes]) -> np.ndarray:
    answers = predictor.predict(payloads)
    assert all(isinstance(answer, bytes) for answer in answers), answers
    return np.stack([unpack(answer) for answer in answers if isinstance(answer, bytes)])


def array_payload(predictor: Predictor, file: bytes) -> bytes:
    pixels = normalise(read_pixels(file, SPEC), SPEC).transpose(2, 0, 1)
    return predictor.parse({"input": pixels}, b"", "application/json").payload or b""


def test_batches_are_padded_to_powers_of_two_and_the_largest() -> None:
    assert [House(Options(max_batch_size=largest)).runner.sizes for largest in (1, 2, 48, 64)] == [
        [1],
        [1, 2],
        [1, 2, 4, 8, 16, 32, 48],
        [1, 2, 4, 8, 16, 32, 64],
    ]
    runner = House(Options(max_batch_size=6)).runner
    assert [runner.bucket(count) for count in (1, 2, 3, 4, 5, 6)] == [1, 2, 4, 4, 6, 6]


def test_the_device_normalises_every_value_as_the_cpu_does_to_the_last_bit() -> None:
    spec = SPEC.model_copy(update={"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "size": (16, 16)})
    made = artifact(spec)
    runner = GpuRunner(module(restore(made)), spec, CLASSES, CPU, OPTIONS)
    ramp = PIL.Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    runner.run([runner.load(encode(ramp), 256)])
    assert runner._images[0].numpy().tobytes() == normalise(np.asarray(ramp), spec).tobytes()


@pytest.mark.parametrize("threads", [1, 4])
def test_files_and_arrays_are_answered_as_on_the_cpu(threads: int, cpu: Predictor) -> None:
    house = House(replace(OPTIONS, threads=threads))
    payloads = many(20)
    payloads[3] = array_payload(cpu, payloads[4])
    answers = vectors(house.predictor, payloads)
    assert np.abs(answers - vectors(cpu, payloads)).max() <= 1e-5
    assert answers[3].tobytes() == answers[4].tobytes()
    assert house.memory.tried == [8, 8, 4]


def test_an_answer_depends_on_the_padded_size_and_not_on_place_or_neighbours(house: House) -> None:
    payloads = many(8)
    together = house.predictor.predict(payloads)
    assert list(house.predictor.predict(payloads[::-1])) == list(together)[::-1]
    assert list(house.predictor.predict(payloads[2:7])) == list(together)[2:7]
    alone = np.concatenate([vectors(house.predictor, [payload]) for payload in payloads])
    assert np.abs(alone - vectors(house.predictor, payloads)).max() <= TOLERANCES["float32"]


def test_a_bad_image_fails_in_its_own_place_and_nothing_is_left_of_earlier_batches(house: House) -> None:
    payloads = many(8)
    right = list(house.predictor.predict(payloads))
    house.predictor.predict(many(16)[8:])
    damaged = [payloads[0], PNG[:-20], *payloads[2:4], JPEG[:-20], *payloads[5:]]
    found = list(house.predictor.predict(damaged))
    assert [index for index, answer in enumerate(found) if isinstance(answer, InvalidInput)] == [1, 4]
    assert [found[i] for i in (0, 2, 3, 5, 6, 7)] == [right[i] for i in (0, 2, 3, 5, 6, 7)]
    house.memory.tried.clear()
    assert [type(answer) for answer in house.predictor.predict([PNG[:-20]] * 3)] == [InvalidInput] * 3
    assert house.memory.tried == []


def test_batches_in_both_slots_at_once_do_not_mix() -> None:
    house = House(replace(OPTIONS, threads=2))
    assert house.predictor.slots == 2
    sets = [many(24)[start : start + 8] for start in (0, 8, 16)]
    right = [list(house.predictor.predict(payloads)) for payloads in sets]
    with ThreadPoolExecutor(3) as pool:  # one more than there are slots
        found = list(pool.map(house.predictor.predict, sets * 6))
    assert [list(answers) for answers in found] == right * 6


@pytest.mark.anyio
async def test_under_load_by_the_batcher_everybody_gets_their_own_answer(cpu: Predictor) -> None:
    house, payloads = House(replace(OPTIONS, threads=2)), many(24)
    right = vectors(cpu, payloads)
    batcher = Batcher(house.predictor, max_batch_size=8, max_queue_size=100, name="test")

    async def client(first: int) -> None:
        for index in [*range(first, 24), *range(first)]:
            answer = await batcher.submit(payloads[index], wanted=lambda: True, deadline=float("inf"))
            assert np.abs(unpack(answer.prediction) - right[index]).max() <= TOLERANCES["float32"]

    await asyncio.gather(*(client(first) for first in range(12)))
    await batcher.close()
    assert len(set(house.memory.tried)) > 1


def test_a_batch_that_cannot_be_captured_is_computed_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    house = House(memory=4)
    assert "Batches of 8 are computed without a CUDA graph: CUDA out of memory" in caplog.text
    house.memory.images = 8
    payloads = many(8)
    assert list(house.predictor.predict(payloads)) == list(House().predictor.predict(payloads))


def test_float32_is_never_rounded_to_tf32_and_kernels_are_not_chosen_by_the_clock() -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
    open_gpu(artifact(), SPEC, OPTIONS, "cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic


# Memory


def test_without_memory_batches_are_halved_and_everybody_is_answered(
    cpu: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, released = House(), [0]
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append(released.pop() + 1))
    house.memory.images = 2
    payloads = many(8)
    answers = vectors(house.predictor, payloads)
    assert house.memory.tried == [8, 4, 2, 2, 2, 2]
    assert released == [2]
    assert np.abs(answers - vectors(cpu, payloads)).max() <= 1e-5
    house.predictor.predict(payloads[:3])
    assert house.memory.tried[6:] == [2, 1], "what was learnt is remembered"


def test_with_memory_again_batches_grow_back_step_by_step() -> None:
    house = House()
    house.memory.images = 2
    house.predictor.predict(many(8))
    house.memory.images = 8
    sizes = []
    for _ in range(4):
        house.clock.now += RECOVERY_SECONDS
        house.memory.tried.clear()
        house.predictor.predict(many(8))
        sizes.append(house.memory.tried[:])
    assert sizes == [[4, 4], [8], [8], [8]]


def test_without_memory_for_one_image_what_is_left_is_refused_until_later() -> None:
    house = House()
    house.memory.images = 0
    answers = house.predictor.predict(many(4))
    assert [type(answer) for answer in answers] == [Overloaded] * 4
    assert house.memory.tried == [4, 2, 1]
    house.memory.images = 8
    assert [type(answer) for answer in house.predictor.predict(many(4))] == [bytes] * 4


# Death


@pytest.mark.usefixtures("lost")
def test_an_error_that_sticks_is_told_at_once_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    house.memory.error = ILLEGAL_ACCESS
    for _ in range(3):
        with pytest.raises(DeviceLost):
            house.predictor.predict(many(2))
    assert caplog.text.count("computes nothing more") == 1
    assert "illegal memory access" in caplog.text


def test_an_error_that_does_not_stick_is_that_batchs_own() -> None:
    house = House()
    house.memory.error = RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")
    with pytest.raises(RuntimeError, match="NOT_SUPPORTED"):
        house.predictor.predict(many(2))
    house.memory.error = None
    assert [type(answer) for answer in house.predictor.predict(many(2))] == [bytes] * 2


@pytest.mark.anyio
@pytest.mark.usefixtures("lost")
async def test_all_who_wait_for_a_lost_device_are_refused_and_it_is_reported() -> None:
    house, reported = House(), threading.Event()
    batcher = Batcher(house.predictor, max_batch_size=8, max_queue_size=100, lost=reported.set, name="test")
    house.memory.error = ILLEGAL_ACCESS
    asked = [batcher.submit(payload, wanted=lambda: True, deadline=float("inf")) for payload in many(6)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    await batcher.close()
    assert [type(outcome) for outcome in outcomes] == [DeviceLost] * 6
    assert reported.is_set()


# Precision and fingerprints


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_near_and_in_the_fingerprint(precision: str, house: House, cpu: Predictor) -> None:
    lower = House(replace(OPTIONS, precision=precision))  # type: ignore[arg-type]
    payloads = many(8)
    near, exact = vectors(lower.predictor, payloads), vectors(cpu, payloads)
    assert 1e-6 < np.abs(near - exact).max() <= TOLERANCES[precision]
    assert lower.predictor.fingerprint != house.predictor.fingerprint
    assert lower.predictor.tolerance == TOLERANCES[precision] > house.predictor.tolerance


def test_what_only_a_gpu_can_do_stops_the_start_on_a_cpu() -> None:
    with pytest.raises(ConfigurationError, match="PREDICT_PRECISION=bfloat16 needs a GPU"):
        load(artifact(), Options(device="cpu", precision="bfloat16"))


def test_one_process_owns_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "has_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigurationError, match=r"PREDICT_WORKERS=1, or PREDICT_DEVICE=cpu, or PREDICT_SHARE_DEVICE"):
        load(artifact(), Options(device="auto", owns_device=False))
    load(artifact(), Options(device="cpu", owns_device=False))
