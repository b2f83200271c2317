"""The image predictor's promises, on networks that have learnt nothing but differ from layer to layer."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from service.errors import (
    MAX_SENTENCE,
    ConfigurationError,
    InvalidInput,
    PayloadTooLarge,
    PredictionFailed,
    UnsupportedContent,
)
from service.inference.artifact import Artifact, write_artifact
from service.inference.loading import load_model
from service.inference.manifest import Image, Manifest
from service.inference.predictor import Options, Predictor, Question, unpack
from service.inference.vision import cpu
from service.inference.vision import predictor as vision
from service.inference.vision.image_input import MAX_IMAGE_BYTES
from service.inference.vision.images import read
from service.inference.vision.predictor import load
from service.large_json import LargeString
from tests.inference.pictures import encode, picture
from training.export import Files, export
from training.networks import draft, make
from training.published import build

SPEC = Image(architecture="resnet18", size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PNG, JPEG, WEBP = (encode(picture(), kind) for kind in ("PNG", "JPEG", "WEBP"))
CLASSES = 10


def untrained(spec: Image = SPEC, classes: int = CLASSES) -> nn.Module:
    """Random weights, and batch norms that have seen a batch, so that folding them has to be right."""
    torch.manual_seed(0)
    return lively(build(spec.architecture, classes), spec)


def lively(net: nn.Module, spec: Image) -> nn.Module:
    """With weights that make the answers to different images differ, also where torchvision starts with zeros."""
    for module in net.requires_grad_(False).modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    net.train()(torch.randn(16, len(spec.mode), *spec.size))
    return net.eval()


@cache
def files_of(spec: Image = SPEC) -> Files:
    return export(untrained(spec), spec, CLASSES, "logits")


def artifact(spec: Image = SPEC, files: Files | None = None, **changes: Any) -> Artifact:
    made = draft("test", spec, [f"class {index}" for index in range(CLASSES)], PNG, "")
    return make(Manifest.model_validate(made.model_dump() | changes), files_of(spec) if files is None else files)


def without(extension: str, made: Artifact) -> Artifact:
    """As one that was registered where that file could not be made."""
    files = zip(made.manifest.files, (made.weights, *made.parts), strict=True)
    (named, data), *rest = (pair for pair in files if not pair[0].file.endswith(extension))
    parts = {"weights": named, "parts": tuple(other for other, _ in rest)}
    return Artifact(made.manifest.model_copy(update=parts), data, tuple(data for _, data in rest))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return load(artifact(), Options(device="cpu"))


def answer(predictor: Predictor, payload: bytes | None) -> NDArray[Any]:
    (found,) = predictor.predict([payload or b""])
    assert isinstance(found, bytes), found
    return unpack(found)


def url_form(file: bytes) -> str:
    return base64.urlsafe_b64encode(file).decode()


DATA = "data:image/png;base64,"


def large(start: str, file: bytes) -> LargeString:
    """As a large body's string is read, in lines."""
    return LargeString(memoryview(json.dumps(start + base64.encodebytes(file).decode())[1:-1].encode()))


ASK: Mapping[str, Callable[[Predictor, bytes], Question]] = {
    "upload": lambda p, file: p.parse({}, file, "image/png"),
    "upload of another announced type": lambda p, file: p.parse({}, file, "image/webp"),
    "query": lambda p, file: p.parse({"image": url_form(file)}, b"", None),
    "query without padding": lambda p, file: p.parse({"image": url_form(file).rstrip("=")}, b"", None),
    "JSON": lambda p, file: p.parse({"image": base64.b64encode(file).decode()}, b"", "application/json"),
    "JSON in the other alphabet": lambda p, file: p.parse({"image": url_form(file)}, b"", "application/json"),
    "JSON in lines": lambda p, file: p.parse({"image": base64.encodebytes(file).decode()}, b"", "application/json"),
    "a data URL": lambda p, file: p.parse({"image": DATA + base64.b64encode(file).decode()}, b"", "application/json"),
    "a large data URL": lambda p, file: p.parse({"image": large(DATA, file)}, b"", "application/json"),
}


