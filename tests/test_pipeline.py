"""The data path without Redis: what is computed, when, and for whom."""

from __future__ import annotations

import asyncio
import math
import struct
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar, cast

import numpy as np
import pytest

from service.audit import MAX_WAITING, Auditor, Countdown
from service.batches import ROWS_AT_ONCE, BatchPipeline
from service.cache.entry import Accepts, Entry, anything
from service.cache.generations import VALID_SECONDS
from service.cache.lease import Compute, Resolved
from service.cache.memory import MemoryCache
from service.cache.redis.auto_pipeline import DeadlineBudget
from service.cache.redis.l2 import NoRedis
from service.config import Settings, load_settings
from service.errors import DeadlineExceeded, InvalidInput, NotCached, OnlyIfCached, Overloaded, StoreUnavailable
from service.inference.batcher import Batcher
from service.inference.manifest import Manifest
from service.inference.predictor import Prediction, Question, pack, unpack
from service.lookup import DEFAULT, Answer, BatchAnswer, BatchLookup, CacheDirectives, Model
from service.metrics import Metrics
from service.observer import Account, AnswerObserver, Economics
from tests.support.process import becomes

pytestmark = pytest.mark.anyio

MANIFEST = Manifest.model_validate(
    {
        "name": "echo",
        "kind": "tabular",
        "weights": {"file": "0" * 64, "sha256": "0" * 64},
        "features": [{"name": "x"}],
        "classes": [{"value": "0", "label": "zero"}],
        "cost_seconds": 1.0,
        "example": {"inputs": {"x": 0}, "golden": [0.0]},
        "versions": {},
    }
)


def question(x: float, identity: bytes | None = None, digest_only: bool = False) -> Question:
    packed = struct.pack("!d", x)
    return Question(identity or packed, None if digest_only else packed)


class EchoPredictor:
    """Answers each number with itself, counts, and waits for its gate while that is closed."""

    fingerprint = bytes(32)
    key_kind = "exact"
    parameters: ClassVar[dict[str, Any]] = {}
    rows_on_loop = 0

    def __init__(self) -> None:
        self.computed: list[float] = []
        self.gate = threading.Event()
        self.gate.set()

    def parse(self, params: object, body: bytes, content_type: str | None) -> Question:
        raise NotImplementedError

    def predict(self, batch: Sequence[bytes]) -> list[Prediction | Exception]:
        self.gate.wait(10)
        values = [struct.unpack("!d", payload)[0] for payload in batch]
        self.computed += values
        return [InvalidInput("poison") if x < 0 else pack(np.array([x])) for x in values]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class House:
    """A pipeline with one model, on a clock that only tests move."""

    def __init__(self, settings: Settings) -> None:
        self.clock = Clock()
        self.predictor = EchoPredictor()
        self.metrics = Metrics()
        l1 = MemoryCache(settings.l1_max_bytes, settings.l1_max_entries, self.clock)
        l2 = NoRedis(lambda: None)
        economics = Economics({"echo": Account(1.0)}, l2, self.metrics)
        observer = AnswerObserver(self.metrics, Auditor(Countdown(0), l1, l2, self.metrics), economics)
        self.pipeline = BatchPipeline(settings, l1, l2, observer, self.clock, lambda: 0.0)
        self.batcher = Batcher(
            self.predictor,
            max_batch_size=settings.max_batch_size,
            max_queue_size=settings.max_queue_size,
            clock=self.clock,
        )
        self.model = Model("echo", MANIFEST, self.predictor, self.batcher, leased=True)

    async def ask(self, x: float, directives: CacheDirectives = DEFAULT, **more: Any) -> Answer:
        return await self.pipeline.answer(self.model, question(x, **more), directives)

    def allow(self, seconds: float) -> None:
        """From now on so much time for each request."""
        self.pipeline.settings = self.pipeline.settings.model_copy(update={"deadline_seconds": seconds})

    def count(self, result: str) -> float:
        self.metrics.flush()
        return self.metrics.cache_results.labels("echo", result)._value.get()

    async def dispatched(self) -> None:
        """Until the model's thread has taken all that is queued."""
        await becomes(lambda: self.batcher._computing and not self.batcher.queued)


