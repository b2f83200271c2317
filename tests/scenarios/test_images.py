"""The scenarios' rows for images: the service's own count of computations stands in for the probe's."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest

from tests.scenarios.conftest import Start
from tests.scenarios.test_c_keys_and_values import OF_QUESTIONS
from tests.support.client import Response, burst, fetch, fetch_json
from tests.support.process import SLACK
from tests.support.redis_server import RedisServer
from tests.support.server import Server, close_all

pytest.importorskip("torch")
pytestmark = pytest.mark.anyio

PATH = "/models/digits/predict"


@pytest.fixture(scope="module")
def image_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``digits``, trained for so short a time that it errs often: all else about it is real."""
    import training.resnet  # not above: it imports torch

    models = tmp_path_factory.mktemp("images") / "models"
    training.resnet.main(["--epochs", "1", "--out", str(models)])
    return models


@pytest.fixture(scope="module")
def server(start: Start, redis_server: RedisServer, image_models: Path) -> Iterator[Server]:
    with start(redis_url=redis_server.url, models_dir=image_models, workers=2, threads=1) as server:
        yield server


@pytest.fixture(scope="module")
def digits() -> Iterator[tuple[bytes, int]]:
    """PNG files and the digit on each: the held-out part, each to be taken by one test."""
    import training.digits

    return iter(training.digits.split()[1])


def random_png(seed: int) -> bytes:
    """A picture that no other test asks about."""
    return encoded(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8), "PNG")


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def base64url(file: bytes) -> str:
    return base64.urlsafe_b64encode(file).rstrip(b"=").decode()


async def upload(server: Server, file: bytes, media_type: str = "image/png", path: str = PATH) -> Response:
    return await fetch(server.address, path, "POST", {"Content-Type": media_type}, file)


def computed(server: Server) -> float:
    return server.metric("predict_computations_total", model="digits")


async def test_every_way_to_ask_about_an_image_is_one_question(server: Server) -> None:
    """C1, C9"""
    file = random_png(1)
    text = base64.b64encode(file).decode()
    tensor = {"name": (await inputs_of(server))[0], "shape": [1], "datatype": "BYTES", "data": [text]}
    before = computed(server)
    answers = [
        await upload(server, file),
        await upload(server, file, path="/predict?model=digits"),
        await upload(server, file, path="/predict"),
        await fetch(server.address, f"{PATH}?image={base64url(file)}"),
        await fetch(server.address, f"/predict?model=digits&image={base64url(file)}"),
        await fetch(server.address, f"{PATH}?sha256={hashlib.sha256(file).hexdigest()}"),
        await fetch(server.address, f"{PATH}?sha256={hashlib.sha256(file).hexdigest().upper()}&top_k=3"),
        await fetch_json(server.address, "/predict", {"model": "digits", "image": text}),
        await fetch_json(server.address, "/predict_batch", {"model": "digits", "inputs": [{"image": text}] * 2}),
        await fetch_json(server.address, "/v2/models/digits/infer", {"inputs": [tensor]}),
    ]
    assert [answer.status for answer in answers] == [200] * len(answers)
    assert computed(server) - before == 1
    assert [answer.hit for answer in answers] == [False] + [True] * (len(answers) - 1)
    assert len({answer.body for answer in answers[:6]}) == 1
    assert answers[3].headers["etag"] == answers[5].headers["etag"]
    located = answers[0].headers["content-location"]
    assert (await fetch(server.address, located)).body == answers[0].body


async def test_every_form_that_people_send_is_the_question_of_its_file(server: Server) -> None:
    file = random_png(4)
    text = base64.b64encode(file).decode()
    lines = "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    first = await upload(server, file)
    answers = [
        await send_form(server, PATH, {}, [file]),
        await send_form(server, "/predict", {"model": "digits", "top_k": "5"}, [file]),
        await send_form(server, PATH, {"sha256": hashlib.sha256(file).hexdigest()}, []),
        *[await upload(server, file, media_type) for media_type in ("image/jpg", "application/octet-stream")],
        *[
            await fetch_json(server.address, PATH, {"image": form})
            for form in (lines, f"data:image/png;base64,{text}", f"data:image/png;charset=utf-8;base64,{lines}")
        ],
    ]
    assert [(answer.status, answer.hit, answer.body) for answer in answers] == [(200, True, first.body)] * len(answers)
    many = await send_form(server, "/predict_batch", {"model": "digits"}, [file, b"no image", file])
    assert [result.get("prediction", "none") for result in many.json()["results"]] == [
        first.json()["prediction"],
        "none",
        first.json()["prediction"],
    ]


