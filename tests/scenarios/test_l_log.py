"""L: what an operator reads in the log. Every line is one JSON object; a flood of requests is none of lines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.rate_limit import GUESSES_PER_MINUTE
from tests.scenarios.conftest import Fresh, Start
from tests.support.client import Connection, burst, caught_up, fetch, fetch_json
from tests.support.probe import NAN, RAISE, WAIT, Book, inputs, target
from tests.support.process import becomes, eventually
from tests.support.redis_server import RedisServer
from tests.support.server import ADMIN_TOKEN, Server

pytestmark = pytest.mark.anyio

HURRIED = {"max_queue_size": 1, "max_batch_size": 1, "deadline_seconds": 1.0}
FLOOD = 100
OPERATOR = {"Authorization": f"Bearer {ADMIN_TOKEN}"}

Line = dict[str, Any]


class Log:
    """The lines of a service from here on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._seen = len(server.process.errors().splitlines())

    def lines(self, **wanted: object) -> list[Line]:
        whole = self._server.process.errors().rpartition("\n")[0]  # without a line that is being written
        lines: list[Line] = [json.loads(line) for line in whole.splitlines()[self._seen :]]
        return [line for line in lines if wanted.items() <= line.items()]

    async def has(self, count: int = 1, **wanted: object) -> list[Line]:
        await becomes(lambda: len(self.lines(**wanted)) >= count)
        return self.lines(**wanted)


@pytest.fixture(scope="module")
def server(start: Start, redis_server: RedisServer) -> Iterator[Server]:
    with start(redis_url=redis_server.url, l1_max_bytes=0, log_level="INFO") as server:
        yield server


@pytest.fixture
def log(server: Server) -> Log:
    return Log(server)


async def held(server: Server, book: Book, x: float) -> asyncio.Task[Any]:
    """The model is busy until the gate of ``x`` is opened."""
    task = asyncio.ensure_future(fetch(server.address, target(x, WAIT)))
    await becomes(lambda: book.count(x))
    return task


async def test_a_flood_of_shed_and_late_requests_is_a_few_lines_whose_counts_are_theirs(
    start: Start, book: Book, fresh: Fresh
) -> None:
    with start(**HURRIED) as server:
        log, gate = Log(server), fresh()
        holding = await held(server, book, gate)
        answers = await burst(server.address, [target(fresh()) for _ in range(FLOOD)])
        assert sorted({answer.status for answer in answers}) == [503, 504]
        book.open_gate(gate)
        await holding
        assert server.stop() == 0
        for status, kind in ((503, "overloaded"), (504, "deadline-exceeded")):
            lines = log.lines(status=status, type=kind, level="warning", route="/models/{name}/predict")
            refused = [answer.headers["x-request-id"] for answer in answers if answer.status == status]
            late_holder = kind == "deadline-exceeded"
            assert 1 <= len(lines) <= 3
            assert sum(line["count"] for line in lines) == len(refused) + late_holder
            assert late_holder or lines[0]["request_id"] in refused


async def test_a_late_row_of_a_batch_is_told_of_as_a_late_request_is(start: Start, book: Book, fresh: Fresh) -> None:
    with start(**HURRIED) as server:
        log, gate = Log(server), fresh()
        rows = [inputs(gate, WAIT), inputs(fresh())]  # one is computed, the other waits for it
        answer = await fetch_json(server.address, "/predict_batch", {"model": "probe", "inputs": rows})
        assert [result["error"]["status"] for result in answer.json()["results"]] == [504, 504]
        book.open_gate(gate)
        await log.has(type="deadline-exceeded", route="/predict_batch")


@pytest.mark.parametrize("act", [RAISE, NAN])
async def test_a_failed_prediction_is_told_of_with_model_key_and_the_id_of_each_request(
    server: Server, log: Log, fresh: Fresh, act: int
) -> None:
    x = fresh()
    asked = f"/predict?model=probe&x={x!r}&act={act}&seconds=0.2"
    names = [f"asker-{act}-{number}" for number in range(3)]
    answers = await asyncio.gather(*(fetch(server.address, asked, headers={"X-Request-ID": n}) for n in names))
    assert {answer.status for answer in answers} == {500}
    key = (await fetch(server.address, "/admin/key?" + asked.partition("?")[2], headers=OPERATOR)).json()["key"]
    lines = await log.has(4, model="probe", key=key)
    assert sorted(line["request_id"] for line in lines if line["level"] == "warning") == names
    failures = [line for line in lines if "exception" in line]
    assert failures
    for line in failures:
        assert line["request_id"] in names
        assert ("told to raise" if act == RAISE else "not finite") in line["exception"]