class Shared(NoRedis):
    """A Redis that answers when its gate is open. It counts. ``seconds``: what a round trip costs its budget."""

    state = "up"
    seconds = 0.01

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.gate, self.looks, self.kept = asyncio.Event(), 0, {}
        self.gate.set()

    async def get(self, key: str, budget: DeadlineBudget | None = None, accepts: Accepts = anything) -> Any:
        self.looks += 1
        budget = budget or DeadlineBudget()
        try:
            async with asyncio.timeout(budget.left):
                await self.gate.wait()
        except TimeoutError:
            raise StoreUnavailable from None
        budget.left -= self.seconds
        return self.kept.get(key)

    async def put(
        self,
        key: str,
        entry: Entry,
        *,
        overwrite: bool = False,
        budget: DeadlineBudget | None = None,
        accepts: Accepts = anything,
    ) -> Entry:
        (budget or DeadlineBudget()).left -= self.seconds
        self.kept[key] = entry
        return entry

    async def get_many(self, keys: Sequence[str], budget: DeadlineBudget, _: Accepts) -> dict[str, Entry]:
        found = [await self.get(key, budget) for key in keys[:1]]  # they share one round trip
        return {key: self.kept[key] for key in keys if key in self.kept} if found else {}

    async def put_many(self, entries: Mapping[str, Entry], *, budget: DeadlineBudget, **_: Any) -> Mapping[str, Entry]:
        budget.left -= self.seconds
        self.kept |= entries
        return entries


class Leasing(Shared):
    """A Redis whose every claim leads, or finds what is stored."""

    claims = 0

    async def compute_once(self, key: str, compute: Compute, budget: DeadlineBudget, accepts: Accepts) -> Resolved:
        self.claims += 1
        budget.left -= self.seconds
        if (entry := self.kept.get(key)) is not None:
            return Resolved(entry, "stored")
        return Resolved(await self.put(key, await compute(), budget=budget), "computed")


class Unreachable(Shared):
    """A Redis that has not told the model's generation."""

    state = "down"

    def generation(self, model: str) -> bytes | None:  # type: ignore[override]
        return None


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[House]:
    house = House(settings)
    try:
        yield house
    finally:
        house.predictor.gate.set()
        await house.pipeline.aclose()
        await house.batcher.close()


@pytest.fixture
async def house() -> AsyncIterator[House]:
    few = {"PREDICT_TTL_SECONDS": "100", "PREDICT_MAX_QUEUE_SIZE": "4", "PREDICT_MAX_BATCH_SIZE": "4"}
    async with opened(load_settings(few)) as house:
        yield house


@pytest.fixture
async def shared(house: House) -> Shared:
    """The L2 of the house, which has an answer that L1 does not have, and a model without a lease."""
    house.pipeline.l2 = shared = Shared()
    house.model = Model("echo", MANIFEST, house.predictor, house.batcher, leased=False)
    await house.ask(5)
    shared.looks = 0
    shared.gate.clear()
    return shared


async def test_the_second_asker_is_answered_from_memory(house: House) -> None:
    assert (await house.ask(5)).source == "computed"
    house.clock.now += 40
    again = await house.ask(5)
    assert (again.source, again.entry.age(house.clock.now), again.entry.left(house.clock.now)) == ("l1", 40, 60)
    assert unpack(again.entry.value).tolist() == [5]
    assert house.predictor.computed == [5]


async def test_an_expired_answer_is_computed_anew(house: House) -> None:
    await house.ask(5)
    house.clock.now += 100
    assert (await house.ask(5)).source == "computed"
    assert house.predictor.computed == [5, 5]


async def test_a_hundred_simultaneous_askers_cost_one_computation(house: House) -> None:
    answers = await asyncio.gather(*(house.ask(5) for _ in range(100)))
    assert house.predictor.computed == [5]
    assert sorted(answer.source for answer in answers) == ["collapsed"] * 99 + ["computed"]
    assert (house.count("computed"), house.count("collapsed")) == (1, 99)