@pytest.mark.parametrize("form", ASK)
@pytest.mark.parametrize("file", [PNG, JPEG, WEBP, PNG + b"?", PNG + b"??"])
def test_every_way_to_send_an_image_is_one_question(predictor: Predictor, form: str, file: bytes) -> None:
    digest = hashlib.sha256(file).hexdigest()
    question = ASK[form](predictor, file)
    assert question == Question(b"i" + bytes.fromhex(digest), file, digest)


@pytest.mark.parametrize("content_type", [None, "application/json"])
def test_a_digest_is_the_same_question_without_the_image(predictor: Predictor, content_type: str | None) -> None:
    upload = predictor.parse({}, PNG, "image/png")
    question = predictor.parse({"sha256": (upload.digest or "").upper()}, b"", content_type)
    assert question == Question(upload.identity, None, upload.digest)


def test_every_way_to_send_an_array_is_one_question(predictor: Predictor) -> None:
    whole = np.arange(3 * 32 * 32).reshape(3, 32, 32) % 3
    swapped = whole.astype(">f8").transpose(2, 1, 0).copy().transpose(2, 1, 0)
    ways = [
        whole.tolist(),
        whole.astype(float).tolist(),
        whole,
        whole.astype(np.float32),
        swapped,
        np.where(whole, whole, -0.0),
    ]
    questions = {predictor.parse({"input": way}, b"", "application/json") for way in ways}
    assert len(questions) == 1


def test_an_array_answers_as_the_image_it_was_made_from(predictor: Predictor) -> None:
    grey = Image(architecture="own", size=(32, 32), mode="L", mean=(0.5,), std=(0.25,))
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    of_grey = load(artifact(grey, export(net.eval(), grey, CLASSES, "logits")), Options(device="cpu"))
    for asked, spec in ((predictor, SPEC), (of_grey, grey)):
        pixels = read(PNG, spec).transpose(2, 0, 1)
        payload = asked.parse({"input": pixels.tolist()}, b"", "application/json").payload or b""
        for count in (1, 2, 3):  # alone, in two streams, and both
            assert asked.predict([payload] * count) == asked.predict([PNG] * count)
            assert all(isinstance(said, bytes) for said in asked.predict([payload] * count))


def row(value: object, shape: tuple[int, ...] = (3, 32, 32)) -> Any:
    """Zeros with one strange value among them."""
    array = np.zeros(shape).tolist()
    array[0][0][0] = value
    return array


