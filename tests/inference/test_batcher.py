"""The queue in front of a model. The model is a function held by gates that the tests open; no test sleeps."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.errors import DeadlineExceeded, DeviceLost, InvalidInput, NoWaiters, Overloaded, PredictionFailed
from service.inference.batcher import Batcher, Computed, Reservation
from service.inference.predictor import Prediction

pytestmark = pytest.mark.anyio
NEVER = float("inf")


def yes() -> bool:
    return True


class Model:
    """Answers ``b"<payload>!"``. While ``gate`` is shut, calls wait inside; ``entered`` counts those that came in."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def predict(self, batch: Sequence[bytes]) -> list[Prediction | Exception]:
        self.batches.append(list(batch))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(10)
        if b"large" in batch and len(batch) > 1:
            raise MemoryError("too many")
        if b"poison" in batch:
            raise ValueError("poison")
        if b"exit" in batch:
            raise SystemExit(3)
        if b"lost" in batch:
            raise DeviceLost
        if b"short" in batch:
            return []
        if b"odd" in batch:
            return [InvalidInput("odd") if p == b"odd" else Prediction(p + b"!") for p in batch]
        return [Prediction(p + b"!") for p in batch]

    async def in_progress(self) -> None:
        """Return when one more call has come in."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def serving(
    model: Model,
    *,
    size: int = 4,
    queue: int = 100,
    slots: int = 1,
    runs_on_loop: bool = False,
    clock: Callable[[], float] | None = None,
    observe: Callable[[int, float], None] = lambda size, seconds: None,
    lost: Callable[[], None] = lambda: None,
) -> AsyncIterator[Batcher]:
    model.slots, model.rows_on_loop = slots, size if runs_on_loop else 0
    batcher = Batcher(
        model,
        max_batch_size=size,
        max_queue_size=queue,
        clock=clock or (lambda: 0.0),
        observe=observe,
        lost=lost,
        name="test",
    )
    try:
        yield batcher
    finally:
        model.gate.set()
        await batcher.close()


def ask(
    batcher: Batcher,
    payload: bytes,
    wanted: Callable[[], bool] = yes,
    deadline: float = NEVER,
    reservation: Reservation | None = None,
) -> asyncio.Task[Computed]:
    async def submitted() -> Computed:
        return await batcher.submit(payload, wanted=wanted, deadline=deadline, reservation=reservation)

    return asyncio.ensure_future(submitted())


async def busy(batcher: Batcher, model: Model) -> asyncio.Task[Computed]:
    """A call that stays inside the model until the gate opens."""
    model.gate.clear()
    first = ask(batcher, b"first")
    await model.in_progress()
    return first


async def queued(batcher: Batcher, *payloads: bytes) -> list[asyncio.Task[Computed]]:
    tasks = [ask(batcher, payload) for payload in payloads]
    await asyncio.sleep(0)  # one turn: each task has run up to its place in the queue
    return tasks


async def test_a_lone_item_is_dispatched_at_once_and_what_comes_meanwhile_is_gathered() -> None:
    model = Model()
    async with serving(model) as batcher:
        first = await busy(batcher, model)
        others = await queued(batcher, b"a", b"b", b"c")
        assert batcher.queued == 3
        model.gate.set()
        assert (await first).prediction == b"first!"
        assert [(await other).prediction for other in others] == [b"a!", b"b!", b"c!"]
    assert model.batches == [[b"first"], [b"a", b"b", b"c"]]


async def test_items_of_one_loop_turn_travel_together() -> None:
    model = Model()
    async with serving(model) as batcher:
        await asyncio.gather(*await queued(batcher, b"a", b"b"))
    assert model.batches == [[b"a", b"b"]]


@pytest.mark.parametrize(("size", "chunk"), [(1, 5), (2, None), (5, 2)])
async def test_no_batch_is_larger_than_a_limit_and_every_item_gets_its_own_answer(size: int, chunk: int | None) -> None:
    """The setting's, or the predictor's own ``chunk``."""
    model: Any = Model()
    if chunk is not None:
        model.chunk = chunk
    async with serving(model, size=size) as batcher:
        payloads = [str(i).encode() for i in range(23)]
        answers = await asyncio.gather(*await queued(batcher, *payloads))
    assert [answer.prediction for answer in answers] == [payload + b"!" for payload in payloads]
    assert max(map(len, model.batches)) == min(size, chunk or size)
    assert len(model.threads) == 1


async def test_a_full_queue_refuses_with_a_time_computed_from_its_length_and_the_measured_speed() -> None:
    model, clock = Model(), Clock()
    async with serving(model, size=2, queue=8, clock=clock) as batcher:
        first = await busy(batcher, model)
        clock.now = 3.0  # the first batch took three seconds
        model.gate.set()
        await first
        second = await busy(batcher, model)
        waiting = await queued(batcher, *[b"x"] * 8)
        for _ in range(2):
            with pytest.raises(Overloaded) as caught:
                await batcher.submit(b"y", wanted=yes, deadline=NEVER)
            assert caught.value.retry_after == 15  # the running batch and four of two, each three seconds
        model.gate.set()
        await asyncio.gather(second, *waiting)


async def test_exactly_two_of_ten_are_refused_by_a_queue_of_eight_behind_a_long_batch() -> None:
    model = Model()
    async with serving(model, queue=8) as batcher:
        first = await busy(batcher, model)
        ten = await queued(batcher, *[b"x"] * 10)
        model.gate.set()
        outcomes = await asyncio.gather(first, *ten, return_exceptions=True)
    assert sum(isinstance(outcome, Overloaded) for outcome in outcomes) == 2
    assert sum(isinstance(outcome, Computed) for outcome in outcomes) == 9


async def test_an_idle_model_takes_a_burst_of_a_full_queue_and_a_full_batch() -> None:
    async with serving(Model(), size=4, queue=2) as batcher:
        outcomes = await asyncio.gather(*await queued(batcher, *[b"x"] * 7), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Computed] * 6 + [Overloaded]


async def test_items_past_their_deadline_or_unwanted_at_dispatch_are_never_dispatched() -> None:
    model, clock = Model(), Clock()
    async with serving(model, clock=clock) as batcher:
        first = await busy(batcher, model)
        late, nobody = ask(batcher, b"late", deadline=5.0), ask(batcher, b"nobody", wanted=lambda: False)
        gone, good = ask(batcher, b"gone"), ask(batcher, b"good", deadline=5.5)
        await asyncio.sleep(0)
        gone.cancel()
        clock.now = 5.0
        model.gate.set()
        outcomes = await asyncio.gather(first, late, nobody, gone, good, return_exceptions=True)
    assert [type(o) for o in outcomes] == [Computed, DeadlineExceeded, NoWaiters, asyncio.CancelledError, Computed]
    assert model.batches == [[b"first"], [b"good"]]


async def test_dispatched_work_is_finished_though_its_asker_left() -> None:
    model = Model()
    async with serving(model) as batcher:
        first = await busy(batcher, model)
        (other,) = await queued(batcher, b"other")
        first.cancel()
        model.gate.set()
        assert (await other).prediction == b"other!"
    assert model.batches == [[b"first"], [b"other"]]


async def test_a_batch_that_raises_is_run_again_one_by_one_so_that_only_the_bad_row_fails() -> None:
    model = Model()
    async with serving(model) as batcher:
        outcomes = await asyncio.gather(*await queued(batcher, b"a", b"poison", b"b"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Computed, PredictionFailed, Computed]
    assert "poison" not in str(outcomes[1])
    assert model.batches == [[b"a", b"poison", b"b"], [b"a"], [b"poison"], [b"b"]]


@pytest.mark.parametrize("runs_on_loop", [True, False])
async def test_a_call_that_fails_though_no_row_fails_alone_is_told_of_in_few_lines(
    runs_on_loop: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that fails alone is told of where its question is answered."""
    async with serving(Model(), runs_on_loop=runs_on_loop) as batcher:
        for bad in (b"large", b"poison", b"large", b"large"):
            await asyncio.gather(*await queued(batcher, b"a", bad), return_exceptions=True)
        batcher.compute_at_once([b"a", b"large"])
        await asyncio.sleep(0)
    told = [(vars(line)["model"], vars(line)["error"], vars(line)["count"]) for line in caplog.records]
    assert told == [("test", "MemoryError('too many')", 1), ("test", "MemoryError('too many')", 3)]


