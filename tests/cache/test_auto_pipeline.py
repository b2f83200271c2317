from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from service.cache.redis.auto_pipeline import (
    GATHER_SECONDS,
    LONGEST_SECONDS,
    ROUND_TRIP_SECONDS,
    SHORTEST_SECONDS,
    AutoPipeline,
    DeadlineBudget,
    PendingReply,
    StallTolerantClock,
)
from service.errors import StoreUnavailable

pytestmark = pytest.mark.anyio


class Carrier:
    """Round trips that wait for their gate; the reply to an item is its tenfold."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.trips: list[list[int]] = []
        self.deadlines: list[float] = []
        self.failing: set[int] = set()

    async def __call__(self, items: list[int], seconds: float) -> Sequence[int | StoreUnavailable]:
        self.trips.append(items)
        self.deadlines.append(seconds)
        await self.gate.wait()
        return [StoreUnavailable(str(i)) if i in self.failing else 10 * i for i in items]


def pending() -> PendingReply[str]:
    reply: PendingReply[str] = PendingReply()
    reply.clock = StallTolerantClock()
    return reply


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_one_turn_asks_for_travels_together() -> None:
    carrier = Carrier()
    joined = AutoPipeline(carrier, max_in_flight=4, size=100, clock=StallTolerantClock())
    assert await asyncio.gather(*(joined.ask(i) for i in range(5))) == [0, 10, 20, 30, 40]
    assert carrier.trips == [[0, 1, 2, 3, 4]]


async def test_while_a_trip_is_under_way_items_gather_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.cache.redis.auto_pipeline.GATHER_SECONDS", 60)
    carrier = Carrier()
    carrier.gate.clear()
    joined = AutoPipeline(carrier, max_in_flight=2, size=100, clock=StallTolerantClock())
    asked = []
    for i in range(5):
        asked.append(joined.ask(i))
        await settled()
    assert carrier.trips == [[0]]
    carrier.gate.set()
    assert await asyncio.gather(*asked) == [0, 10, 20, 30, 40]
    assert carrier.trips == [[0], [1, 2, 3, 4]]


async def test_they_do_not_wait_long_for_one_that_does_not_come_back_unless_all_are_under_way() -> None:
    carrier = Carrier()
    carrier.gate.clear()
    joined = AutoPipeline(carrier, max_in_flight=2, size=100, clock=StallTolerantClock())
    asked = []
    for i in range(5):
        asked.append(joined.ask(i))
        await asyncio.sleep(3 * GATHER_SECONDS)
    assert carrier.trips == [[0], [1]]
    carrier.gate.set()
    assert await asyncio.gather(*asked) == [0, 10, 20, 30, 40]
    assert carrier.trips == [[0], [1], [2, 3, 4]]


async def test_a_trip_carries_no_more_than_its_size() -> None:
    carrier = Carrier()
    joined = AutoPipeline(carrier, max_in_flight=1, size=2, clock=StallTolerantClock())
    await asyncio.gather(*(joined.ask(i) for i in range(5)))
    assert carrier.trips == [[0, 1], [2, 3], [4]]


async def test_one_bad_reply_fails_only_its_own_item() -> None:
    carrier = Carrier()
    carrier.failing = {1}
    joined = AutoPipeline(carrier, max_in_flight=1, size=10, clock=StallTolerantClock())
    one, two, three = await asyncio.gather(*(joined.ask(i) for i in range(3)), return_exceptions=True)
    assert (one, three) == (0, 20)
    assert isinstance(two, StoreUnavailable)


async def test_a_failed_trip_fails_all_its_items() -> None:
    async def fail(items: list[int], seconds: float) -> list[int]:
        raise StoreUnavailable("no")

    outcomes = await asyncio.gather(
        *map(AutoPipeline(fail, 1, 10, StallTolerantClock()).ask, range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3


async def test_replies_that_are_too_few_or_too_many_are_nobodys() -> None:
    for replies in ([10], [10, 20, 30]):

        async def execute(items: list[int], seconds: float, replies: list[int] = replies) -> list[int]:
            return replies

        outcomes = await asyncio.gather(
            *map(AutoPipeline(execute, 1, 10, StallTolerantClock()).ask, range(2)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 2


async def test_a_defect_leaves_nobody_waiting_and_is_reported() -> None:
    complaints = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))

    async def broken(items: list[int], seconds: float) -> list[int]:
        raise ZeroDivisionError

    with pytest.raises(StoreUnavailable):
        await AutoPipeline(broken, 1, 10, StallTolerantClock()).ask(1)
    await settled()
    assert [type(error) for error in complaints] == [ZeroDivisionError]


async def test_who_leaves_takes_nothing_along() -> None:
    carrier = Carrier()
    carrier.gate.clear()
    joined = AutoPipeline(carrier, max_in_flight=1, size=10, clock=StallTolerantClock())
    left, stayed = joined.ask(1), joined.ask(2)
    await settled()
    left.cancel()
    carrier.gate.set()
    assert await stayed == 20


async def test_nobody_travels_for_who_has_left_before_the_departure() -> None:
    carrier = Carrier()
    joined = AutoPipeline(carrier, max_in_flight=1, size=10, clock=StallTolerantClock())
    left, stayed = joined.ask(1), joined.ask(2)
    left.cancel()
    assert await stayed == 20
    assert carrier.trips == [[2]]


@pytest.mark.usefixtures("promised_times")
async def test_what_had_to_wait_for_a_trip_leaves_less_time_for_it() -> None:
    carrier, clock = Carrier(), StallTolerantClock()
    carrier.gate.clear()
    joined = AutoPipeline(carrier, max_in_flight=1, size=10, clock=clock)
    asked = [joined.ask(1)]
    await settled()
    for i in (2, 3):
        asked.append(joined.ask(i))
        with pytest.raises(TimeoutError):  # by the clock that counts, which leaves out what the machine adds
            await clock.wait(asyncio.get_running_loop().create_future(), clock.now() + 0.05)
    carrier.gate.set()
    assert await asyncio.gather(*asked) == [10, 20, 30]
    first, second = carrier.deadlines
    assert SHORTEST_SECONDS <= first <= ROUND_TRIP_SECONDS
    assert SHORTEST_SECONDS <= second <= LONGEST_SECONDS - 0.1  # by the longest wait


@pytest.mark.usefixtures("promised_times")
async def test_each_trip_has_its_time_by_its_own_oldest_item() -> None:
    carrier, clock = Carrier(), StallTolerantClock()
    joined = AutoPipeline(carrier, max_in_flight=1, size=1, clock=clock)

    async def delay() -> None:
        with pytest.raises(TimeoutError):
            await clock.wait(asyncio.get_running_loop().create_future(), clock.now() + 0.06)

    carrier.gate.clear()
    asked = []
    for i in range(3):  # somebody always waits, so no departure empties the queue
        asked.append(joined.ask(i))
        await delay()
    carrier.gate.set()
    await asyncio.gather(*asked)
    _, second, third = carrier.deadlines
    assert second < third <= LONGEST_SECONDS - 0.05


async def test_closing_lets_what_was_asked_for_arrive() -> None:
    carrier = Carrier()
    joined = AutoPipeline(carrier, max_in_flight=1, size=1, clock=StallTolerantClock())
    asked = [joined.ask(i) for i in range(3)]
    await joined.close()
    assert [future.result() for future in asked] == [0, 10, 20]


async def test_an_allowance_is_used_up_by_waiting_and_ends_it() -> None:
    budget, never = DeadlineBudget(0.01), pending()
    with pytest.raises(StoreUnavailable):
        await budget.wait(never)
    assert budget.left <= 0


async def test_nothing_travels_for_who_has_used_up_its_allowance() -> None:
    carrier, used_up = Carrier(), DeadlineBudget(0)
    joined = AutoPipeline(carrier, max_in_flight=1, size=10, clock=StallTolerantClock())
    for item in range(3):
        with pytest.raises(StoreUnavailable):
            await used_up.wait(joined.ask(item))
    await joined.close()
    assert carrier.trips == []
    reply = joined.ask(3)
    await settled()
    assert await used_up.wait(reply) == 30  # what is there costs nothing


async def test_a_reply_costs_only_the_time_it_took() -> None:
    budget, reply = DeadlineBudget(), pending()
    given = budget.left
    reply.set_result("now")
    assert await budget.wait(reply) == "now"
    assert budget.left == given
    later = pending()
    asyncio.get_running_loop().call_later(0.01, later.set_result, "later")
    assert await budget.wait(later) == "later"
    assert given - 0.1 < budget.left < given - 0.005


async def test_a_request_is_charged_for_the_round_trip_and_not_for_this_workers_pauses() -> None:
    async def execute(items: list[int], seconds: float) -> list[int]:
        return items

    joined, budget = AutoPipeline(execute, max_in_flight=1, size=10, clock=StallTolerantClock()), DeadlineBudget()
    asked = joined.ask(1)
    asyncio.get_running_loop().call_soon(time.sleep, 0.12)
    assert await budget.wait(asked) == 1
    assert budget.left > LONGEST_SECONDS
