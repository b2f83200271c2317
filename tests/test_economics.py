"""Does the cache pay: sums on a clock that only tests move, and censuses in a real Redis."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Literal

import pytest

from service.asking import PLAIN, Answer, Ask, Model, Wants
from service.cache.census import Census
from service.cache.entry import Entry
from service.cache.joined import Allowance
from service.cache.keys import cache_key, generation_key
from service.cache.memory import MemoryCache
from service.cache.no_redis import NoRedis
from service.cache.redis import L2, RedisCache, open_redis
from service.config import load_settings
from service.economics import LEAST_LOOKUPS, STILL_ASKED, WINDOW_SECONDS, Account, Economics
from service.errors import StoreUnavailable
from service.inference.batcher import Batcher
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.runtime import open_runtime
from tests.support.client import fetch, fetch_json
from tests.support.patience import give_redis_time
from tests.support.process import becomes
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import running_server
from tests.test_pipeline import MANIFEST, Clock, EchoPredictor, question

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
    # The keys of a run depend on it, and on the keys which questions still ask while L2 is bypassed.
    redis_process.client.set(generation_key("echo"), b"the same")
    return redis_process


@pytest.fixture
async def l2(redis_server: RedisServer) -> AsyncIterator[RedisCache]:
    async with open_redis(redis_server.url, secret=b"s") as cache:
        assert isinstance(cache, RedisCache)
        await cache.register("echo")
        yield cache


def key(number: int) -> str:
    return cache_key(bytes(32), bytes(8), str(number).encode())


class Books:
    """The economics of one model whose manifest says 2 s, and answers made up for it."""

    def __init__(self, l2: L2 | None = None, bypass: bool = False) -> None:
        self.clock, self.metrics, self.account = Clock(), Metrics(), Account(2.0)
        self.l2 = l2 or NoRedis(lambda model: None, self.clock, lambda: 0.0)
        self.economics = Economics({"echo": self.account}, self.l2, self.metrics, bypass=bypass, clock=self.clock)
        self.model = Model("echo", MANIFEST, EchoPredictor(), None, leased=False)  # type: ignore[arg-type]

    def ask(self, number: int = 0, digest_only: bool = False) -> Ask:
        return Ask(self.model, question(number, digest_only=digest_only), key(number), True, math.inf, Allowance(10))

    def answer(
        self,
        number: int,
        source: Literal["l1", "l2", "computed", "collapsed"],
        redis: float = 0.0,
        queue: float = 0.0,
        model: float = 0.0,
        local: bool = False,
    ) -> None:
        ask = self.ask(number)
        ask.allowance.left -= redis
        ask.local = local
        entry = Entry(b"", 1, 1)
        self.economics.observe(ask, Answer(ask.key, entry, source, queue_seconds=queue, model_seconds=model))

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
    books.economics.add_hits("echo", 10)
    assert books.samples()["predict_cache_saved_seconds_total", ""] == 20


def test_waiting_for_redis_is_the_cost_of_hits_and_misses_alike() -> None:
    books = Books()
    books.answer(1, "l2", redis=0.25)
    books.answer(2, "computed", redis=0.5, model=3.0)
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


# The census


async def test_the_census_knows_different_questions_from_repeated_ones(l2: RedisCache) -> None:
    books = Books(l2)
    for number in range(1000):
        books.answer(number, "computed")
    for number in range(1000):
        books.answer(number, "l2")
    books.economics.add_hits("echo", 2000)
    report = await books.report()
    assert (report["asked"], report["hits"], report["hit_rate"]) == (4000, 3000, 0.75)
    assert report["distinct"] == pytest.approx(1000, rel=0.05)
    assert report["best_hit_rate"] == pytest.approx(0.75, abs=0.02)
    again = await books.report()
    assert (again["asked"], again["distinct"]) == (4000, report["distinct"])


async def test_the_census_is_that_of_all_workers(l2: RedisCache) -> None:
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
    assert await l2.count("echo", [key(1)], 5, 4) == Census(5, 4, 1)
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
        census = await l2.count("echo", [key(2)], 2, 1)
        assert census in (Census(2, 1, 1), Census(census.asked, census.hits, 2))
        assert l2.state == "up"
        client.delete(HLL, COUNTS)


async def test_an_empty_census_makes_its_keys_so_that_questions_make_none(
    l2: RedisCache, redis_server: RedisServer
) -> None:
    books = Books(l2)
    await books.economics.census("echo")
    before = redis_server.client.dbsize()
    for number in range(1200):  # more than go into one command
        books.answer(number, "computed")
    report = await books.report()
    assert (report["asked"], redis_server.client.dbsize()) == (1200, before)
    assert report["distinct"] == pytest.approx(1200, rel=0.05)


async def test_what_redis_does_not_take_is_forgotten_as_a_whole(l2: RedisCache, redis_server: RedisServer) -> None:
    books = Books(l2)
    books.answer(1, "computed")
    l2._node.breaker.pause_writes()
    assert await books.economics.census("echo") is None
    assert (books.account.asked, books.account.keys) == (0, set())


async def test_what_is_counted_during_a_round_trip_goes_with_the_next(l2: RedisCache) -> None:
    books = Books(l2)
    books.answer(1, "computed")
    under_way = asyncio.create_task(books.economics.census("echo"))
    await asyncio.sleep(0)
    books.answer(2, "computed")
    assert await under_way == Census(1, 0, 1)
    assert await books.economics.census("echo") == Census(2, 0, 2)


# Passing by L2


def window_of(books: Books, lookups: int, found: int, redis: float, wait: float) -> None:
    for number in range(lookups):
        if number < found:
            books.answer(number, "l2", redis=redis)
        else:
            books.answer(number, "computed", redis=redis, queue=wait / 2, model=wait / 2)
    books.account.judge()


@pytest.mark.parametrize(
    ("found", "redis", "wait", "bypassed"),
    [
        (50, 0.001, 0.01, False),
        (50, 0.001, 0.001, True),
        (0, 0.001, 10.0, True),
        (5, 0.001, 0.021, False),
        (5, 0.001, 0.019, True),
    ],
)
def test_l2_pays_if_its_hits_save_more_waiting_than_all_look_ups_cost(
    found: int, redis: float, wait: float, bypassed: bool
) -> None:
    books = Books()
    window_of(books, 100, found, redis, wait)
    assert books.account.bypassed == bypassed


def test_a_few_look_ups_decide_nothing_until_they_are_enough() -> None:
    books = Books()
    window_of(books, LEAST_LOOKUPS - 1, 0, 1.0, 0.001)
    assert not books.account.bypassed
    window_of(books, 1, 0, 1.0, 0.001)
    assert books.account.bypassed


def test_while_bypassed_one_question_in_a_hundred_still_asks_always_the_same_ones() -> None:
    books = Books(bypass=True)
    assert not any(books.economics.bypasses(books.ask(number)) for number in range(100))
    books.account.bypassed = True
    asking = [number for number in range(20_000) if not books.economics.bypasses(books.ask(number))]
    assert len(asking) == pytest.approx(20_000 / STILL_ASKED, rel=0.3)
    assert not any(books.economics.bypasses(books.ask(number)) for number in asking)


def test_a_question_that_only_a_cache_can_answer_passes_by_none() -> None:
    books = Books(bypass=True)
    books.account.bypassed = True
    assert not any(books.economics.bypasses(books.ask(number, digest_only=True)) for number in range(1000))


def test_computations_that_passed_by_are_no_look_ups_and_tell_what_computing_costs() -> None:
    books = Books(bypass=True)
    for number in range(1000):
        books.answer(number, "computed", model=0.01, local=True)
    for number in range(LEAST_LOOKUPS):
        books.answer(number, "l2", redis=0.005)
    books.account.bypassed = True
    books.account.judge()
    assert not books.account.bypassed


@pytest.mark.parametrize("bypass", [True, False])
async def test_windows_are_judged_when_they_end_and_only_if_asked_for(bypass: bool) -> None:
    books = Books(bypass=bypass)
    ticks: asyncio.Queue[float] = asyncio.Queue()
    go_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        ticks.put_nowait(seconds)
        await go_on.wait()
        go_on.clear()

    books.economics._sleep = sleep
    running = asyncio.create_task(books.economics.run())
    await ticks.get()
    for number in range(100):
        books.answer(number, "computed", redis=0.01, model=0.001)
    books.clock.now += WINDOW_SECONDS - 0.5
    go_on.set()
    await ticks.get()
    assert not books.account.bypassed
    books.clock.now += 0.5
    go_on.set()
    await ticks.get()
    assert books.account.bypassed == bypass
    assert books.samples().get(("predict_l2_bypassed", "")) == (1 if bypass else None)
    running.cancel()
    await asyncio.wait([running])


class House:
    """A pipeline with an L2, and a predictor that counts."""

    def __init__(self, l2: RedisCache, stack: AsyncExitStack) -> None:
        self.books = Books(l2, bypass=True)
        self.predictor = EchoPredictor()
        settings = load_settings({})
        self.l1 = MemoryCache(10**7, 10_000)
        self.pipeline = Pipeline(
            settings,
            self.l1,
            l2,
            self.books.metrics,
            observe=self.books.economics.observe,
            bypasses=self.books.economics.bypasses,
        )
        batcher = Batcher(self.predictor.predict, max_batch_size=64, max_queue_size=1024)
        self.model = Model("echo", MANIFEST, self.predictor, batcher, leased=True)
        stack.push_async_callback(batcher.close)
        stack.push_async_callback(self.pipeline.aclose)

    async def ask(self, x: float, wants: Wants = PLAIN) -> Answer:
        return await self.pipeline.answer(self.model, question(x), wants)


@pytest.fixture
async def house(l2: RedisCache) -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        yield House(l2, stack)


async def test_while_bypassed_l1_admits_at_once_and_redis_hears_of_one_question_in_a_hundred(
    house: House, redis_server: RedisServer
) -> None:
    house.books.account.bypassed = True
    first = [await house.ask(x) for x in range(500)]
    assert {answer.source for answer in first} == {"computed"}
    assert all(answer.stored and not answer.bypassed for answer in first)
    stored = {name.split(b"{")[1].split(b"}")[0].decode() for name in redis_server.entries()}
    assert stored == {answer.key for answer in first if answer.key not in house.l1._entries}
    assert 0 < len(stored) < 500 * 3 / STILL_ASKED
    second = [await house.ask(x) for x in range(500)]
    assert {answer.key for answer in second if answer.source == "l2"} == stored
    assert {answer.source for answer in second} == {"l1", "l2"}
    assert len(house.predictor.computed) == 500


async def test_what_still_asks_finds_what_it_stored_so_that_l2_is_seen_to_pay_again(house: House) -> None:
    house.books.account.bypassed = True
    chance = random.Random(0)
    asked = [question(chance.random()) for _ in range(4000)]
    for _ in range(2):
        for start in range(0, len(asked), 200):
            await house.pipeline.answer_many(house.model, asked[start : start + 200])
        house.l1.clear()
    window = house.books.account.window
    assert window.lookups >= LEAST_LOOKUPS
    assert window.found == window.lookups / 2


async def test_an_answer_that_is_computed_anew_reaches_redis_all_the_same(
    house: House, redis_server: RedisServer
) -> None:
    house.books.account.bypassed = True
    for x in range(10):
        assert (await house.ask(x, Wants(fresh=True))).stored
    assert len(redis_server.entries()) == 10


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
        assert economics["bypassed"] is False
        assert audit == {"share": 1.0, "audited": 5, "mismatches": 0}
        assert server.metric("predict_distinct_questions", model="iris") == 1
        assert server.metric("predict_best_hit_ratio", model="iris") == pytest.approx(5 / 6)


async def test_a_worker_that_ends_leaves_no_task(iris_models: Any) -> None:
    before = asyncio.all_tasks()
    async with open_runtime(load_settings({"PREDICT_MODELS_DIR": str(iris_models)})):
        assert len(asyncio.all_tasks()) > len(before)
    assert asyncio.all_tasks() == before


async def test_a_census_of_a_redis_that_is_down_says_so(l2: RedisCache) -> None:
    l2._node.breaker.failed()
    l2._node.breaker.failed()
    l2._node.breaker.failed()
    with pytest.raises(StoreUnavailable):
        await l2.count("echo", [], 0, 0)
