"""C: what is one question, what is another, and that no value in Redis is believed without proof."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.cache.entry import seal
from service.config import PUBLIC_SECRET
from service.inference.predictor import pack
from tests.scenarios.conftest import Fresh, Start
from tests.support.client import Response, fetch, fetch_json
from tests.support.probe import Book, Probe, expected, inputs, register, target
from tests.support.process import becomes
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import Server

pytestmark = pytest.mark.anyio

OF_QUESTIONS = f"p1:{{probe:{'?' * 12}:{'?' * 43}}}:*"
"""The Redis keys that a question may make; a worker makes others whenever it likes."""


@pytest.fixture(scope="module")
def server(start: Start, redis_server: RedisServer) -> Iterator[Server]:
    """Without a cache of its own, so that every hit has been read from Redis."""
    with start(redis_url=redis_server.url, l1_max_bytes=0) as server:
        yield server


@pytest.mark.parametrize(
    "spellings",
    [
        ["5.1", "5.10", "05.1", "%2B5.1", "5.1e0", "0.51e1", "51e-1", "5.1E%2B0"],
        ["0", "-0", "0.0", "-0.0", "0e5", "-0e-5", "%2B0", "00"],
    ],
)
async def test_spellings_of_a_number_are_one_question(server: Server, book: Book, spellings: list[str]) -> None:
    """C1"""
    x = float(spellings[0])
    before = book.count(x)
    answers = [await fetch(server.address, f"/models/probe/predict?x={s}&act=0&seconds=0") for s in spellings]
    answers += [await fetch(server.address, f"/predict?seconds=0&x={s}&model=probe&act=-0.0") for s in spellings]
    assert {answer.status for answer in answers} == {200}
    assert book.count(x) - before == 1
    assert len({answer.headers["etag"] for answer in answers}) == 1
    assert len({answer.body for answer in answers}) == 1
    assert [answer.hit for answer in answers] == [False] + [True] * 15


BAD_NUMBERS = [
    "nan",
    "inf",
    "-Infinity",
    "1e400",
    "",
    "%20",
    "1_000",
    "0x1p3",
    "%00",
    "1%00",
    "%FF",
    "%D9%A5%2E%D9%A1",  # Arabic digits
    "1,5",
    "true",
    "null",
    "[1]",
    "9" * 10_000,
]


@pytest.mark.parametrize("number", BAD_NUMBERS, ids=lambda number: repr(number[:12]))
async def test_what_is_no_finite_number_is_refused_before_model_and_cache(
    server: Server, redis_server: RedisServer, book: Book, number: str
) -> None:
    """C2"""
    await refused(server, redis_server, book, f"/models/probe/predict?x={number}&act=0&seconds=0")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "x=1",
        "x=1&x=1&act=0&seconds=0",
        "x=1&act=0&seconds=0&y=1",
        "x=1&act=0&seconds=0&top_k=0",
        "x&act=0&seconds=0",
        "x=1&act=0&seconds=0&top_k=4",
        "x=1&act=0&seconds=0&top_k=one",
        "x=1&act=0&seconds=0&X=1",
        "x=1;act=0;seconds=0",
    ],
)
async def test_missing_repeated_and_unknown_parameters_are_refused(
    server: Server, redis_server: RedisServer, book: Book, query: str
) -> None:
    """C2"""
    await refused(server, redis_server, book, f"/models/probe/predict?{query}")


@pytest.mark.parametrize("bound", ["sepal_length=-1e9", "sepal_length=1e9"])
async def test_what_is_out_of_the_manifests_bounds_is_refused(
    server: Server, redis_server: RedisServer, book: Book, bound: str
) -> None:
    """C2"""
    await refused(server, redis_server, book, f"/predict?{bound}&sepal_width=3.5&petal_length=1.4&petal_width=0.2")


BAD_JSON = [
    b"",
    b"{",
    b"[]",
    b'{"x":NaN,"act":0,"seconds":0}',
    b'{"x":1e400,"act":0,"seconds":0}',
    b'{"x":null,"act":0,"seconds":0}',
    b'{"x":true,"act":0,"seconds":0}',
    b'{"x":[1],"act":0,"seconds":0}',
    b'{"x":1,"act":0}',
    b'{"x":1,"act":0,"seconds":0,"y":1}',
    b'{"x":' + b"9" * 10_000 + b',"act":0,"seconds":0}',
    b'{"x":1,"act":0,"seconds":0}' + b"\xff",
    b"[" * 100_000,
]


@pytest.mark.parametrize("body", BAD_JSON, ids=lambda body: repr(body[:30]))
async def test_bad_json_is_refused_before_model_and_cache(
    server: Server, redis_server: RedisServer, book: Book, body: bytes
) -> None:
    """C2"""
    await refused(server, redis_server, book, "/models/probe/predict", body)


async def refused(server: Server, redis_server: RedisServer, book: Book, path: str, body: bytes | None = None) -> None:
    rows, before = book.count(), redis_server.names(OF_QUESTIONS)
    if body is None:
        answer = await fetch(server.address, path)
    else:
        answer = await fetch(server.address, path, "POST", {"Content-Type": "application/json"}, body)
    assert 400 <= answer.status < 500, answer
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.json()["status"] == answer.status
    assert (book.count(), redis_server.names(OF_QUESTIONS) - before) == (rows, set())


async def test_the_next_float_is_another_question(server: Server, book: Book, fresh: Fresh) -> None:
    """C3"""
    x = fresh()
    above = math.nextafter(x, math.inf)
    for question in (x, above):
        answer = await fetch(server.address, target(question))
        assert (answer.hit, answer.json()["probabilities"]) == (False, expected(question))
    assert (book.count(x), book.count(above)) == (1, 1)


async def test_the_next_float_in_the_same_cell_of_a_forest_is_the_same_question(server: Server) -> None:
    """C3"""
    if (await fetch(server.address, "/models/iris")).json()["key"] != "cells":
        pytest.skip("the forest's questions are not cells")
    rest = "sepal_width=3.5&petal_length=1.4&petal_width=0.2"
    first = await fetch(server.address, f"/predict?sepal_length=5.1&{rest}")
    second = await fetch(server.address, f"/predict?sepal_length={math.nextafter(5.1, 6)!r}&{rest}")
    assert (second.hit, second.body, second.headers["etag"]) == (True, first.body, first.headers["etag"])


async def ask(server: Server, x: float) -> Response:
    answer = await fetch(server.address, target(x))
    assert (answer.status, answer.json()["probabilities"]) == (200, expected(x))
    return answer


async def entry_of(server: Server, redis_server: RedisServer, x: float) -> bytes:
    """The Redis key of a question that has not been asked before."""
    before = redis_server.entries()
    await ask(server, x)
    await becomes(lambda: redis_server.entries() - before)
    new = redis_server.entries() - before
    assert len(new) == 1
    return new.pop()


async def recovers(server: Server, x: float) -> None:
    """The right answer, not from the cache; and a hit right after."""
    assert not (await ask(server, x)).hit
    assert (await ask(server, x)).hit


@pytest.mark.parametrize("damage", ["randomised", "truncated", "emptied", "lengthened", "zeroed"])
async def test_a_damaged_value_is_a_miss_and_is_replaced(
    server: Server, redis_server: RedisServer, fresh: Fresh, damage: str
) -> None:
    """C4"""
    x = fresh()
    key = await entry_of(server, redis_server, x)
    value = redis_server.value(key)
    new = {
        "randomised": os.urandom(len(value)),
        "truncated": value[: len(value) // 2],
        "emptied": b"",
        "lengthened": value + b"\0",
        "zeroed": bytes(len(value)),
    }[damage]
    redis_server.client.set(key, new, px=100_000)
    await recovers(server, x)


PROBABILITIES = np.array([0.2, 0.3, 0.5])
NO_ANSWERS = {
    "another length": np.array([0.5, 0.5]),
    "another shape": PROBABILITIES.reshape(3, 1),
    "another dtype": PROBABILITIES.astype(np.float32),
    "NaN": np.array([0.5, 0.5, np.nan]),
    "infinite": np.array([np.inf, 0.0, 0.0]),
    "above 1": np.array([7.0, 0.0, 0.0]),
    "below 0": np.array([1.5, -0.5, 0.0]),
    "a sum above 1": np.array([0.7, 0.7, 0.7]),
    "a sum below 1": np.zeros(3),
}


@pytest.mark.parametrize("values", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
async def test_a_value_that_is_sealed_rightly_and_no_answer_of_the_model_is_a_miss_and_is_replaced(
    server: Server, redis_server: RedisServer, fresh: Fresh, values: Any
) -> None:
    x = fresh()
    key = await entry_of(server, redis_server, x)
    corrupt = server.metric("predict_l2_corrupt_total")
    sealed = seal(key.decode()[4:-3], pack(values), 300_000, PUBLIC_SECRET.encode())
    redis_server.client.set(key, sealed, px=300_000)
    await recovers(server, x)
    assert server.metric("predict_l2_corrupt_total") == corrupt + 1


async def test_every_flipped_bit_of_a_value_is_a_miss(server: Server, redis_server: RedisServer, fresh: Fresh) -> None:
    """C4"""
    x = fresh()
    key = await entry_of(server, redis_server, x)
    value = redis_server.value(key)
    for position in range(len(value)):
        damaged = bytearray(redis_server.value(key))
        damaged[position] ^= 1 << position % 8
        redis_server.client.set(key, bytes(damaged), keepttl=True)
        assert not (await ask(server, x)).hit, f"byte {position}"
    assert (await ask(server, x)).hit


@pytest.mark.parametrize("kind", ["list", "hash", "set", "zset", "stream"])
async def test_a_value_of_another_type_is_a_miss_and_is_replaced(
    server: Server, redis_server: RedisServer, fresh: Fresh, kind: str
) -> None:
    """C4"""
    x = fresh()
    key = await entry_of(server, redis_server, x)
    client = redis_server.client
    client.delete(key)
    {
        "list": lambda: client.rpush(key, b"1"),
        "hash": lambda: client.hset(key, "f", "1"),
        "set": lambda: client.sadd(key, b"1"),
        "zset": lambda: client.zadd(key, {"m": 1}),
        "stream": lambda: client.xadd(key, {"f": "1"}),
    }[kind]()
    client.pexpire(key, 100_000)
    await recovers(server, x)


async def test_a_value_without_a_lifetime_is_a_miss_and_is_replaced(
    server: Server, redis_server: RedisServer, fresh: Fresh
) -> None:
    """C4"""
    x = fresh()
    key = await entry_of(server, redis_server, x)
    redis_server.client.persist(key)
    await recovers(server, x)
    assert 0 < redis_server.client.pttl(key) <= 300_000


async def test_a_value_with_a_longer_life_than_it_was_given_is_never_older_than_its_max_age(
    server: Server, redis_server: RedisServer, fresh: Fresh
) -> None:
    """C4"""
    x = fresh()
    key = await entry_of(server, redis_server, x)
    redis_server.client.pexpire(key, 10_000_000)
    answer = await ask(server, x)
    assert 0 <= answer.age <= answer.max_age <= 300


async def test_a_valid_value_of_another_question_is_a_miss_and_is_replaced(
    server: Server, redis_server: RedisServer, fresh: Fresh
) -> None:
    """C4"""
    x, other = fresh(), fresh()
    key, source = await entry_of(server, redis_server, x), await entry_of(server, redis_server, other)
    redis_server.client.restore(key, 100_000, redis_server.client.dump(source), replace=True)
    await recovers(server, x)


async def test_another_artifact_never_meets_old_answers_and_the_old_one_finds_its_own_again(
    start: Start, models: Path, book: Book, fresh: Fresh, tmp_path: Path
) -> None:
    """C5"""
    x = fresh()
    retrained = tmp_path / "models"
    shutil.copytree(models, retrained)
    register(Probe(book.directory, salt=7), retrained, "probe")
    with running_redis(tmp_path / "redis") as redis_server:
        seen = []
        for directory, salt in ((models, 0), (retrained, 7), (models, 0)):
            with start(redis_url=redis_server.url, models_dir=directory) as server:
                answer = await fetch(server.address, target(x))
                assert answer.json()["probabilities"] == expected(x, salt)
                seen.append(answer)
    assert [answer.hit for answer in seen] == [False, False, True]
    assert seen[0].body == seen[2].body
    assert seen[0].headers["etag"] == seen[2].headers["etag"] != seen[1].headers["etag"]


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = str(file)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.file,)


async def test_a_pickle_as_a_value_is_inert(
    server: Server, redis_server: RedisServer, fresh: Fresh, tmp_path: Path
) -> None:
    """C6"""
    x = fresh()
    key = await entry_of(server, redis_server, x)
    value = redis_server.value(key)
    bomb = pickle.dumps(Bomb(tmp_path / "exploded"))
    for planted in (bomb, value[:4] + bomb, value[:24] + bomb):
        redis_server.client.set(key, planted, px=100_000)
        assert not (await ask(server, x)).hit
    assert not (tmp_path / "exploded").exists()
    pickle.loads(bomb)
    assert (tmp_path / "exploded").exists(), "the bomb was live"


async def test_no_key_shows_what_was_asked(server: Server, redis_server: RedisServer, fresh: Fresh) -> None:
    """C7"""
    x = fresh()
    await entry_of(server, redis_server, x)
    await fetch_json(server.address, "/models/probe/predict", inputs(x))
    traces = [repr(x).encode(), struct.pack("!d", x), struct.pack("<d", x), struct.pack("!d", x).hex().encode()]
    for key in redis_server.names():
        assert not any(trace in key for trace in traces), key


async def test_two_models_answer_the_same_input_each_its_own(server: Server, book: Book, fresh: Fresh) -> None:
    """C8"""
    x = fresh()
    for _ in range(2):
        for model, salt in (("probe", 0), ("other", 1)):
            answer = await fetch(server.address, target(x, model=model))
            assert answer.json()["probabilities"] == expected(x, salt)
            assert answer.json()["model"] == model
    assert book.count(x) == 2


async def test_renderings_of_one_question_share_one_computation(server: Server, book: Book, fresh: Fresh) -> None:
    """C9"""
    x = fresh()
    tensors = [{"name": n, "shape": [1, 1], "datatype": "FP64", "data": [v]} for n, v in inputs(x).items()]
    answers = [
        await fetch(server.address, target(x)),
        await fetch(server.address, target(x) + "&top_k=1"),
        await fetch(server.address, target(x) + "&top_k=all"),
        await fetch_json(server.address, "/models/probe/predict", inputs(x)),
        await fetch_json(server.address, "/predict", {"model": "probe", **inputs(x)}),
        await fetch_json(server.address, "/predict_batch", {"model": "probe", "inputs": [inputs(x), inputs(x)]}),
        await fetch_json(server.address, "/v2/models/probe/infer", {"inputs": tensors}),
    ]
    assert [answer.status for answer in answers] == [200] * 7
    assert book.count(x) == 1
    assert [answer.hit for answer in answers] == [False] + [True] * 6
    assert len(answers[1].json()["probabilities"]) == 1