@pytest.mark.parametrize(
    ("params", "refusal"),
    [
        ({}, InvalidInput),
        ({"image": ""}, InvalidInput),
        ({"image": "a"}, InvalidInput),
        ({"image": "!!!!"}, InvalidInput),
        ({"image": "ｉＶＢＯ"}, InvalidInput),
        ({"image": url_form(PNG) + "===="}, InvalidInput),
        ({"image": url_form(PNG)[:-6] + " " + url_form(PNG)[-5:]}, InvalidInput),
        ({"image": 5}, InvalidInput),
        ({"image": None}, InvalidInput),
        ({"image": "data:image/png," + url_form(PNG)}, InvalidInput),
        ({"image": url_form(b"<svg/>")}, UnsupportedContent),
        ({"image": url_form(PNG + bytes(MAX_IMAGE_BYTES))}, PayloadTooLarge),
        ({"image": url_form(PNG), "sha256": "0" * 64}, InvalidInput),
        ({"image": url_form(PNG), "sepal_length": "1"}, InvalidInput),
        ({"sha256": "0" * 63}, InvalidInput),
        ({"sha256": "0" * 65}, InvalidInput),
        ({"sha256": "0" * 63 + "g"}, InvalidInput),
        ({"sha256": "٠" * 64}, InvalidInput),
        ({"sha256": "0" * 64 + "\n"}, InvalidInput),
        ({"sha256": 5}, InvalidInput),
        ({"input": "1"}, InvalidInput),
        ({"input": None}, InvalidInput),
        ({"input": []}, InvalidInput),
        ({"input": {}}, InvalidInput),
        ({"input": [[[1.0]]]}, InvalidInput),
        ({"input": np.zeros((32, 32, 3))}, InvalidInput),
        ({"input": np.zeros((3, 32, 32), bool)}, InvalidInput),
        ({"input": np.full((3, 32, 32), "1")}, InvalidInput),
        ({"input": row([0.0])}, InvalidInput),
        ({"input": row("1.5")}, InvalidInput),
        ({"input": row(True)}, InvalidInput),
        ({"input": row(None)}, InvalidInput),
        ({"input": row(float("nan"))}, InvalidInput),
        ({"input": row(float("inf"))}, InvalidInput),
        ({"input": row(2.05)}, InvalidInput),
        ({"input": row(-2.05)}, InvalidInput),
        ({"input": row(255)}, InvalidInput),
        ({"input": row(1e39)}, InvalidInput),
        ({"input": row(10**400)}, InvalidInput),
    ],
)
def test_what_is_no_question_is_refused_with_the_parameter(
    predictor: Predictor, params: dict[str, Any], refusal: type[InvalidInput]
) -> None:
    for content_type in ("application/json", None):
        with pytest.raises(refusal) as refused:
            predictor.parse(params, b"", content_type)
        assert refused.value.parameter in {"image", "sha256", "input", *params}


def test_an_upload_takes_no_parameters_and_no_other_media_type(predictor: Predictor) -> None:
    with pytest.raises(InvalidInput):
        predictor.parse({"image": url_form(PNG)}, PNG, "image/png")
    with pytest.raises(InvalidInput):
        predictor.parse({}, b"", "image/png")
    for content_type in ("image/svg+xml", "text/plain", ""):
        with pytest.raises(UnsupportedContent):
            predictor.parse({}, PNG, content_type)


def test_the_examples_of_the_parameters_are_one_question(predictor: Predictor) -> None:
    asked = {
        predictor.parse({name: schema["example"]}, b"", None).digest for name, schema in predictor.parameters.items()
    }
    assert asked == {hashlib.sha256(PNG).hexdigest()}


def test_an_answer_is_a_float32_distribution(predictor: Predictor) -> None:
    vector = answer(predictor, PNG)
    assert vector.dtype == np.float32
    assert vector.shape == (CLASSES,)
    assert vector.min() >= 0
    assert vector.sum() == pytest.approx(1, abs=1e-6)


def many(count: int) -> list[bytes]:
    """Different images."""
    chance = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(chance.integers(0, 256, (20, 30, 3), np.uint8)) for _ in range(count)]
    return [encode(picture, ("PNG", "JPEG", "WEBP")[index % 3]) for index, picture in enumerate(pictures)]