async def test_what_an_operator_does_and_who_only_tries_to_is_told(server: Server, log: Log) -> None:
    guesser, answers, began = ("127.0.0.2", 0), [], time.monotonic()
    for number in range(FLOOD):
        wrong = {"Authorization": f"Bearer guess-{number}", "X-Request-ID": f"guess-{number}"}
        async with Connection(*await asyncio.open_connection(*server.address, local_addr=guesser)) as connection:
            answers.append((await connection.get("/admin/cache/stats", wrong)).status)
    assert answers[:GUESSES_PER_MINUTE] == [401] * GUESSES_PER_MINUTE
    allowed = GUESSES_PER_MINUTE * (1 + (time.monotonic() - began) / 60) + 1
    assert answers.count(401) <= allowed and answers.count(401) + answers.count(429) == FLOOD
    purge = {**OPERATOR, "X-Request-ID": "purge-1"}
    assert (await fetch_json(server.address, "/admin/purge", {"model": "probe"}, purge)).status < 300
    assert await log.has(model="probe", request_id="purge-1", level="info")
    refused = log.lines(status=401, client=guesser[0])
    assert len(refused) < FLOOD / 10 and refused[0]["request_id"] == "guess-0"
    assert log.lines(status=429, client=guesser[0])
    assert "guess" not in json.dumps([{**line, "request_id": ""} for line in log.lines()])
    assert ADMIN_TOKEN not in server.process.errors()


async def test_corrupt_values_are_told_of_once_a_minute(
    server: Server, log: Log, redis_server: RedisServer, fresh: Fresh
) -> None:
    x, before = fresh(), redis_server.entries()
    await fetch(server.address, target(x))
    [key] = redis_server.entries() - before
    began = time.monotonic()
    for _ in range(20):
        await fetch(server.address, target(x))
        redis_server.client.set(key, os.urandom(40), px=100_000)
    first, *later = await log.has(level="warning", key=key.decode()[4:-3])
    assert "not an entry" in first["reason"]
    assert len(later) <= (time.monotonic() - began) / 60


async def test_a_client_that_leaves_is_no_failure(server: Server, log: Log, book: Book, fresh: Fresh) -> None:
    def count(result: str) -> float:
        return server.metric("predict_cache_results_total", model="probe", result=result)

    failed, cancelled, gate = count("failed"), count("cancelled"), fresh()
    leaver = await Connection.open(server.address)
    leaver.send("GET", target(gate, WAIT))
    await becomes(lambda: book.count(gate))
    leaver.abort()
    await caught_up(server.address)
    book.open_gate(gate)
    await becomes(lambda: count("cancelled") == cancelled + 1)
    assert (count("failed"), log.lines(model="probe")) == (failed, [])


HOSTILE = {"X-Request-ID": 'a"b\x1b[31m', "User-Agent": '"}\x7f{"level":"error"}'}


async def test_whatever_strangers_send_nothing_of_it_is_logged(server: Server, log: Log) -> None:
    for method in ("GET", "POST", "DELETE"):
        for path in ("/predict?sepal_length=RAW", "/admin/RAW", "/RAW", "/v2/models/RAW/infer", "/models/RAW"):
            await fetch(server.address, path, method, HOSTILE, b'{"RAW":"RAW"}')
    assert "RAW" not in json.dumps(log.lines())
    assert "31m" not in json.dumps(log.lines())


def test_being_told_to_stop_is_a_line_of_the_arbiter_and_one_of_each_worker(start: Start) -> None:
    with start(workers=2) as server:
        log = Log(server)
        eventually(lambda: server.process.errors().count("A worker serves.") == 2)
        assert server.stop() == 0
        lines = log.lines(signal="SIGTERM", level="info")
        assert len(lines) == 3 and len({line["pid"] for line in lines}) == 3
        assert [line["exit_code"] for line in log.lines(message="The service has stopped.")] == [0]


async def test_each_other_signal_is_a_line_and_a_worker_says_what_it_serves(start: Start) -> None:
    with start(workers=1) as server:
        log = Log(server)
        for signum, told in (
            (signal.SIGHUP, {"signal": "SIGHUP"}),
            (signal.SIGTTIN, {"before": 1, "now": 2}),
            (signal.SIGTTOU, {"before": 2, "now": 1}),
        ):
            os.kill(server.process.pid, signum)
            assert len(await log.has(**told)) == 1
        models = (await fetch(server.address, "/models")).json()["models"]
        served = {model["name"]: model["version"] for model in models}
        assert all(line["models"] == served for line in await log.has(message="A worker serves."))