async def test_a_hundred_simultaneous_askers_cost_one_look_into_redis(house: House, shared: Shared) -> None:
    askers = [asyncio.create_task(house.ask(5)) for _ in range(100)]
    await asyncio.sleep(0)
    shared.gate.set()
    assert {answer.source for answer in await asyncio.gather(*askers)} == {"l2"}
    assert (shared.looks, house.count("l2"), house.predictor.computed) == (1, 100, [5])


async def test_who_looks_into_redis_for_all_may_leave(house: House, shared: Shared) -> None:
    first, *others = [asyncio.create_task(house.ask(5)) for _ in range(10)]
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    shared.gate.set()
    assert {answer.source for answer in await asyncio.gather(*others)} == {"l2"}
    assert (shared.looks, house.count("failed"), house.predictor.computed) == (2, 0, [5])
    assert house.count("cancelled") == 1


async def test_the_deadline_holds_for_who_looks_into_redis_and_who_waits_for_it(house: House, shared: Shared) -> None:
    settings = load_settings({"PREDICT_DEADLINE_SECONDS": "0.1"})
    hurried = BatchPipeline(settings, MemoryCache(0, 1), shared, house.pipeline.observer, house.clock)
    asked = [hurried.answer(house.model, question(5)) for _ in range(3)]
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeadlineExceeded] * 3
    await hurried.aclose()


async def test_a_client_that_leaves_ends_nobody_elses_answer(house: House) -> None:
    house.predictor.gate.clear()
    first, second = asyncio.create_task(house.ask(5)), asyncio.create_task(house.ask(5))
    await house.dispatched()
    first.cancel()
    house.predictor.gate.set()
    assert (await second).source == "collapsed"
    assert house.predictor.computed == [5]


async def test_what_was_dispatched_is_finished_and_kept_though_its_only_client_left(house: House) -> None:
    house.predictor.gate.clear()
    alone = asyncio.create_task(house.ask(5))
    await house.dispatched()
    alone.cancel()
    house.predictor.gate.set()
    joined = await house.ask(5)
    assert joined.source in ("collapsed", "l1")
    assert house.predictor.computed == [5]


async def test_what_nobody_waits_for_any_more_is_never_dispatched(house: House) -> None:
    house.predictor.gate.clear()
    busy = asyncio.create_task(house.ask(1))
    await house.dispatched()
    left = asyncio.create_task(house.ask(5))
    await becomes(lambda: house.batcher.queued)
    left.cancel()
    await asyncio.wait([left])
    house.predictor.gate.set()
    await busy
    assert (await house.ask(2)).source == "computed"
    assert house.predictor.computed == [1, 2]


async def test_a_deadline_that_passes_in_the_queue_means_no_computation(house: House) -> None:
    house.predictor.gate.clear()
    busy = asyncio.create_task(house.ask(1))
    await house.dispatched()
    house.allow(0.05)
    for directives in (DEFAULT, CacheDirectives(store=False)):
        with pytest.raises(DeadlineExceeded):
            await house.ask(5, directives)
    house.predictor.gate.set()
    await busy
    await becomes(lambda: house.batcher.idle)
    assert house.predictor.computed == [1]


async def test_who_joins_late_is_answered_though_the_time_of_who_came_first_is_over(house: House) -> None:
    house.predictor.gate.clear()
    busy = asyncio.create_task(house.ask(1))
    await house.dispatched()
    longest = house.pipeline.settings.deadline_seconds
    house.allow(0.05)
    first = asyncio.create_task(house.ask(5))
    await becomes(lambda: house.batcher.queued)
    house.allow(longest)
    joined = asyncio.create_task(house.ask(5))
    with pytest.raises(DeadlineExceeded):
        await first
    house.clock.now += 1
    house.predictor.gate.set()
    assert (await joined).source == "collapsed"
    await busy


async def test_no_cache_computes_overwrites_and_does_not_share_with_ordinary_askers(house: House) -> None:
    await house.ask(5)
    house.clock.now += 40
    answers = await asyncio.gather(
        house.ask(5, CacheDirectives(fresh=True)), house.ask(5, CacheDirectives(fresh=True)), house.ask(5)
    )
    assert [answer.source for answer in answers] == ["computed", "collapsed", "l1"]
    assert answers[0].fresh and answers[1].fresh
    assert (await house.ask(5)).entry.age(house.clock.now) == 0
    assert house.predictor.computed == [5, 5]