@pytest.fixture(params=["openvino", "torch"])
def runtime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of the two computes."""
    if request.param == "torch":
        monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    return str(request.param)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_input_has_the_same_bytes_alone_in_eight_and_in_64(threads: int, runtime: str) -> None:
    predictor = load(artifact(), Options(device="cpu", threads=threads))
    batch = many(64)
    together = predictor.predict(batch)
    assert [predictor.predict([payload])[0] for payload in batch[:24]] == together[:24]
    assert list(predictor.predict(batch[5:13])) == together[5:13]
    assert list(predictor.predict(batch[::-1])) == together[::-1]


def test_the_number_of_threads_moves_no_bit(predictor: Predictor) -> None:
    batch = many(17)
    several = load(artifact(), Options(device="cpu", threads=3))
    assert several.predict(batch) == predictor.predict(batch)
    assert several.predict(batch[:1]) == predictor.predict(batch[:1])


def test_an_openvino_that_cannot_be_imported_is_said_to_be_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libopenvino.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "openvino"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ConfigurationError,
        match=r"OpenVINO cannot compute test \(libopenvino.so: .*\): install it anew",
    ):
        load(artifact(), Options(device="cpu"))


@pytest.mark.skipif(vision.has_driver(), reason="where there may be a GPU torch is asked for it")
def test_a_cpu_serves_images_without_importing_torch(tmp_path: Path) -> None:
    """Half a gigabyte and seconds, in every worker."""
    inputs, said = {"image": base64.b64encode(PNG).decode()}, load(artifact(), Options(device="cpu")).predict([PNG])[0]
    assert isinstance(said, bytes)
    write_artifact(tmp_path / "test", artifact(example={"inputs": inputs, "golden": unpack(said).tolist()}))
    program = """if True:
        import sys
        from pathlib import Path
        from service.inference.loading import load_model
        from service.inference.predictor import Options

        load_model(Path(sys.argv[1]), Options())
        print(*(name for name in ("torch", "torchvision") if name in sys.modules))
    """
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "test"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


def test_without_torch_a_gpu_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "has_driver", lambda: True)
    monkeypatch.setattr(vision, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    load(artifact(), Options(device="auto"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda made: without("xml", without("pt2", made)),
            "no program for torch: make it again with training.resnet",
        ),
        (lambda made: replace(made, weights=b"torn" * 99), "torch cannot load test .*: register it again"),
    ],
)
def test_files_that_cannot_be_computed_are_refused_with_the_remedy_in_one_line(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Artifact], Artifact], message: str
) -> None:
    monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    with pytest.raises(ConfigurationError, match=message) as stopped:
        load(spoil(artifact()), Options(device="cpu"))
    assert str(stopped.value).isprintable()
    assert len(str(stopped.value)) <= MAX_SENTENCE


def test_a_graph_that_is_torn_or_needs_openvino_where_there_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact()
    with pytest.raises(ConfigurationError, match="OpenVINO cannot compute test"):
        load(replace(made, parts=(b"torn", made.parts[1])), Options(device="cpu"))
    monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    with pytest.raises(ConfigurationError, match="or, if it was an ONNX file, install openvino"):
        load(without("pt2", made), Options(device="cpu"))


def test_what_openvino_brings_to_report_to_its_makers_is_never_loaded() -> None:
    loading = "import sys, service.inference, openvino; print(*(name for name in sys.modules if sys.modules[name]))"
    loaded = subprocess.run([sys.executable, "-c", loading], capture_output=True, text=True, check=True).stdout.split()
    assert "openvino" in loaded
    assert not [name for name in loaded if name.startswith("openvino_telemetry")]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_memory_for_an_image_is_used_again_for_the_next() -> None:
    """And not given back and fetched from the kernel, cleared, each time: some 400 pages."""
    program = """if True:
        import resource, sys
        from service.inference.manifest import Image
        from service.inference.vision.images import read, reuse_memory

        def faults(count):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(count):
                read(file, spec)
            return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / count

        spec = Image(size=(224, 224), resize=256, mean=(0.5,) * 3, std=(0.5,) * 3)
        file = sys.stdin.buffer.read()
        reuse_memory()
        faults(10)
        print(faults(20))
    """
    file = encode(picture((224, 224)), "JPEG")
    done = subprocess.run([sys.executable, "-c", program], input=file, capture_output=True, check=True)
    assert float(done.stdout) < 100


def test_a_bad_image_fails_in_its_own_place(predictor: Predictor) -> None:
    truncated = predictor.parse({}, JPEG[:-20], "image/jpeg").payload or b""
    array = predictor.parse({"input": np.ones((3, 32, 32))}, b"", "application/json").payload or b""
    kinds = {payload: predictor.predict([payload])[0] for payload in (PNG, JPEG, array)}
    chance = random.Random(0)
    for _ in range(20):
        batch = chance.choices([*kinds, truncated], k=chance.randint(1, 70))
        for payload, found in zip(batch, predictor.predict(batch), strict=True):
            assert found == kinds[payload] if payload in kinds else isinstance(found, InvalidInput)


def test_a_batch_that_fails_ends_when_none_of_its_files_is_decoded_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are decoded to where the next batch's will be."""
    predictor: Any = load(artifact(), Options(device="cpu", threads=2))
    gate, failed = threading.Event(), threading.Event()

    def slow_or_failing(file: bytes, *_: object) -> None:
        if file == JPEG:
            gate.wait()
            return
        failed.set()
        raise SystemExit

    monkeypatch.setattr(predictor._runner, "load", slow_or_failing)
    with ThreadPoolExecutor(1) as pool:
        batch = pool.submit(predictor.predict, [PNG, JPEG])
        assert failed.wait(30)
        ended = wait([batch], 0.2).done
        gate.set()
        assert not ended
        assert isinstance(batch.exception(30), SystemExit)


