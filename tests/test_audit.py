"""The self-audit: real models, a real Redis, entries and cells that are wrong on purpose, thousands that are right."""

from __future__ import annotations

import asyncio
import base64
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from uvicorn.server import ServerState

from service.audit import MAX_WAITING, Auditor, Countdown
from service.cache.entry import Entry, seal
from service.cache.keys import RedisKeys
from service.cache.memory import MemoryCache
from service.cache.redis.auto_pipeline import DeadlineBudget
from service.cache.redis.l2 import NoRedis
from service.config import load_settings
from service.inference.batcher import Batcher
from service.inference.predictor import Prediction, Question, pack, unpack
from service.inference.tabular.cells import Cells
from service.lookup import Answer, Lookup, Model
from service.metrics import Metrics
from service.observer import AnswerObserver
from service.runtime import Runtime, open_runtime
from service.server.hit_table import HitCounter, HitTable
from tests.support.client import Connection
from tests.support.patience import give_redis_time
from tests.support.probe import register
from tests.support.process import becomes
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import running_server
from tests.support.untrained import write_untrained
from tests.test_pipeline import MANIFEST

pytestmark = pytest.mark.anyio

NAMES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
SETOSA, VIRGINICA = (5.1, 3.5, 1.4, 0.2), (6.5, 3.0, 5.5, 2.0)
Open = Callable[..., AbstractAsyncContextManager[Runtime]]