async def test_no_store_neither_reads_nor_writes(house: House) -> None:
    await house.ask(5)
    first, second = await house.ask(5, CacheDirectives(store=False)), await house.ask(6, CacheDirectives(store=False))
    assert (first.source, first.stored, second.stored) == ("computed", False, False)
    assert (await house.ask(6)).source == "computed"
    assert house.predictor.computed == [5, 5, 6, 6]


async def test_no_store_waits_no_longer_than_anybody() -> None:
    async with opened(load_settings({"PREDICT_DEADLINE_SECONDS": "0.05"})) as house:
        house.predictor.gate.clear()
        for directives in (CacheDirectives(), CacheDirectives(fresh=True), CacheDirectives(store=False)):
            with pytest.raises(DeadlineExceeded):
                await house.ask(5, directives)


async def test_only_if_cached_never_computes(house: House) -> None:
    with pytest.raises(OnlyIfCached):
        await house.ask(5, CacheDirectives(compute=False))
    await house.ask(5)
    assert (await house.ask(5, CacheDirectives(compute=False))).source == "l1"
    with pytest.raises(OnlyIfCached):
        await house.ask(5, CacheDirectives(compute=False, fresh=True))
    assert house.predictor.computed == [5]


async def test_a_digest_is_answered_from_the_cache_or_not_at_all(house: House) -> None:
    with pytest.raises(NotCached) as refused:
        await house.ask(5, digest_only=True)
    assert refused.value.status == 404
    await house.ask(5)
    assert (await house.ask(5, digest_only=True)).source == "l1"
    assert house.predictor.computed == [5]
    assert house.count("not_cached") == 1


@pytest.mark.parametrize(
    ("directives", "source"),
    [
        (CacheDirectives(max_age=41), "l1"),
        (CacheDirectives(max_age=39), "computed"),
        (CacheDirectives(min_fresh=59), "l1"),
        (CacheDirectives(min_fresh=61), "computed"),
    ],
)
async def test_an_answer_that_is_too_old_for_the_asker_is_computed_anew(
    house: House, directives: CacheDirectives, source: str
) -> None:
    await house.ask(5)
    house.clock.now += 40
    assert (await house.ask(5, directives)).source == source


async def test_a_min_fresh_beyond_any_lifetime_computes_once_not_twice(house: House) -> None:
    assert (await house.ask(5, CacheDirectives(min_fresh=1e9))).source == "computed"
    assert house.predictor.computed == [5]


