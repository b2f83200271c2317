"""H: the same question has the same bytes as its answer, however it was batched and wherever it was computed."""

from __future__ import annotations

import asyncio

import pytest

from tests.scenarios.conftest import Start
from tests.support.client import burst, fetch
from tests.support.server import Server, close_all

pytestmark = pytest.mark.anyio

IRIS = "/predict?sepal_length={:.3f}&sepal_width=3.5&petal_length=1.4&petal_width=0.2"
LINEAR = "/models/linear/predict?a={:.3f}&b=3.5&c=1.4&d=0.2"


@pytest.mark.parametrize("question", [IRIS, LINEAR], ids=["forest", "linear"])
async def test_alone_in_bursts_and_on_every_worker_the_bytes_are_identical(cluster: Server, question: str) -> None:
    """H1"""
    for number in range(10):
        asked = question.format(5 + number / 1000)
        answers = await burst(cluster.address, [asked] * 64)
        answers += await burst(cluster.address, [asked] * 8)
        answers.append(await fetch(cluster.address, asked))
        connections = await cluster.connect_to_each()
        everyone = [c for owned in connections.values() for c in owned]
        answers += [await connection.get(asked) for connection in everyone]
        close_all(everyone)
        assert {answer.status for answer in answers} == {200}
        assert len({answer.body for answer in answers}) == 1
        assert len({answer.headers["etag"] for answer in answers}) == 1


@pytest.mark.parametrize("question", [IRIS, LINEAR], ids=["forest", "linear"])
async def test_neighbours_in_a_batch_do_not_move_an_answer(start: Start, question: str) -> None:
    """H1: no cache in this one, so every answer is computed anew, in whatever batch it falls into."""
    fresh = {"Cache-Control": "no-store"}
    questions = [question.format(6 + number / 1000) for number in range(64)]
    with start() as server:
        alone = [await fetch(server.address, asked, headers=fresh) for asked in questions]
        for _ in range(3):
            together = await asyncio.gather(*(fetch(server.address, asked, headers=fresh) for asked in questions))
            assert [answer.body for answer in together] == [answer.body for answer in alone]