@pytest.fixture(scope="module")
def images(models: Path) -> list[bytes]:
    return write_untrained(models)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``forest``, whose keys are cells, and ``linear``, whose last bits would depend on the batch."""
    root = tmp_path_factory.mktemp("audited") / "models"
    x, y = load_iris(return_X_y=True)
    for name, model in (
        ("forest", RandomForestClassifier(10, random_state=0)),
        ("linear", LogisticRegression(max_iter=1000)),
    ):
        register(model.fit(x, y), root, name, features=",".join(NAMES), classes="setosa,versicolor,virginica")
    return root


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def open_service(models: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Open:
    """A runtime with real models and an empty Redis that has time on a busy machine."""
    give_redis_time(monkeypatch.setattr)
    redis_server.client.flushall()

    @asynccontextmanager
    async def opened(share: float = 1) -> AsyncIterator[Runtime]:
        environ = {"REDIS_URL": redis_server.url, "MODELS_DIR": str(models), "AUDIT_SHARE": str(share)}
        async with open_runtime(
            load_settings({f"PREDICT_{name}": value for name, value in environ.items()})
        ) as runtime:
            await becomes(lambda: runtime.pipeline.l2.generation("forest") is not None)
            yield runtime

    return opened


def counted(runtime: Runtime, model: str) -> tuple[float, float]:
    """Audits and mismatches so far."""
    runtime.metrics.flush()
    samples = runtime.metrics.samples(model)
    return samples["predict_cache_audits_total", ""], samples["predict_cache_mismatch_total", ""]


def question(model: Model, row: Sequence[float]) -> Question:
    return model.predictor.parse(dict(zip(NAMES, row, strict=True)), b"", "application/json")


async def ask(runtime: Runtime, model: str, row: Sequence[float]) -> Answer:
    served = runtime.model(model)
    return await runtime.pipeline.answer(served, question(served, row))


async def audited(runtime: Runtime, model: str, count: int) -> None:
    await becomes(lambda: counted(runtime, model)[0] >= count)


@pytest.mark.parametrize("model", ["forest", "linear"])
async def test_a_wrong_entry_that_is_rightly_signed_is_found_told_of_and_gone_from_both_caches(
    open_service: Open, redis_server: RedisServer, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    async with open_service() as runtime:
        served = runtime.model(model)
        key = runtime.pipeline.key(served, question(served, SETOSA))
        wrong = pack(np.array([2.0, 0.1, 0.2, 0.7][served.manifest.output.probabilities_from == 0 :]))
        secret = runtime.settings.cache_secret.get_secret_value().encode()
        redis_server.client.set(RedisKeys("p1").entry(key), seal(key, wrong, 60_000, secret), px=60_000)
        given = await ask(runtime, model, SETOSA)
        assert (given.source, given.entry.value) == ("l2", wrong)
        await becomes(lambda: counted(runtime, model) == (1, 1))
        await becomes(lambda: not redis_server.client.exists(RedisKeys("p1").entry(key)))
        assert runtime.pipeline.l1.get(key) is None
        right = await ask(runtime, model, SETOSA)
        assert right.source == "computed"
        assert served.manifest.best_class(unpack(right.entry.value).tolist()).value == "0"
        assert (await ask(runtime, model, SETOSA)).hit
        await becomes(lambda: counted(runtime, model) == (2, 1))
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    told = vars(record).keys() - vars(logging.makeLogRecord({})).keys() - {"message"}
    assert {name: vars(record)[name] for name in told} == {"model": model, "key": key}  # never the input
    assert record.getMessage() == "A cached answer is not what the model says."


async def test_a_wrong_cell_is_found_though_its_entry_is_what_the_model_said_to_another_input(
    open_service: Open, redis_server: RedisServer
) -> None:
    async with open_service() as runtime:
        model = runtime.model("forest")
        sound: Cells = model.predictor._cells  # type: ignore[attr-defined]
        model.predictor._cells = Cells([[]] * 4, sound.lowest, sound.highest)  # type: ignore[attr-defined]
        first = await ask(runtime, "forest", SETOSA)
        again = await ask(runtime, "forest", SETOSA)
        await becomes(lambda: counted(runtime, "forest") == (1, 0))
        other = await ask(runtime, "forest", VIRGINICA)
        assert (first.source, again.source, other.hit) == ("computed", "l2", True)
        assert other.entry.value == first.entry.value
        await becomes(lambda: counted(runtime, "forest") == (2, 1))
        await becomes(lambda: not redis_server.entries())
        assert runtime.pipeline.l1.get(other.key) is None


async def test_thousands_of_ordinary_questions_have_no_mismatch(open_service: Open) -> None:
    chance = np.random.default_rng(0)
    measured = load_iris().data
    async with open_service() as runtime:
        for model in ("forest", "linear"):
            served, hits = runtime.model(model), 0
            noisy = measured[chance.integers(150, size=400)] + chance.normal(0, 0.1, (400, 4)).round(2)
            rows = [question(served, row) for row in noisy.tolist()]
            for _ in range(60):  # each time no more than the backlog takes
                batch = [rows[index] for index in chance.choice(len(rows), 50, replace=False)]
                answered = await runtime.pipeline.answer_many(served, batch)
                keys = [runtime.pipeline.key(served, asked) for asked in batch]
                hits += len(set(keys)) - answered.computed
                hits += (await runtime.pipeline.answer(served, batch[0])).hit
                await audited(runtime, model, hits)
            assert counted(runtime, model) == (hits, 0)
            assert hits > 1500


async def test_images_may_differ_in_their_last_bits_and_no_further(
    open_service: Open, images: list[bytes], redis_server: RedisServer
) -> None:
    async with open_service() as runtime:
        model = runtime.model("digits")
        asked = [
            model.predictor.parse({"image": base64.b64encode(f).decode()}, b"", "application/json") for f in images
        ]
        first = await runtime.pipeline.answer(model, asked[0])
        assert (await runtime.pipeline.answer(model, asked[0])).hit
        await audited(runtime, "digits", 1)
        vector = unpack(first.entry.value)
        for tolerance, moved, mismatches in ((1e-5, 5e-6, 0), (1e-5, 1e-4, 1), (1e-3, 1e-4, 1)):
            model.predictor.tolerance = tolerance  # type: ignore[attr-defined]
            value = pack(vector + np.float32(moved))
            runtime.pipeline.l1.put(first.key, Entry(value, 60, runtime.clock() + 60))
            before, _ = counted(runtime, "digits")
            assert (await runtime.pipeline.answer(model, asked[0])).entry.value == value
            await becomes(lambda before=before: counted(runtime, "digits")[0] == before + 1)  # type: ignore[misc]
            assert counted(runtime, "digits")[1] == mismatches


async def test_one_hit_in_a_thousand_is_audited_and_the_first_not_before_the_thousandth(open_service: Open) -> None:
    async with open_service(share=0.001) as runtime:
        await ask(runtime, "forest", SETOSA)
        for _ in range(999):
            assert (await ask(runtime, "forest", SETOSA)).hit
        assert not runtime.observer.auditor._waiting
        assert counted(runtime, "forest") == (0, 0)
        await ask(runtime, "forest", SETOSA)
        await audited(runtime, "forest", 1)


async def test_hits_below_asgi_are_audited_too_and_all_are_counted_once(
    tmp_path: Path, models: Path, redis_server: RedisServer
) -> None:
    redis_server.client.flushall()
    settings = {"models_dir": models, "redis_url": redis_server.url, "default_model": "forest", "audit_share": 0.01}
    target = "/predict?" + "&".join(f"{name}={x}" for name, x in zip(NAMES, SETOSA, strict=True))
    with running_server(tmp_path, **settings) as server:
        async with await Connection.open(server.address) as connection:
            bodies = {(await connection.get(target)).body for _ in range(1000)}
        assert len(bodies) == 1
        # The first one hit in a hundred, the others at most twice as far apart.
        await becomes(lambda: server.metric("predict_cache_audits_total", model="forest") >= 5)
        assert server.metric("predict_cache_audits_total", model="forest") < 100
        assert server.metric("predict_cache_mismatch_total") == 0
        await becomes(lambda: server.metric("predict_cache_results_total", model="forest") == 1000)
        assert server.metric("predict_cache_results_total", model="forest", result="computed") == 1


# The countdown, and the hit path


@pytest.mark.parametrize("share", [1, 0.5, 0.3, 0.01])
def test_the_share_is_exact_in_the_long_run_whatever_chance_does(share: float) -> None:
    chance = np.random.default_rng(1)
    countdown = Countdown(share, chance.random)
    picked = sum(countdown.picks("key") for _ in range(100_000))
    assert picked == pytest.approx(100_000 * share, rel=0.05)
    assert share < 1 or picked == 100_000


def test_a_share_of_none_picks_none() -> None:
    countdown = Countdown(0)
    assert not any(countdown.picks("key") for _ in range(10_000))


def test_a_hit_that_is_owed_stays_so_until_it_is_picked_and_counts_once() -> None:
    countdown = Countdown(1 / 3, lambda: 0.5)
    assert [countdown.picks("key") for _ in range(6)] == [False, False, True, False, False, True]
    countdown.force_sample("owed")
    picked = [(key, countdown.picks(key)) for key in ("key", "owed", "owed", "key")]
    assert picked == [("key", False), ("owed", True), ("owed", False), ("key", True)]


@pytest.mark.parametrize("share", [1, 0.5, 0.03, 0])
def test_of_many_hits_those_are_picked_that_would_be_one_by_one(share: float) -> None:
    draw, sizes = np.random.default_rng(1), np.random.default_rng(2).integers(1, 300, 100)
    chance = draw.random(100_000).tolist()
    one_by_one, many = (Countdown(share, iter(chance).__next__) for _ in range(2))
    for size in sizes.tolist():
        keys = [str(place) for place in range(size)]
        if size % 7 == 0:
            one_by_one.force_sample("3")
            many.force_sample("3")
        assert many.picked(keys) == [place for place, key in enumerate(keys) if one_by_one.picks(key)]


async def test_a_hit_that_is_due_leaves_the_hit_path_alone_and_stays_in_its_table() -> None:
    from service.http.endpoint import Hot, Reply

    l1, counts = MemoryCache(10**6, 100, lambda: 1000.0), []
    countdown = Countdown(1 / 3, lambda: 0.5)
    auditor: Any = SimpleNamespace(countdown=countdown, has_room=True)
    accounts = {"echo": SimpleNamespace(add_hits=counts.append)}
    economics: Any = SimpleNamespace(accounts=accounts)
    runtime: Any = SimpleNamespace(
        settings=load_settings({}),
        clock=lambda: 1000.0,
        draining=False,
        pipeline=SimpleNamespace(l1=l1, l2=NoRedis(lambda: None)),
        observer=AnswerObserver(Metrics(), auditor, economics),
        bodies=None,
    )
    hits = HitTable(runtime)
    hits.server_state = ServerState()
    entry = Entry(pack(np.array([1.0])), 60, 1060)
    l1.put("key", entry)
    request: Any = SimpleNamespace(
        scope={"head": b"GET /predict?x=1"},
        sent=b"",
        method="GET",
        route="/predict",
        header=lambda name: None,
    )
    for _ in range(2):
        hits.enter(request, Reply(b"{}", hot=Hot("echo", "key", entry)))
    hit = hits.by_key[b"GET /predict?x=1"]
    assert [hits.current(hit) for _ in range(4)] == [True, True, False, True]
    assert hits.by_key[b"GET /predict?x=1"] is hit
    assert [countdown.picks("key") for _ in range(2)] == [True, False]
    auditor.has_room = False
    assert all(hits.current(hit) for _ in range(10))
    hits.flush()
    assert (counts, hits.server_state.total_requests) == ([13], 13)


def test_hits_of_both_paths_are_picked_in_proportion() -> None:
    chance = np.random.default_rng(1)
    countdown, tally, hot, ordinary = Countdown(0.01, chance.random), HitCounter(), 0, 0
    tally.start(countdown.gap())
    for number in range(110_000):
        if number % 11 == 0:
            ordinary += countdown.picks("ordinary")
        elif tally.left:
            tally.left -= 1
        else:
            tally.start(countdown.gap())
            hot += 1
    assert hot == pytest.approx(1000, rel=0.1)
    assert ordinary == pytest.approx(100, rel=0.2)
    assert tally.count() == 100_000 - hot


# In the background


class Beside:
    """Answers 0 at once; its audits wait for their gate, then answer as told."""

    fingerprint = bytes(32)
    key_kind = "exact"

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}
        self.gate, self.busy = threading.Event(), threading.Event()
        self.outcome: Any = pack(np.array([0.0]))
        self.audits = 0

    def parse(self, params: object, body: bytes, content_type: str | None) -> Question:
        raise NotImplementedError

    def predict(self, batch: Sequence[bytes]) -> list[Prediction | Exception]:
        if self.busy.is_set():
            self.gate.wait(10)
        return [pack(np.array([0.0]))] * len(batch)

    def audit(self, payload: bytes) -> Any:
        self.gate.wait(10)
        outcome = self.outcome  # before it counts: the test then sets another
        self.audits += 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class House:
    """An auditor of every hit, with one model, and hits made up for it. ``rests``: seconds of its pauses, not slept."""

    def __init__(self) -> None:
        self.now, self.rests = 0.0, list[float]()
        self.predictor, self.metrics = Beside(), Metrics()
        self.l1 = MemoryCache(10**6, 100)
        self.batcher = Batcher(self.predictor, max_batch_size=4, max_queue_size=4)
        self.model = Model("echo", MANIFEST, self.predictor, self.batcher, leased=False)  # type: ignore[arg-type]
        l2 = NoRedis(lambda: None)
        self.l2, self.countdown = l2, Countdown(1)
        self.auditor = Auditor(self.countdown, self.l1, l2, self.metrics, lambda: self.now, self._sleep)
        self.task = asyncio.create_task(self.auditor.run())

    async def _sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        await asyncio.sleep(0)

    def hit(self, payload: bytes | None = b"x", value: float = 0.0) -> None:
        entry = Entry(pack(np.array([value])), 1e6, 1e9)
        asked = Lookup(self.model, Question(b"x", payload), "key", None, 1e9, DeadlineBudget())
        self.l1.put("key", entry)
        self.auditor.observe(asked, Answer("key", entry, "l1"))

    def counted(self) -> tuple[float, float]:
        self.metrics.flush()
        samples = self.metrics.samples("echo")
        return samples.get(("predict_cache_audits_total", ""), 0), samples.get(("predict_cache_mismatch_total", ""), 0)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    house = House()
    yield house
    house.predictor.gate.set()
    house.task.cancel()
    await asyncio.wait([house.task])
    await house.batcher.close()


async def test_no_request_waits_for_an_audit(house: House) -> None:
    house.hit()
    await becomes(lambda: not house.auditor._waiting)
    computed = await house.batcher.submit(b"x", wanted=lambda: True, deadline=1e9)
    assert computed.prediction == pack(np.array([0.0]))
    assert house.predictor.audits == 0
    house.predictor.gate.set()
    await becomes(lambda: house.counted() == (1, 0))


@pytest.mark.parametrize(("share", "rest"), [(0.0001, 99), (0.25, 3), (1, 0)])
async def test_audits_take_a_hundredth_of_the_time_at_most_or_the_share_of_hits(share: float, rest: float) -> None:
    house = House()
    house.countdown.share = share
    house.auditor = Auditor(house.countdown, house.l1, house.l2, house.metrics, lambda: house.now, house._sleep)
    auditing = asyncio.create_task(house.auditor.run())
    house.hit()
    await becomes(lambda: not house.auditor._waiting)
    house.now = 2.0
    house.predictor.gate.set()
    await becomes(lambda: bool(house.rests))
    assert house.rests == [pytest.approx(2 * rest)]
    for task in (auditing, house.task):
        task.cancel()
    await house.batcher.close()


async def test_while_the_model_has_something_to_do_audits_wait_and_beyond_the_backlog_are_dropped(house: House) -> None:
    house.predictor.busy.set()
    request = asyncio.ensure_future(house.batcher.submit(b"x", wanted=lambda: True, deadline=1e9))
    await becomes(lambda: house.batcher._computing)
    for _ in range(MAX_WAITING + 10):
        house.hit()
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(house.auditor._waiting) == MAX_WAITING
    assert house.predictor.audits == 0
    house.predictor.gate.set()
    await request
    await becomes(lambda: house.counted() == (MAX_WAITING, 0))


async def test_a_question_without_a_payload_is_not_audited(house: House) -> None:
    house.predictor.gate.set()
    house.hit(payload=None, value=1.0)
    house.hit()
    await becomes(lambda: house.counted() == (1, 0))
    assert not house.auditor._waiting


async def test_payloads_that_wait_are_bounded_in_bytes(house: House) -> None:
    house.predictor.busy.set()
    request = asyncio.ensure_future(house.batcher.submit(b"x", wanted=lambda: True, deadline=1e9))
    await becomes(lambda: house.batcher._computing)
    for _ in range(3):
        house.hit(bytes(10 * 2**20))
    assert len(house.auditor._waiting) == 1
    house.predictor.gate.set()
    await request


@pytest.mark.parametrize("outcome", [ValueError("no"), SystemExit(1)], ids=["error", "exit"])
async def test_an_audit_that_fails_proves_nothing_and_ends_nothing(house: House, outcome: BaseException) -> None:
    house.predictor.gate.set()
    house.predictor.outcome = outcome
    house.hit()
    await becomes(lambda: house.predictor.audits == 1)
    house.predictor.outcome = pack(np.array([0.0]))
    house.hit(value=7.0)
    await becomes(lambda: house.counted() == (1, 1))
    assert house.l1.get("key") is None