async def send_form(server: Server, path: str, fields: dict[str, str], files: list[bytes], **headers: str) -> Response:
    """As httpx encodes it; and without any file as browsers do where nobody has chosen one."""
    named = [("file", (f"{number}.png", file, "image/png")) for number, file in enumerate(files)]
    request = httpx.Request("POST", "http://x", data=fields, files=named or [("file", ("none", b""))])
    given = {"Content-Type": request.headers["content-type"], **headers}
    body = request.read().replace(b'filename="none"', b'filename=""')
    return await fetch(server.address, path, "POST", given, body)


async def test_a_form_of_several_files_no_file_or_another_origin_is_refused(server: Server) -> None:
    file = random_png(5)
    before, elsewhere = computed(server), "https://elsewhere.example"
    refused = [
        (await send_form(server, PATH, {}, [file, file]), 422),
        (await send_form(server, PATH, {}, []), 422),
        (await send_form(server, PATH, {"other": "1"}, [file]), 422),
        (await send_form(server, "/predict_batch", {"model": "digits"}, []), 422),
        (await send_form(server, PATH, {}, [file], Origin=elsewhere), 415),
        (await send_form(server, "/predict_batch", {"model": "digits"}, [file], Origin=elsewhere), 415),
        (await fetch(server.address, PATH, "POST", {"Content-Type": "multipart/form-data"}, file), 400),
        (await fetch(server.address, PATH, "POST", {"Content-Type": "multipart/form-data; boundary=x"}, file), 400),
    ]
    assert [(answer.status, answer.json()["status"]) for answer, _ in refused] == [(want, want) for _, want in refused]
    assert computed(server) == before
    assert (await send_form(server, PATH, {}, [file], Origin="http://test")).status == 200, (
        "as the test's client calls it"
    )


async def inputs_of(server: Server) -> list[str]:
    """The names of the model's tensors: the image file's first."""
    metadata = (await fetch(server.address, "/v2/models/digits")).json()
    return sorted((part["name"] for part in metadata["inputs"]), key=lambda name: "image" not in name)


async def test_a_digest_alone_is_answered_from_the_cache_or_not_at_all(server: Server) -> None:
    """C1"""
    file = random_png(2)
    digest = hashlib.sha256(file).hexdigest()
    before = computed(server)
    unknown = await fetch(server.address, f"{PATH}?sha256={digest}")
    assert (unknown.status, unknown.json()["type"]) == (404, "unknown-input")
    assert "POST" in unknown.json()["detail"]
    assert computed(server) == before
    await upload(server, file)
    assert (await fetch(server.address, f"{PATH}?sha256={digest}")).hit