def test_an_array_that_is_not_normalised_is_refused_with_what_normalised_means(predictor: Predictor) -> None:
    black, white = np.full((3, 32, 32), -2.0), np.full((3, 32, 32), 2.0)
    for normalised in (black, white):
        assert predictor.parse({"input": normalised}, b"", "application/json").payload
    meant = r"\(value / 255 - mean\) / std: for a mean of 0.5 and a std of 0.25, of numbers from -2.040 to 2.040"
    with pytest.raises(InvalidInput, match=meant):
        predictor.parse({"input": np.full((3, 32, 32), 128)}, b"", "application/json")


def test_an_answer_that_is_not_finite_is_a_failure_and_no_answer() -> None:
    net = untrained()
    net.fc.bias[3] = float("nan")
    predictor = load(artifact(files=export(net, SPEC, CLASSES, "logits")), Options(device="cpu"))
    assert [type(found) for found in predictor.predict([PNG, JPEG])] == [PredictionFailed] * 2


def test_whatever_can_change_an_answer_changes_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint(made: Artifact) -> bytes:
        return load(made, Options(device="cpu")).fingerprint

    first = artifact()
    others = [
        artifact(SPEC.model_copy(update={"std": (0.5, 0.5, 0.5)}), files_of()),
        artifact(SPEC.model_copy(update={"resize": 40}), files_of()),
        artifact(classes=[{"value": str(index), "label": str(index)} for index in range(CLASSES)]),
        artifact(files=export(nn.Sequential(nn.Flatten(), nn.Linear(3072, CLASSES)), SPEC, CLASSES, "logits")),
    ]
    assert fingerprint(first) == fingerprint(artifact())
    found = {fingerprint(made) for made in (first, *others)}
    monkeypatch.setattr(cpu, "has_openvino", lambda: False)
    found.add(fingerprint(first))
    assert len(found) == 6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"mean": (0.5,)}, "mean and std need 3 values each"),
        ({"std": (0.5, 0.0, 0.5)}, "image.std.1: Input should be greater than 0"),
        ({"resize": 31}, "cannot crop"),
        ({"size": (0, 32)}, "image.size.0: Input should be greater than 0"),
    ],
)
def test_a_model_that_cannot_be_served_stops_the_start_with_one_sentence(
    tmp_path: Path, spec: dict[str, Any], message: str
) -> None:
    made = artifact()
    spoilt = made.manifest.model_copy(update={"image": SPEC.model_copy(update=spec)})
    write_artifact(tmp_path / "test", replace(made, manifest=spoilt))
    with pytest.raises(ConfigurationError, match=message) as stopped:
        load_model(tmp_path / "test", Options(device="cpu"))
    assert "\n" not in str(stopped.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_gpu_that_is_asked_for_and_missing_stops_the_start_and_auto_takes_the_cpu() -> None:
    with pytest.raises(ConfigurationError, match="PREDICT_DEVICE=cuda, but torch finds no CUDA device"):
        load(artifact(), Options(device="cuda"))
    assert load(artifact(), Options(device="auto")).fingerprint == load(artifact(), Options(device="cpu")).fingerprint