async def test_a_lone_failing_item_is_computed_once() -> None:
    model = Model()
    async with serving(model) as batcher:
        with pytest.raises(PredictionFailed):
            await batcher.submit(b"poison", wanted=yes, deadline=NEVER)
    assert model.batches == [[b"poison"]]


async def test_a_model_that_ends_its_thread_does_not_end_the_service() -> None:
    model = Model()
    async with serving(model) as batcher:
        with pytest.raises(PredictionFailed):
            await batcher.submit(b"exit", wanted=yes, deadline=NEVER)
        assert (await batcher.submit(b"a", wanted=yes, deadline=NEVER)).prediction == b"a!"


async def test_an_error_in_the_place_of_a_row_goes_to_that_row_alone() -> None:
    async with serving(Model()) as batcher:
        outcomes = await asyncio.gather(*await queued(batcher, b"a", b"odd"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Computed, InvalidInput]


async def test_a_wrong_number_of_answers_fails_the_batch_rather_than_mixing_answers_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Model()
    async with serving(model) as batcher:
        outcomes = await asyncio.gather(*await queued(batcher, b"a", b"short"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [PredictionFailed, PredictionFailed]
    assert len(model.batches) == 1
    assert {str(outcome.__cause__) for outcome in outcomes} == {"0 predictions for 2 inputs"}
    assert "Dispatching to" not in caplog.text


async def test_a_batch_request_is_admitted_whole_or_not_at_all() -> None:
    model = Model()
    async with serving(model, queue=8) as batcher:
        first = await busy(batcher, model)
        with batcher.reserve(6) as places:
            with pytest.raises(Overloaded), batcher.reserve(3):
                pass
            (single,) = await queued(batcher, b"single")
            with batcher.reserve(1), pytest.raises(Overloaded):
                await batcher.submit(b"too many", wanted=yes, deadline=NEVER)
            rows = [ask(batcher, b"x", reservation=places) for _ in range(6)]
            await asyncio.sleep(0)
            assert batcher.queued == 7
            model.gate.set()
            await asyncio.gather(first, single, *rows)


async def test_places_that_a_batch_request_did_not_use_are_given_back() -> None:
    model = Model()
    async with serving(model, queue=2) as batcher:
        first = await busy(batcher, model)
        with batcher.reserve(2):
            pass
        waiting = await queued(batcher, b"a", b"b")
        model.gate.set()
        await asyncio.gather(first, *waiting)


async def test_a_reservation_that_ended_gives_no_place_any_more() -> None:
    model = Model()
    async with serving(model, queue=1) as batcher:
        first = await busy(batcher, model)
        with batcher.reserve(1) as places:
            pass
        (waiting,) = await queued(batcher, b"a")
        with pytest.raises(Overloaded):
            await batcher.submit(b"late", wanted=yes, deadline=NEVER, reservation=places)
        model.gate.set()
        await asyncio.gather(first, waiting)


async def test_a_reserved_item_that_comes_after_closing_is_refused_rather_than_never_answered() -> None:
    model = Model()
    async with serving(model) as batcher:
        with batcher.reserve(1) as places:
            await batcher.close()
            with pytest.raises(Overloaded):
                async with asyncio.timeout(5):
                    await batcher.submit(b"late", wanted=yes, deadline=NEVER, reservation=places)


async def test_a_single_request_does_not_wait_for_a_large_one_that_came_first() -> None:
    model = Model()
    async with serving(model, size=4) as batcher:
        first = await busy(batcher, model)
        with batcher.reserve(50) as places:
            many = [ask(batcher, b"bulk", reservation=places) for _ in range(50)]
            await asyncio.sleep(0)
            singles = await queued(batcher, b"1", b"2", b"3")
            model.gate.set()
            await asyncio.gather(first, *many, *singles)
    assert sorted(model.batches[1]) == [b"1", b"2", b"bulk", b"bulk"]
    assert b"3" in model.batches[2]


async def test_times_are_told_and_batches_observed() -> None:
    model, clock = Model(), Clock()
    seen: list[tuple[int, float]] = []
    async with serving(model, clock=clock, observe=lambda size, seconds: seen.append((size, seconds))) as batcher:
        first = await busy(batcher, model)
        (second,) = await queued(batcher, b"a")
        clock.now = 2.0
        model.gate.set()
        assert ((await first).queue_seconds, (await first).model_seconds) == (0.0, 2.0)
        assert ((await second).queue_seconds, (await second).model_seconds) == (2.0, 0.0)
    assert seen == [(1, 2.0), (1, 0.0)]


async def test_a_wanted_that_raises_fails_what_waits_and_dispatching_goes_on() -> None:
    model = Model()

    def confused() -> bool:
        raise LookupError

    async with serving(model) as batcher:
        first = await busy(batcher, model)
        good, bad, after = ask(batcher, b"good"), ask(batcher, b"bad", wanted=confused), ask(batcher, b"after")
        await asyncio.sleep(0)
        model.gate.set()
        outcomes = await asyncio.gather(first, good, bad, after, return_exceptions=True)
        assert [type(o) for o in outcomes] == [Computed, PredictionFailed, PredictionFailed, PredictionFailed]
        assert (await batcher.submit(b"next", wanted=yes, deadline=NEVER)).prediction == b"next!"


async def test_closing_answers_the_dispatched_fails_the_waiting_and_refuses_the_new() -> None:
    model = Model()
    async with serving(model) as batcher:
        first = await busy(batcher, model)
        (waiting,) = await queued(batcher, b"waiting")
        closing = asyncio.ensure_future(batcher.close())
        with pytest.raises(Overloaded):
            await waiting
        with pytest.raises(Overloaded):
            await batcher.submit(b"new", wanted=yes, deadline=NEVER)
        assert not closing.done()
        model.gate.set()
        await closing
        assert (await first).prediction == b"first!"
    assert model.batches == [[b"first"]]


async def test_closing_an_idle_batcher_ends_its_thread() -> None:
    async with serving(Model()) as batcher:
        await batcher.submit(b"a", wanted=yes, deadline=NEVER)
    for thread in threading.enumerate():
        if thread.name == "predict-test":
            await asyncio.to_thread(thread.join, 30)
    assert not any(thread.name == "predict-test" for thread in threading.enumerate())


async def test_a_second_slot_takes_a_batch_once_it_is_nearly_as_large_as_what_is_under_way() -> None:
    model = Model()
    async with serving(model, slots=2) as batcher:
        first = await busy(batcher, model)
        second = await queued(batcher, b"a", b"b")
        await model.in_progress()
        gathered = await queued(batcher, b"c", b"d", b"e")
        assert batcher.queued == 3
        model.gate.set()
        await asyncio.gather(first, *second, *gathered)
    assert model.batches == [[b"first"], [b"a", b"b"], [b"c", b"d", b"e"]]
    assert len(model.threads) == 2


async def test_what_is_much_less_than_is_under_way_gathers_until_that_is_done() -> None:
    model = Model()
    async with serving(model, slots=2) as batcher:
        model.gate.clear()
        first = await queued(batcher, b"1", b"2", b"3")
        await model.in_progress()
        waiting = await queued(batcher, b"a", b"b")
        assert (batcher.queued, batcher.idle) == (2, False)
        model.gate.set()
        await asyncio.gather(*first, *waiting)
        assert batcher.idle
    assert model.batches == [[b"1", b"2", b"3"], [b"a", b"b"]]


async def test_a_batch_that_is_one_short_of_what_is_under_way_leaves() -> None:
    model = Model()
    async with serving(model, slots=2) as batcher:
        model.gate.clear()
        first = await queued(batcher, b"1", b"2", b"3", b"4")
        await model.in_progress()
        second = await queued(batcher, b"a", b"b", b"c")
        await model.in_progress()
        assert batcher.queued == 0
        model.gate.set()
        await asyncio.gather(*first, *second)


async def test_a_full_batch_never_waits_for_a_free_slot() -> None:
    model = Model()
    async with serving(model, slots=2, size=3) as batcher:
        model.gate.clear()
        seven = await queued(batcher, *[b"x"] * 7)
        await model.in_progress()
        await model.in_progress()
        assert batcher.queued == 1
        model.gate.set()
        await asyncio.gather(*seven)
    assert [len(batch) for batch in model.batches] == [3, 3, 1]


async def test_a_lost_device_is_told_to_all_of_a_batch_at_once_and_not_tried_again_row_by_row() -> None:
    model = Model()
    async with serving(model, runs_on_loop=True) as batcher:
        asked = [ask(batcher, payload) for payload in (b"a", b"lost", b"b")]
        found = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(outcome) for outcome in found] == [DeviceLost] * 3
    assert len(model.batches) == 1


async def test_past_its_time_a_call_is_given_up_with_all_who_wait_and_nobody_more_is_let_in() -> None:
    model, clock = Model(), Clock()
    async with serving(model, clock=clock) as batcher:
        first = await busy(batcher, model)
        (second,) = await queued(batcher, b"second")
        clock.now = 60.0
        assert not batcher.give_up(60.0)
        clock.now = 60.1
        assert batcher.give_up(60.0)
        for waiting in (first, second, ask(batcher, b"third")):
            with pytest.raises(Overloaded):
                await waiting
        assert not batcher.give_up(60.0), "told once"
        await batcher.close()  # does not wait for the call


async def test_on_the_event_loop_what_one_turn_has_brought_is_computed_at_once() -> None:
    model = Model()
    async with serving(model, runs_on_loop=True, size=3) as batcher:
        answers = await asyncio.gather(*(ask(batcher, b"%d" % n) for n in range(5)))
        assert [answer.prediction for answer in answers] == [b"%d!" % n for n in range(5)]
        assert model.batches == [[b"0", b"1", b"2"], [b"3", b"4"]]
        asked = [ask(batcher, payload) for payload in (b"poison", b"exit", b"a")]
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(outcome) for outcome in found] == [PredictionFailed, PredictionFailed, Computed]
        assert model.threads == {threading.get_ident()}
        assert batcher.idle


async def test_on_the_event_loop_others_have_their_turn_between_the_batches() -> None:
    model, turns = Model(), list[int]()

    def turn() -> None:
        turns.append(len(model.batches))
        if len(model.batches) < 4:
            asyncio.get_running_loop().call_soon(turn)

    async with serving(model, runs_on_loop=True, size=1) as batcher:
        turn()
        await asyncio.gather(*(ask(batcher, b"%d" % n) for n in range(4)))
    assert {1, 2, 3} <= set(turns)


@pytest.mark.parametrize("slots", [1, 2, 3])
async def test_under_any_load_every_item_of_every_slot_gets_its_own_answer(slots: int) -> None:
    model = Model()
    async with serving(model, slots=slots, size=3) as batcher:

        async def client(name: int) -> None:
            for number in range(30):
                payload = f"{name}-{number}".encode()
                assert (await ask(batcher, payload)).prediction == payload + b"!"

        async with asyncio.timeout(30):
            await asyncio.gather(*(client(name) for name in range(8)))
        assert batcher.idle
    assert len(model.threads) <= slots


async def test_closing_answers_what_is_in_every_slot() -> None:
    model = Model()
    async with serving(model, slots=2) as batcher:
        first = await busy(batcher, model)
        (second,) = await queued(batcher, b"second")
        await model.in_progress()
        closing = asyncio.ensure_future(batcher.close())
        await asyncio.sleep(0)
        assert not closing.done()
        model.gate.set()
        await closing
        assert [(await task).prediction for task in (first, second)] == [b"first!", b"second!"]


async def test_a_lost_device_is_reported_and_its_error_reaches_whoever_asked() -> None:
    model, reports = Model(), []
    async with serving(model, lost=lambda: reports.append(1)) as batcher:
        with pytest.raises(DeviceLost):
            await ask(batcher, b"lost")
        assert reports == [1]
        await ask(batcher, b"a")
        assert reports == [1]