def bomb(width: int, height: int) -> bytes:
    """A small PNG of very many pixels."""
    rows = zlib.compress(bytes((width + 1) * height), 9)
    parts = [(b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def frames(kind: str, count: int) -> bytes:
    file = io.BytesIO()
    first, *others = (PIL.Image.new("L", (2, 2), number % 256) for number in range(count))
    first.save(file, kind, save_all=True, append_images=others, duration=10)
    return file.getvalue()


def noise(kind: str, size: int = 64, **options: object) -> bytes:
    return encoded(np.random.default_rng(3).integers(0, 256, (size, size, 3), dtype=np.uint8), kind, **options)


def lying_png(filling: int) -> bytes:
    """Says that it is small, and inflates to 64 MiB."""
    rows = zlib.compress(bytes([filling]) * (64 * 2**20), 9)
    parts = [(b"IHDR", struct.pack(">2I5B", 8, 8, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/"/></svg>'
BAD_IMAGES = {
    "a bomb of 400 megapixels": ("image/png", lambda: bomb(20_000, 20_000)),
    "a bomb that is 1 pixel wide": ("image/png", lambda: bomb(1, 51_000_000)),
    "a GIF of endless comments": ("image/gif", lambda: frames("GIF", 1)[:13] + b"!\xfe\0" * 2_000_000),
    "an animated PNG": ("image/png", lambda: frames("PNG", 50)),
    "an animated WebP": ("image/webp", lambda: frames("WEBP", 50)),
    "a truncated JPEG": ("image/jpeg", lambda: noise("JPEG")[:-600]),
    "a truncated PNG": ("image/png", lambda: noise("PNG")[:-600]),
    "a PNG without its end": ("image/png", lambda: noise("PNG")[:-12]),
    "an SVG": ("image/svg+xml", lambda: SVG),
    "an SVG that claims to be a PNG": ("image/png", lambda: SVG),
    "text": ("image/png", lambda: b"hello"),
    "nothing": ("image/png", lambda: b""),
    "a TIFF of numbers that are no colours": ("image/tiff", lambda: encoded(np.ones((8, 8), np.float32), "TIFF")),
    "a damaged PNG": ("image/png", lambda: noise("PNG")[:200] + bytes(100) + noise("PNG")[300:]),
}


@pytest.mark.parametrize("what", BAD_IMAGES)
async def test_a_file_that_is_no_single_reasonable_image_is_refused_at_once(
    server: Server, redis_server: RedisServer, what: str
) -> None:
    """C2, S2"""
    media_type, make = BAD_IMAGES[what]
    file = make()
    before = redis_server.names(OF_QUESTIONS)
    answers = [await upload(server, file, media_type), await upload(server, file), await upload(server, file)]
    for answer in answers:
        assert 400 <= answer.status < 500, answer
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["cache-control"] == "no-store"
    assert min(answer.seconds for answer in answers) < 0.1 * SLACK
    assert not redis_server.names(OF_QUESTIONS) - before


async def test_a_png_that_inflates_to_more_than_it_says_costs_no_time(server: Server) -> None:
    """S2"""
    answers = [await upload(server, lying_png(filling)) for filling in range(3)]
    assert all(answer.status < 500 for answer in answers)
    assert min(answer.seconds for answer in answers) < 0.1 * SLACK


@pytest.mark.parametrize(
    "query",
    ["image=", "image=%%%", "image=aGVsbG8", "sha256=12", "sha256=" + "g" * 64, "image=AA&sha256=AA", "input=1", ""],
)
async def test_what_names_no_image_is_refused(server: Server, redis_server: RedisServer, query: str) -> None:
    """C2"""
    before, keys = computed(server), redis_server.names(OF_QUESTIONS)
    answer = await fetch(server.address, f"{PATH}?{query}")
    assert 400 <= answer.status < 500, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert (computed(server), redis_server.names(OF_QUESTIONS) - keys) == (before, set())


async def test_one_damaged_image_in_a_batch_fails_alone(server: Server) -> None:
    """G1"""
    for turn in range(3):
        files = [random_png(1000 + 32 * turn + number) for number in range(32)]
        damaged = files[turn][:40] + bytes(20) + files[turn][60:]
        rows = [{"image": base64.b64encode(file).decode()} for file in [*files[:turn], damaged, *files[turn + 1 :]]]
        answer = await fetch_json(server.address, "/predict_batch", {"model": "digits", "inputs": rows})
        assert answer.status == 200
        results = answer.json()["results"]
        assert [number for number, result in enumerate(results) if "error" in result] == [turn]
        assert 400 <= results[turn]["error"]["status"] < 500


async def test_an_image_alone_in_bursts_and_on_every_worker_has_identical_bytes(server: Server) -> None:
    """H1"""
    for seed in range(3):
        asked = f"{PATH}?image={base64url(random_png(2000 + seed))}"
        answers = [*await burst(server.address, [asked] * 64), *await burst(server.address, [asked] * 8)]
        connections = await server.connect_to_each()
        everyone = [c for owned in connections.values() for c in owned]
        answers += [await connection.get(asked) for connection in everyone]
        close_all(everyone)
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1


async def test_an_image_among_others_in_a_batch_is_answered_once_for_all(server: Server) -> None:
    """H1: whatever the batch did to the last bits, all are given what was stored first."""
    asked = [f"{PATH}?image={base64url(random_png(3000 + number))}" for number in range(32)]
    together = await asyncio.gather(*(fetch(server.address, question) for question in asked))
    alone = [await fetch(server.address, question) for question in asked]
    assert [answer.body for answer in alone] == [answer.body for answer in together]


async def test_the_accuracy_over_http_is_the_one_that_training_printed(server: Server) -> None:
    """What training measured on its held-out fifth is what clients get."""
    import training.digits

    held_out = training.digits.split()[1]
    right = 0
    for start in range(0, len(held_out), 256):
        part = held_out[start : start + 256]
        rows = [{"image": base64.b64encode(file).decode()} for file, _ in part]
        results = (await fetch_json(server.address, "/predict_batch", {"model": "digits", "inputs": rows})).json()[
            "results"
        ]
        right += sum(result["prediction"] == str(digit) for result, (_, digit) in zip(results, part, strict=True))
    described = (await fetch(server.address, "/models/digits")).json()
    assert right / len(held_out) == pytest.approx(described["accuracy"], abs=1e-9)