async def test_a_failure_reaches_all_who_wait_and_is_not_kept(house: House) -> None:
    outcomes = await asyncio.gather(*(house.ask(-1) for _ in range(3)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InvalidInput] * 3
    with pytest.raises(InvalidInput):
        await house.ask(-1)
    assert house.predictor.computed == [-1, -1]


async def test_a_batch_folds_duplicates_and_keeps_a_bad_row_in_its_place(house: House) -> None:
    await house.ask(1)
    rows = [question(1), question(2), InvalidInput("bad"), question(2), question(-1)]
    batch = await house.pipeline.answer_many(house.model, rows)
    assert [type(row) for row in batch.rows] == [Entry, Entry, InvalidInput, Entry, InvalidInput]
    assert (batch.hits, batch.computed) == (1, 1)
    assert batch.rows[1] is batch.rows[3]
    assert sorted(house.predictor.computed) == [-1, 1, 2]


async def test_a_digest_beside_its_input_in_one_batch_is_answered_with_it(house: House) -> None:
    rows = [question(1, digest_only=True), question(1), question(1, digest_only=True)]
    batch = await house.pipeline.answer_many(house.model, rows)
    assert [type(row) for row in batch.rows] == [Entry] * 3
    assert house.predictor.computed == [1]


async def test_a_batch_is_admitted_to_the_queue_whole_or_not_at_all(house: House) -> None:
    house.predictor.gate.clear()
    busy = asyncio.create_task(house.ask(0))
    await house.dispatched()
    with pytest.raises(Overloaded):
        await house.pipeline.answer_many(house.model, [question(x) for x in range(1, 6)])
    fits = asyncio.create_task(house.pipeline.answer_many(house.model, [question(x) for x in range(1, 5)]))
    await becomes(lambda: house.batcher.queued == 4)
    house.predictor.gate.set()
    assert [type(row) for row in (await fits).rows] == [Entry] * 4
    await busy
    assert sorted(house.predictor.computed) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("l1_bytes", [0, 10**6])
async def test_so_is_a_batch_whose_stored_answers_are_too_old_for_it(house: House, l1_bytes: int) -> None:
    house.pipeline.l1, house.pipeline.l2 = MemoryCache(l1_bytes, 100, house.clock), Shared()
    house.model = Model("echo", MANIFEST, house.predictor, house.batcher, leased=False)
    for x in range(5):
        await house.ask(x)
    house.clock.now += 40
    house.predictor.gate.clear()
    busy = asyncio.create_task(house.ask(9))
    await house.dispatched()
    house.allow(0.1)
    rows = [question(x) for x in range(5)]
    with pytest.raises(Overloaded):
        await house.pipeline.answer_many(house.model, rows, CacheDirectives(max_age=39))
    assert not house.batcher.queued
    house.predictor.gate.set()
    await busy


async def test_what_a_batch_has_in_the_cache_needs_no_place_in_the_queue(house: House) -> None:
    for x in range(8):
        await house.ask(x)
    batch = await house.pipeline.answer_many(house.model, [question(x) for x in range(8)])
    assert (batch.hits, batch.computed) == (8, 0)


@pytest.fixture
async def on_loop() -> AsyncIterator[House]:
    """A house whose model computes on the event loop, without a lease."""
    async with opened(load_settings({"PREDICT_MAX_BATCH_SIZE": "4"})) as house:
        await house.batcher.close()
        house.predictor.rows_on_loop = 4
        house.batcher = Batcher(house.predictor, max_batch_size=4, max_queue_size=4, clock=house.clock)
        house.model = Model("echo", MANIFEST, house.predictor, house.batcher, leased=False)
        yield house


@pytest.mark.parametrize("with_redis", [False, True])
async def test_batches_and_all_who_ask_meanwhile_cost_one_computation_of_each_row(
    on_loop: House, with_redis: bool
) -> None:
    if with_redis:
        on_loop.pipeline.l2 = shared = Shared()
        await on_loop.ask(4)
        shared.gate.clear()
        asyncio.get_running_loop().call_later(0.05, shared.gate.set)
    many = on_loop.pipeline.answer_many
    leaves = asyncio.create_task(many(on_loop.model, [question(x) for x in range(600)]))
    others = [
        asyncio.create_task(many(on_loop.model, [question(x) for x in range(500, 700)])),
        *(asyncio.create_task(many(on_loop.model, [question(x)])) for x in (4, 9, 650)),
        *(asyncio.create_task(on_loop.ask(x)) for x in (4, 9, 650)),
    ]
    await asyncio.sleep(0)
    leaves.cancel()
    for answer in await asyncio.gather(*others):
        rows = answer.rows if isinstance(answer, BatchAnswer) else [answer.entry]
        assert {type(row) for row in rows} == {Entry}
    asked = [*range(ROWS_AT_ONCE), *range(500, 700)]  # of the batch that left, what was under way and nothing more
    await becomes(lambda: len(on_loop.predictor.computed) == len(asked))
    assert sorted(on_loop.predictor.computed) == asked
    assert (
        {key: unpack(entry.value).tolist() for key, entry in shared.kept.items()}
        == {on_loop.pipeline.key(on_loop.model, question(x)): [x] for x in asked}
        if with_redis
        else True
    )


async def test_rows_that_redis_has_are_hits_of_a_batch(house: House, on_loop: House) -> None:
    for asked in (house, on_loop):
        asked.pipeline.l2 = Shared()
        model = Model("echo", MANIFEST, asked.predictor, asked.batcher, leased=False)
        await asked.pipeline.answer_many(model, [question(x) for x in range(3)])
        batch = await asked.pipeline.answer_many(model, [question(x) for x in (0, 1, 1, 2, 3)])
        assert (batch.hits, batch.computed) == (4, 1)


@pytest.mark.parametrize("l2", [NoRedis(lambda: None), Shared, Unreachable])
async def test_who_joins_a_batch_is_told_where_the_answer_is_kept(on_loop: House, l2: Any) -> None:
    on_loop.pipeline.l2 = shared = l2() if isinstance(l2, type) else l2
    batch = asyncio.create_task(on_loop.pipeline.answer_many(on_loop.model, [question(x) for x in range(9)]))
    await asyncio.sleep(0)
    joined = await on_loop.ask(5)
    assert (joined.source, joined.stored, joined.l2_down) == ("collapsed", True, isinstance(shared, Unreachable))
    await batch


async def test_who_asks_for_a_row_of_a_large_batch_waits_for_its_part_alone(on_loop: House) -> None:
    class StopsAfterOne(Shared):
        async def get_many(self, keys: Sequence[str], *more: Any) -> dict[str, Entry]:
            if self.looks:
                await asyncio.Event().wait()
            return await super().get_many(keys, *more)

    on_loop.pipeline.l2 = shared = StopsAfterOne()
    shared.gate.clear()
    batch = asyncio.create_task(on_loop.pipeline.answer_many(on_loop.model, [question(x) for x in range(600)]))
    await becomes(lambda: shared.looks)
    alone = asyncio.create_task(on_loop.ask(5))
    await asyncio.sleep(0)
    shared.gate.set()
    assert (await asyncio.wait_for(alone, 5)).source == "collapsed"
    assert not batch.done()
    batch.cancel()


async def test_where_new_questions_come_the_claim_looks_as_well_and_where_known_ones_come_the_look_is_enough(
    house: House,
) -> None:
    house.pipeline.l2 = shared = Leasing()
    seen = []
    for x in (1, 2, 3, 1, 2, 4, 5):
        answer = await house.ask(x)
        seen.append((answer.source, shared.looks, shared.claims))
    computed, found = "computed", "l2"
    assert seen[:3] == [(computed, 1, 1), (computed, 1, 2), (computed, 1, 3)]
    assert seen[3:] == [(found, 1, 4), (found, 2, 4), (computed, 3, 5), (computed, 3, 6)]
    assert (await house.ask(1)).source == "l1"  # by a claim or by a look, it was its second use
    shared.state = "read-only"  # then a claim would be refused, and what is stored not be seen
    assert ((await house.ask(3)).source, shared.looks, shared.claims) == (found, 4, 6)


@pytest.mark.parametrize("runs_on_loop", [True, False])
async def test_the_deadline_holds_for_all_rows_of_a_batch_together(
    house: House, on_loop: House, runs_on_loop: bool
) -> None:
    """And Redis, which has used it up, is not asked again, nor the queue for places."""
    settings, shared = load_settings({"PREDICT_DEADLINE_SECONDS": "0.1"}), Shared()
    asked = on_loop if runs_on_loop else house
    hurried = BatchPipeline(settings, MemoryCache(0, 1), shared, asked.pipeline.observer)
    shared.gate.clear()
    batch = await hurried.answer_many(asked.model, [question(x) for x in range(2000)])
    assert {type(row) for row in batch.rows} == {DeadlineExceeded}
    assert shared.looks <= 1  # none, where this machine takes longer than the deadline to begin
    await hurried.aclose()


async def test_what_a_request_waits_for_redis_is_counted_once(house: House, on_loop: House) -> None:
    """Of a batch too, whose rows share round trips: a look, a claim where there are leases, and a store."""
    for first, asked, leased, trips in ((0, on_loop, False, 4), (0, house, False, 4), (1000, house, True, 6)):
        asked.pipeline.l2, asked.batcher._max_queue_size = Leasing(), ROWS_AT_ONCE
        account = asked.pipeline.observer.economics.accounts["echo"]
        model = Model("echo", MANIFEST, asked.predictor, asked.batcher, leased)
        rows = [question(x) for x in range(first, first + 2 * ROWS_AT_ONCE)]
        for some, waited in ((rows, trips), (rows[:9], 1), (rows[:9], 0)):
            account.new_spent = 0.0
            await asked.pipeline.answer_many(model, some)
            assert account.new_spent == pytest.approx(waited * Shared.seconds)
        for x, waited in ((rows[-1], 1), (question(first + 0.5), trips / 2)):
            account.new_spent = 0.0
            await asked.pipeline.answer(model, x)
            assert account.new_spent == pytest.approx(waited * Shared.seconds)


async def test_a_row_is_counted_once_as_what_its_client_got(on_loop: House) -> None:
    """And not as what landed when its client had left, or had been told that it is late."""

    class StoresLater(Shared):
        async def put_many(self, entries: Mapping[str, Entry], **more: Any) -> Mapping[str, Entry]:
            await later.wait()
            return await super().put_many(entries, **more)

    later, rows = asyncio.Event(), [question(x) for x in range(4)]
    on_loop.pipeline.l2 = shared = StoresLater()
    shared.kept = {on_loop.pipeline.key(on_loop.model, rows[0]): Entry(pack(np.array([0.0])), 100, 2000)}
    left = asyncio.create_task(on_loop.pipeline.answer_many(on_loop.model, rows[:2]))
    await becomes(lambda: on_loop.predictor.computed)
    left.cancel()
    on_loop.allow(0.05)
    late = await on_loop.pipeline.answer_many(on_loop.model, rows[2:])
    assert {type(row) for row in late.rows} == {DeadlineExceeded}
    later.set()
    await becomes(lambda: not on_loop.pipeline._flights.under_way)
    counts = {result: on_loop.count(result) for result in ("l1", "l2", "computed", "collapsed", "cancelled", "failed")}
    assert counts == {"l1": 0, "l2": 0, "computed": 0, "collapsed": 0, "cancelled": 2, "failed": 2}


async def test_to_find_the_hits_to_audit_compares_not_each_row_of_a_batch_with_each(house: House) -> None:
    class Key(str):
        compared = 0
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            Key.compared += 1
            return str.__eq__(self, other)

    rows = [question(x) for x in range(1000)]
    keys = cast("list[str]", [Key(x) for x in range(len(rows))])
    for x, key in enumerate(keys):
        house.pipeline.l1.put(Key(key), Entry(b"%d" % x, 100, house.clock() + 100))
    auditor = house.pipeline.observer.auditor
    auditor.countdown = Countdown(1)
    Key.compared = 0
    house.pipeline._in_l1_many(
        BatchLookup(house.model, rows, DEFAULT, b"", None, math.inf), keys, 0, lambda found: found
    )
    assert len(auditor._waiting) == MAX_WAITING
    assert all(sample.payload == rows[int(sample.value)].payload for sample in auditor._waiting)
    assert Key.compared <= (10 + MAX_WAITING) * len(keys) / 2


async def test_a_row_that_fails_on_the_loop_fails_alone_and_is_not_kept(on_loop: House) -> None:
    for _ in range(2):
        batch = await on_loop.pipeline.answer_many(on_loop.model, [question(x) for x in (1, -1, 2)])
        assert [type(row) for row in batch.rows] == [Entry, InvalidInput, Entry]
    assert [x for x in on_loop.predictor.computed if x > 0] == [1, 2]


async def test_no_store_computes_a_batch_and_keeps_nothing(on_loop: House) -> None:
    for _ in range(2):
        rows = [question(x) for x in (1, 2, 1)]
        batch = await on_loop.pipeline.answer_many(on_loop.model, rows, CacheDirectives(store=False))
        assert (len(batch.rows), batch.hits, batch.computed) == (3, 0, 2)
    assert (on_loop.predictor.computed, len(on_loop.pipeline.l1)) == ([1, 2, 1, 2], 0)


async def test_an_answer_that_no_purge_can_reach_stays_for_no_longer_than_one_after_a_purge() -> None:
    async with opened(load_settings({})) as house:
        house.pipeline.l2 = Unreachable()
        sources = []
        for seconds in (0, 0, VALID_SECONDS - 0.1, 0.1, 0):
            house.clock.now += seconds
            sources.append((await house.ask(1)).source)
        assert sources == ["computed", "l1", "l1", "computed", "l1"]
