"""Does the cache pay: sums on a clock that only tests move, and distinct questions in a real Redis."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import pytest

from service.cache.keys import cache_key
from service.cache.redis.l2 import L2, NoRedis, RedisCache, open_redis
from service.config import load_settings
from service.errors import StoreUnavailable
from service.metrics import Metrics
from service.observer import Account, DistinctQuestions, Economics
from service.runtime import open_runtime
from tests.support.client import fetch, fetch_json
from tests.support.patience import give_redis_time
from tests.support.process import becomes
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import running_server
from tests.test_pipeline import Clock

pytestmark = pytest.mark.anyio

HLL, COUNTS = "p1:{echo}:hll", "p1:{echo}:asked"


@pytest.fixture(scope="module")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_server(redis_process: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    """Empty, and with time on a busy machine."""
    give_redis_time(monkeypatch.setattr)
    redis_process.client.flushall()
    return redis_process


@pytest.fixture
async def l2(redis_server: RedisServer) -> AsyncIterator[RedisCache]:
    async with open_redis(redis_server.url, secret=b"s", observer=Metrics()) as cache:
        assert isinstance(cache, RedisCache)
        await cache.register("echo")
        yield cache


def key(number: int) -> str:
    return cache_key("echo:0", bytes(32), bytes(8), str(number).encode())


class Books:
    """The economics of one model whose manifest says 2 s, and answers made up for it."""

    def __init__(self, l2: L2 | None = None) -> None:
        self.clock, self.metrics, self.account = Clock(), Metrics(), Account(2.0)
        self.l2 = l2 or NoRedis(lambda: None)
        self.economics = Economics({"echo": self.account}, self.l2, self.metrics)

    def answer(self, number: int, source: Literal["l1", "l2", "computed", "collapsed"], redis: float = 0.0) -> None:
        self.account.new_spent += redis
        self.account.add_many(source, (key(number),))

    def samples(self) -> dict[tuple[str, str], float]:
        self.economics.update_metrics()
        self.metrics.flush()
        return self.metrics.samples("echo")

    async def report(self) -> dict[str, Any]:
        return await self.economics.report("echo", self.samples())


# What it saves, and what it costs


async def test_until_one_is_measured_a_hit_saves_what_the_manifest_says() -> None:
    books = Books()
    books.answer(1, "l1")
    books.answer(1, "l2", redis=0.25)
    assert books.samples()["predict_cache_saved_seconds_total", ""] == 4
    books.account.add_batch(4, 1.0)
    books.account.add_batch(4, 3.0)
    books.answer(1, "l1")
    assert books.samples()["predict_cache_saved_seconds_total", ""] == 4.5
    assert (await books.report())["cost_seconds"] == 0.5


def test_hits_below_asgi_save_as_much_as_others() -> None:
    books = Books()
    books.account.add_hits(10)
    assert books.samples()["predict_cache_saved_seconds_total", ""] == 20


def test_waiting_for_redis_is_the_cost_of_hits_and_misses_alike() -> None:
    books = Books()
    books.answer(1, "l2", redis=0.25)
    books.answer(2, "computed", redis=0.5)
    books.answer(2, "l1")
    books.answer(2, "collapsed")
    samples = books.samples()
    assert samples["predict_cache_spent_seconds_total", ""] == 0.75
    assert samples["predict_cache_saved_seconds_total", ""] == 4


async def test_without_redis_there_is_a_hit_rate_and_no_estimate() -> None:
    books = Books()
    for result, count in (("l1", 3), ("computed", 1), ("failed", 7)):
        books.metrics.cache_results.labels("echo", result).inc(count)
    report = await books.report()
    assert (report["asked"], report["hits"], report["hit_rate"]) == (4, 3, 0.75)
    assert not {"distinct", "best_hit_rate"} & report.keys()


# Distinct questions


async def test_distinct_questions_are_told_from_repeated_ones(l2: RedisCache) -> None:
    books = Books(l2)
    for number in range(1000):
        books.answer(number, "computed")
    for number in range(1000):
        books.answer(number, "l2")
    books.account.add_hits(2000)
    report = await books.report()
    assert (report["asked"], report["hits"], report["hit_rate"]) == (4000, 3000, 0.75)
    assert report["distinct"] == pytest.approx(1000, rel=0.05)
    assert report["best_hit_rate"] == pytest.approx(0.75, abs=0.02)
    again = await books.report()
    assert (again["asked"], again["distinct"]) == (4000, report["distinct"])


async def test_distinct_questions_are_those_of_all_workers(l2: RedisCache) -> None:
    first, second = Books(l2), Books(l2)
    first.answer(1, "computed")
    second.answer(1, "l2")
    second.answer(2, "computed")
    await first.report()
    report = await second.report()
    assert (report["asked"], report["hits"], report["distinct"]) == (3, 1, 2)
    assert report["best_hit_rate"] == report["hit_rate"] == pytest.approx(1 / 3)


async def test_counts_and_estimate_end_together_and_begin_anew_together(
    l2: RedisCache, redis_server: RedisServer
) -> None:
    client = redis_server.client
    assert await l2.count("echo", [key(1)], 5, 4) == [5, 4, 1]
    assert 0 < client.ttl(HLL) == client.ttl(COUNTS) <= 86_400
    for damage in (
        lambda: client.delete(HLL),
        lambda: client.delete(COUNTS),
        lambda: client.set(HLL, b"\x00damaged"),
        lambda: client.set(COUNTS, b"damaged"),
        lambda: (client.delete(HLL), client.lpush(HLL, b"damaged")),
        lambda: client.hset(COUNTS, "asked", "many"),
        lambda: client.setrange(HLL, 10, b"\xff" * 40),
    ):
        await l2.count("echo", [key(1)], 5, 4)
        damage()
        counted = await l2.count("echo", [key(2)], 2, 1)
        assert counted in ([2, 1, 1], [*counted[:2], 2])
        assert l2.state == "up"
        client.delete(HLL, COUNTS)


async def test_a_count_of_nothing_makes_its_keys_so_that_questions_make_none(
    l2: RedisCache, redis_server: RedisServer
) -> None:
    books = Books(l2)
    await books.economics.distinct_questions("echo")
    before = redis_server.client.dbsize()
    for number in range(1200):  # more than Lua takes at once
        books.answer(number, "computed")
    report = await books.report()
    assert (report["asked"], redis_server.client.dbsize()) == (1200, before)
    assert report["distinct"] == pytest.approx(1200, rel=0.05)


async def test_what_redis_does_not_take_is_forgotten_as_a_whole(l2: RedisCache, redis_server: RedisServer) -> None:
    books = Books(l2)
    books.answer(1, "computed")
    l2._client.breaker.pause_writes("full")
    assert await books.economics.distinct_questions("echo") is None
    assert (books.account.asked, books.account.keys) == (0, set())


async def test_what_is_counted_during_a_round_trip_goes_with_the_next(l2: RedisCache) -> None:
    books = Books(l2)
    books.answer(1, "computed")
    under_way = asyncio.create_task(books.economics.distinct_questions("echo"))
    await asyncio.sleep(0)
    books.answer(2, "computed")
    assert await under_way == DistinctQuestions(1, 0, 1)
    assert await books.economics.distinct_questions("echo") == DistinctQuestions(2, 0, 2)


# As its users see it


async def test_the_page_of_a_model_tells_what_its_cache_is_worth(
    tmp_path_factory: pytest.TempPathFactory, iris_models: Any, redis_server: RedisServer
) -> None:
    directory = tmp_path_factory.mktemp("server")
    with running_server(directory, models_dir=iris_models, redis_url=redis_server.url, audit_share=1) as server:
        target = "/predict?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2"
        for _ in range(5):
            await fetch(server.address, target)
        rows = [{"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}] * 2
        await fetch_json(server.address, "/predict_batch", {"model": "iris", "inputs": rows})
        await becomes(lambda: server.metric("predict_cache_audits_total", model="iris") == 5)
        page = json.loads((await fetch(server.address, "/models/iris")).body)
        economics, audit = page["economics"], page["audit"]
        assert (economics["asked"], economics["hits"], economics["distinct"]) == (6, 5, 1)
        assert economics["hit_rate"] == economics["best_hit_rate"] == pytest.approx(5 / 6)
        assert economics["saved_seconds"] == pytest.approx(5 * economics["cost_seconds"], rel=0.01)
        assert economics["spent_seconds"] > 0
        assert audit == {"share": 1.0, "audited": 5, "mismatches": 0}
        assert server.metric("predict_distinct_questions", model="iris") == 1
        assert server.metric("predict_best_hit_ratio", model="iris") == pytest.approx(5 / 6)


async def test_a_worker_that_ends_leaves_no_task(iris_models: Any) -> None:
    before = asyncio.all_tasks()
    async with open_runtime(load_settings({"PREDICT_MODELS_DIR": str(iris_models)})):
        assert len(asyncio.all_tasks()) > len(before)
    assert asyncio.all_tasks() == before


async def test_counting_in_a_redis_that_is_down_says_so(l2: RedisCache) -> None:
    for _ in range(3):
        l2._client.breaker.failed("silent")
    with pytest.raises(StoreUnavailable):
        await l2.count("echo", [], 0, 0)
