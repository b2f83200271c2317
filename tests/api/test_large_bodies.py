"""Bodies that strangers send: how much of them is held at a time, and how long they stop the event loop."""

from __future__ import annotations

import asyncio
import base64
import gzip
import http.client
import json
import shutil
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from service.app import create_app
from service.config import load_settings
from service.server.connection import protocol_class
from service.server.worker import Lifespan, settle_memory
from tests.support.client import Address, Connection, fetch
from tests.support.probe import register
from tests.support.process import becomes
from tests.support.server import running_server

pytestmark = pytest.mark.anyio

MIB = 2**20
IRIS = b'{"sepal_length":5.1,"sepal_width":3.5,"petal_length":1.4,"petal_width":0.2}'
JSON = {"Content-Type": "application/json"}
LONGEST_PAUSE = 0.02
"""Seconds for which no body may stop the loop."""
ATTEMPTS = 10
"""A body that stops the loop does so each time; a busy machine does not."""


async def test_the_bodies_of_all_requests_are_bounded_together(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, max_bodies_bytes=32 * MIB) as server:
        connections = [await Connection.open(server.address) for _ in range(3)]
        for connection in connections:
            connection.send("POST", "/predict", JSON | {"Content-Length": str(10 * MIB)}, b" " * (10 * MIB - 1))
        await becomes(lambda: server.metric("predict_request_body_bytes_total") >= 3 * (10 * MIB - 1))
        refused = await fetch(server.address, "/predict_batch", "POST", JSON, b" " * 3 * MIB)
        assert (refused.status, refused.json()["type"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        small = await fetch(server.address, "/predict", "POST", JSON, IRIS)
        assert small.status == 200, "there is room for it"
        for connection in connections:
            connection.writer.write(b"x")
            assert (await connection.read()).status == 400
            connection.close()
        for _ in range(3):
            assert (await fetch(server.address, "/predict_batch", "POST", JSON, b" " * 31 * MIB)).status == 400


# How long the loop stands still


class Pulse:
    """``longest``: the longest time between two turns of the loop, without what other processes took of it."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def beat(self) -> None:
        while True:
            wall, cpu = time.monotonic(), time.process_time()
            await asyncio.sleep(0.001)
            # Of this process: a thread that keeps the interpreter stops the loop as its own callbacks do.
            self.longest = max(self.longest, min(time.monotonic() - wall, time.process_time() - cpu))


@asynccontextmanager
async def served(models: Path) -> AsyncIterator[Address]:
    """The service in this process."""
    settings = load_settings({"PREDICT_MODELS_DIR": str(models), "PREDICT_THREADS": "1"})
    config = uvicorn.Config(create_app(settings), http=protocol_class(settings), ws="none", log_config=None)
    config.load()
    lifespan, state = Lifespan(config.loaded_app), uvicorn.server.ServerState()
    await lifespan.startup()
    settle_memory()  # as a worker does: a full collection of this process's garbage takes a tenth of a second

    def connect() -> asyncio.Protocol:
        return protocol_class(settings)(config=config, server_state=state, app_state=lifespan.state)

    accepting = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0)
    async with accepting:
        yield accepting.sockets[0].getsockname()
    await lifespan.shutdown()


@pytest.fixture(scope="module")
def models(iris_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``iris``, ``digits``, and ``many`` with a thousand classes."""
    from sklearn.tree import DecisionTreeClassifier

    from tests.support.untrained import write_untrained  # not above: it imports torch

    models = tmp_path_factory.mktemp("bodies") / "models"
    shutil.copytree(iris_models, models)
    write_untrained(models)
    numbers = [[number / 3] for number in range(3000)]
    tree = DecisionTreeClassifier().fit(numbers, [number // 3 for number in range(3000)])
    register(tree, models, "many", features="x", classes=",".join(f"the class {number}" for number in range(1000)))
    return models


def filled(head: bytes, part: bytes, tail: bytes, size: int) -> bytes:
    return head + part * ((size - len(head) - len(tail)) // len(part)) + tail


def binary(head: dict[str, object], raw: bytes) -> tuple[dict[str, str], bytes]:
    document = json.dumps(head).encode()
    return {"Inference-Header-Content-Length": str(len(document))}, document + raw


def tensor(datatype: str, *shape: int, **more: object) -> dict[str, object]:
    return {"inputs": [{"name": "input", "datatype": datatype, "shape": shape, **more}]}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG = b"\x89PNG\r\n\x1a\n"
HUGE_PNG = (
    PNG
    + chunk(b"IHDR", struct.pack(">2I5B", 4000, 4000, 8, 2, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(bytes(4000 * 12001), 9))
    + chunk(b"IEND", b"")
)
SMALL, LARGE = 10 * MIB - 1000, 32 * MIB - 1000
"""What /predict takes, and what a batch may have."""
NUMBERS = b"0.12345678901234567,"


def predict_bodies() -> Iterator[tuple[str, bytes]]:
    inputs = b'{"model":"digits","input":'
    yield "zeros", filled(inputs + b"[[[0", b",0", b"]]]}", SMALL)
    yield "numbers", filled(inputs + b"[[[", NUMBERS, b"0]]]}", SMALL)
    yield "short rows", filled(inputs + b"[[[0]", b",[0]", b"]]}", 3 * 490_000)
    yield "arrays", filled(inputs + b"[", b"[],", b"[]]}", SMALL)
    yield "right but for its elements", inputs + json.dumps([[["x" * 3000] * 32] * 32] * 3).encode() + b"}"
    yield "right", inputs + json.dumps([[[1.2345678901234567] * 32] * 32] * 3).encode() + b" " * 9 * MIB + b"}"
    yield "deep", inputs + b"[" * 5 * MIB
    yield "deep, in objects", b'{"a":' * 2 * MIB
    yield "members", b"{" + b",".join(b'"%d":1' % i for i in range(700_000)) + b"}"
    yield "one member, again and again", filled(b"{", b'"model":"digits",', b'"a":1}', SMALL)
    yield "a long name", filled(b'{"', b"x", b'":1}', SMALL)
    yield "a long number", filled(inputs, b"1", b"}", SMALL)
    yield "blanks", filled(inputs, b" ", b"1}", SMALL)
    yield "no JSON", b"\xff" * SMALL
    yield "cut short", filled(inputs + b"[[[0", b",0", b"", SMALL)
    for name, part in (("base64", b"QUJD"), ("escapes", rb"\u0041"), ("no text", "é".encode()), ("no base64", b"(")):
        yield f"an image in {name}", filled(b'{"model":"digits","image":"', part, b'"}', SMALL)
    yield "a huge image", b'{"model":"digits","image":"%b"}' % base64.b64encode(HUGE_PNG)


def image_bodies() -> Iterator[tuple[str, bytes]]:
    yield "PNG", HUGE_PNG
    head = HUGE_PNG[:33]
    yield "PNG of small parts", filled(head, chunk(b"tEXt", b""), chunk(b"IEND", b""), SMALL)
    yield "JPEG of small parts", filled(b"\xff\xd8", b"\xff\xfe\x00\x02", b"\xff\xd9", SMALL)
    webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x10\0\0\x10\0\0"
    yield "WebP, animated", filled(webp, b"ANMF", b"", SMALL)
    yield "WebP, nearly animated", filled(webp, b"ANM", b"", SMALL)
    yield "zeros", bytes(SMALL)


def batch_bodies() -> Iterator[tuple[str, bytes]]:
    yield "zeros", filled(b'{"inputs":[0', b",0", b"]}", LARGE)
    yield "rows of zeros", b'{"inputs":[%b]}' % b",".join([filled(b"[0", b",0", b"]", 40_000)] * 256)
    yield "rows of nothing", b'{"inputs":[%b]}' % b",".join([b"[]"] * 10_000)
    yield "rows of other names", b'{"inputs":[%b]}' % b",".join(b'{"%x":1}' % i for i in range(5000))
    yield (
        "ten thousand rows",
        b'{"inputs":[%b]}' % b",".join(b"[%d.5,3.5,1.4,0.%d]" % (i % 8, i) for i in range(10_000)),
    )
    yield "a row of numbers", filled(b'{"inputs":[[', NUMBERS, b"0]]}", LARGE)
    yield (
        "rows of names",
        b'{"inputs":[%b]}' % b",".join([b"{%b}" % b",".join(b'"%d":1' % i for i in range(5000))] * 256),
    )
    yield (
        "small rows, large answers",
        json.dumps({"model": "many", "top_k": "all", "inputs": [{"x": x} for x in range(256)]}).encode(),
    )
    yield "rows of objects", filled(b'{"inputs":[', b'{"a":{}},', b"{}]}", 2 * MIB)
    yield "texts", filled(b'{"inputs":[', b'"",', b'""]}', 12 * MIB)
    image = base64.b64encode(HUGE_PNG)
    yield "images", b'{"model":"digits","inputs":[%b]}' % b",".join(b'"%b"' % image for _ in range(256))
    yield "a long image", filled(b'{"model":"digits","inputs":["', b"QUJD", b'"]}', 14 * MIB)
    array = json.dumps([[[0.1234567890123456] * 32] * 32] * 3).encode()
    yield (
        "arrays",
        b'{"model":"digits","inputs":[%b,7]}' % b",".join(array.replace(b"0", b"1%d" % i, 1) for i in range(255)),
    )


def tensor_bodies() -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    def flat(datatype: str, shape: bytes, part: bytes, size: int = LARGE, more: bytes = b"") -> bytes:
        head = b'{"inputs":[{"name":"input","datatype":"%b","shape":[%b],"data":[' % (datatype.encode(), shape)
        return filled(head, part, b"0]}]%b}" % more, size)

    yield "zeros", "iris", {}, flat("FP64", b"256,4", b"0,", 9 * MIB)
    yield "numbers", "iris", {}, flat("FP64", b"256,4", NUMBERS)
    numbers = filled(b"", NUMBERS, b"", len(NUMBERS) * 250 * 3 * 32 * 32)[:-1]
    yield (
        "right",
        "digits",
        {},
        json.dumps(tensor("FP32", 250, 3, 32, 32, data=[])).encode().replace(b"[]", b"[%b]" % numbers),
    )
    nested = json.dumps([[[[0.12345678] * 32] * 32] * 3] * 255 + [[[[1e9] * 32] * 32] * 3])
    document = json.dumps(tensor("FP32", 256, 3, 32, 32, data="X")).replace('"X"', nested)
    yield "nested", "digits", {}, document.encode()
    yield "nested wrongly", "digits", {}, document.replace("[[[[", "[[[", 1).encode()
    yield "integers", "iris", {}, flat("INT64", b"250000,4", b"7,", 4 * MIB)
    texts = [base64.b64encode(HUGE_PNG + bytes([i])).decode() for i in range(8)]
    yield "images", "digits", {}, json.dumps(tensor("BYTES", 8, data=texts)).encode()
    yield "texts", "digits", {}, json.dumps(tensor("BYTES", 256, data=["x" * 120_000] * 256)).encode()
    long = base64.b64encode(bytes(10 * MIB)).decode()
    yield "long texts", "digits", {}, json.dumps(tensor("BYTES", 2, 1, data=[[long], [long]])).encode()
    yield "tensors", "iris", {}, json.dumps({"inputs": tensor("FP64", 1, 4, data=[0] * 7000)["inputs"] * 1024}).encode()
    output = {"name": "probabilities", "parameters": {"classification": 1000}}
    rows = tensor("FP64", 256, 1, data=list(range(256)))
    yield "small rows, large answers", "many", {}, json.dumps(rows | {"outputs": [output]}).encode()
    yield "outputs", "iris", {}, filled(b'{"inputs":[],"outputs":[', b'{"name":"x"},', b"{}]}", 6 * MIB)
    yield "a shape", "iris", {}, filled(b'{"inputs":[{"name":"a","datatype":"FP64","shape":[', b"1,", b"1]}]}", 9 * MIB)
    yield (
        "floats, binary",
        "digits",
        *binary(tensor("FP32", 256, 3, 32, 32, parameters={"binary_data_size": 3145728}), bytes(3145727) + b"\x7f"),
    )
    yield (
        "images, binary",
        "digits",
        *binary(
            tensor("BYTES", 256, parameters={"binary_data_size": 256 * (len(HUGE_PNG) + 4)}),
            (struct.pack("<I", len(HUGE_PNG)) + HUGE_PNG) * 256,
        ),
    )
    size = 10 * MIB - 8
    yield (
        "long images, binary",
        "digits",
        *binary(
            tensor("BYTES", 3, parameters={"binary_data_size": 3 * (size + 4)}),
            (struct.pack("<I", size) + filled(HUGE_PNG[:33], chunk(b"tEXt", b""), b"", size - 9) + b"x" * 9)[
                : size + 4
            ].ljust(size + 4)
            * 3,
        ),
    )
    for name, body in (
        ("zeros", flat("FP64", b"256,4", b"0,", 9 * MIB)),
        ("blanks", b" " * LARGE),
        ("bomb", bytes(200 * MIB)),
    ):
        yield f"{name}, gzip", "iris", {"Content-Encoding": "gzip"}, gzip.compress(body, 1)


def corpus() -> Iterator[tuple[str, str, dict[str, str], Callable[[], bytes]]]:
    for name, body in predict_bodies():
        yield f"/predict: {name}", "/predict", JSON, body
    for name, body in image_bodies():
        yield f"/predict: {name}", "/predict?model=digits", {"Content-Type": "image/png"}, body
    for name, body in batch_bodies():
        yield f"/predict_batch: {name}", "/predict_batch", JSON, body
    for name, model, headers, body in tensor_bodies():
        yield f"/v2: {name}", f"/v2/models/{model}/infer", headers, body


def post(address: Address, target: str, headers: dict[str, str], body: bytes) -> int:
    """The status; in a thread of its own, which the sending leaves the interpreter to."""
    client = http.client.HTTPConnection(*address, timeout=120)
    try:
        client.request("POST", target, body, headers)
        return client.getresponse().status
    finally:
        client.close()


async def test_no_body_stops_the_event_loop(models: Path) -> None:
    async with served(models) as address:
        pulse = Pulse()
        beating = asyncio.create_task(pulse.beat())
        slow = {}
        for name, target, headers, body in corpus():
            pauses = []
            while not pauses or (min(pauses) > LONGEST_PAUSE and len(pauses) < ATTEMPTS):
                await asyncio.sleep(0.01)
                pulse.longest = 0.0
                status = await asyncio.to_thread(post, address, target, headers, body)
                await asyncio.sleep(0.01)
                pauses.append(pulse.longest)
            print(f"{name:45} {status} {len(body) / MIB:5.1f} MiB, {min(pauses) * 1e3:5.1f} ms")
            assert status != 500, name
            if min(pauses) > LONGEST_PAUSE:
                slow[name] = min(pauses)
        beating.cancel()
    assert not slow
