"""G: what travels in one batch shares nothing but the journey."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

import pytest

from tests.scenarios.conftest import Fresh, Start
from tests.support.client import Connection, burst, fetch, fetch_json
from tests.support.probe import NAN, RAISE, SLEEP, Book, expected, inputs, target
from tests.support.server import Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(start: Start) -> Iterator[Server]:
    with start() as server:
        yield server


@pytest.mark.parametrize("poison", [RAISE, NAN])
async def test_one_poisoned_row_fails_alone(server: Server, fresh: Fresh, poison: int) -> None:
    """G1"""
    for turn in range(100):
        xs = [fresh() for _ in range(32)]
        bad = turn % 32
        rows = [inputs(x, poison if place == bad else 0) for place, x in enumerate(xs)]
        answer = await fetch_json(server.address, "/predict_batch", {"model": "probe", "inputs": rows})
        assert answer.status == 200
        for place, (x, result) in enumerate(zip(xs, answer.json()["results"], strict=True)):
            if place == bad:
                assert result["error"]["status"] == 500
            else:
                assert result["probabilities"] == expected(x)


async def test_one_poisoned_request_fails_alone(server: Server, fresh: Fresh) -> None:
    """G1"""
    for turn in range(10):
        xs = [fresh() for _ in range(32)]
        bad = turn * 3
        answers = await burst(server.address, [target(x, RAISE if n == bad else 0) for n, x in enumerate(xs)])
        assert answers.pop(bad).status == 500
        del xs[bad]
        assert [answer.json()["probabilities"] for answer in answers] == [expected(x) for x in xs]


async def test_a_row_that_is_not_valid_fails_alone(server: Server, fresh: Fresh) -> None:
    """G1"""
    x = fresh()
    rows = [inputs(x), {"x": "abc", "act": 0, "seconds": 0}, {"x": 1}, [], None, inputs(x)]
    answer = await fetch_json(server.address, "/predict_batch", {"model": "probe", "inputs": rows})
    assert answer.status == 200
    results = answer.json()["results"]
    assert [result.get("error", {}).get("status", 200) // 100 for result in results] == [2, 4, 4, 4, 4, 2]
    assert results[0]["probabilities"] == expected(x)
    assert results[0] == results[5]


async def test_a_thousand_impatient_clients_do_no_harm_to_those_after_them(server: Server, fresh: Fresh) -> None:
    """G2"""
    chance = random.Random(2)

    async def impatient(patience: float) -> None:
        try:
            async with asyncio.timeout(patience):
                async with await Connection.open(server.address) as connection:
                    await connection.get(target(fresh(), SLEEP, 0.01))
        except TimeoutError:
            pass

    for _ in range(10):
        await asyncio.gather(*(impatient(chance.uniform(0, 0.05)) for _ in range(100)))
    xs = [fresh() for _ in range(200)]
    answers = await burst(server.address, [target(x) for x in xs])
    assert [answer.status for answer in answers] == [200] * 200
    assert [answer.json()["probabilities"] for answer in answers] == [expected(x) for x in xs]


async def test_a_batch_size_of_one_works(start: Start, book: Book, fresh: Fresh) -> None:
    """G3"""
    xs = [fresh() for _ in range(50)]
    with start(max_batch_size=1) as server:
        answers = await burst(server.address, [target(x) for x in xs])
        alone = await fetch(server.address, target(fresh()))
        rows = [inputs(x) for x in xs]
        batch = await fetch_json(server.address, "/predict_batch", {"model": "probe", "inputs": rows})
    assert [answer.json()["probabilities"] for answer in answers] == [expected(x) for x in xs]
    assert (alone.status, batch.status, batch.hit) == (200, 200, True)
    lines = book.lines(*xs)
    assert len(lines) == len({line.call for line in lines}) == 50
