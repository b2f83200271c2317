from __future__ import annotations

import asyncio
import gc
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from service.cache.single_flight import Call, SingleFlight
from service.errors import DeadlineExceeded, NoWaiters

pytestmark = pytest.mark.anyio


class Work:
    """A computation that waits for its gate, and counts."""

    def __init__(self, outcome: object = "answer") -> None:
        self.gate, self.started, self.runs = asyncio.Event(), asyncio.Event(), 0
        self.outcome = outcome
        self.call: Call[Any] | None = None

    async def __call__(self, call: Call[Any]) -> Any:
        self.call = call
        self.runs += 1
        self.started.set()
        await self.gate.wait()
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


async def gathered(*tasks: Awaitable[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def asked(
    flights: SingleFlight, work: Callable[[Call[Any]], Any], times: int = 1, seconds: float = math.inf
) -> list[asyncio.Task[Any]]:
    """So many askers, all of them waiting."""
    tasks = [asyncio.create_task(flights.do("key", work, seconds=seconds)) for _ in range(times)]
    await asyncio.sleep(0)
    return tasks


async def test_a_hundred_askers_share_one_computation_and_one_of_them_led() -> None:
    flights, work = SingleFlight(), Work()
    askers = await asked(flights, work, 100)
    await work.started.wait()
    assert work.call is not None
    assert work.call.waiters == 100
    work.gate.set()
    outcomes = await gathered(*askers)
    assert work.runs == 1
    assert sorted(outcomes) == [("answer", False)] * 99 + [("answer", True)]


async def test_a_deadline_ends_the_waiting_of_who_has_it_and_nothing_else() -> None:
    flights, work = SingleFlight(), Work()
    hurried = await asked(flights, work, 2, 0.01)
    patient = await asked(flights, work)
    assert [type(outcome) for outcome in await gathered(*hurried)] == [DeadlineExceeded] * 2
    assert work.call is not None and work.call.waiters == 1
    work.gate.set()
    assert await gathered(*patient) == [("answer", False)]


async def test_deadlines_end_in_their_order_whatever_the_order_of_the_waiters() -> None:
    flights, work, ended = SingleFlight(), Work(), []

    async def wait(seconds: float) -> None:
        with pytest.raises(DeadlineExceeded):
            await flights.do("key", work, seconds=seconds)
        ended.append(seconds)

    await gathered(*map(wait, (0.1, 0.02, 0.06, 0.04, 0.0)))
    assert ended == [0.0, 0.02, 0.04, 0.06, 0.1]


async def test_keys_do_not_wait_for_each_other() -> None:
    flights, slow, quick = SingleFlight(), Work(), Work("quick")
    waiting = await asked(flights, slow)
    quick.gate.set()
    assert await flights.do("other", quick) == ("quick", True)
    slow.gate.set()
    await gathered(*waiting)


async def test_who_asks_after_the_landing_starts_anew() -> None:
    flights, work = SingleFlight(), Work()
    work.gate.set()
    assert await flights.do("key", work) == ("answer", True)
    assert await flights.do("key", work) == ("answer", True)
    assert work.runs == 2


async def test_a_leader_that_leaves_ends_nothing() -> None:
    flights, work = SingleFlight(), Work()
    leader, follower = await asked(flights, work, 2)
    leader.cancel()
    await gathered(leader)
    assert work.call is not None
    assert work.call.waiters == 1
    work.gate.set()
    assert await follower == ("answer", False)


async def test_the_work_goes_on_when_everybody_has_left() -> None:
    flights, work = SingleFlight(), Work()
    askers = await asked(flights, work, 3)
    await work.started.wait()
    for asker in askers:
        asker.cancel()
    await gathered(*askers)
    assert work.call is not None
    assert work.call.waiters == 0
    [late] = await asked(flights, work)
    work.gate.set()
    assert await late == ("answer", False)
    assert work.runs == 1


async def test_a_failure_is_everybodys_and_is_not_remembered() -> None:
    flights, work = SingleFlight(), Work(RuntimeError("no"))
    askers = await asked(flights, work, 3)
    work.gate.set()
    outcomes = await gathered(*askers)
    assert [str(outcome) for outcome in outcomes] == ["no"] * 3
    work.outcome = "answer"
    assert await flights.do("key", work) == ("answer", True)


async def test_a_failure_that_nobody_waits_for_is_not_logged_as_never_retrieved() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    flights, work = SingleFlight(), Work(RuntimeError("no"))
    early, late = await asked(flights, work, 2)
    await work.started.wait()
    early.cancel()
    work.gate.set()
    await asyncio.sleep(0)  # the work ends in this turn; in the next one its waiters would wake
    late.cancel()
    await gathered(early, late)
    await flights.close()
    del early, late, work
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []


async def test_who_joined_work_that_was_being_abandoned_starts_anew_and_one_of_them_leads() -> None:
    flights = SingleFlight()
    dropped = Work(NoWaiters())
    [first] = await asked(flights, dropped)
    await dropped.started.wait()
    first.cancel()
    await gathered(first)
    anew = Work()
    anew.gate.set()
    late = await asked(flights, anew, 3)
    dropped.gate.set()
    assert sorted(await gathered(*late)) == [("answer", False), ("answer", False), ("answer", True)]
    assert (dropped.runs, anew.runs) == (1, 1)


async def test_closing_ends_the_work_and_whoever_waits_for_it() -> None:
    flights, work = SingleFlight(), Work()
    [asker] = await asked(flights, work)
    await work.started.wait()
    await flights.close()
    [outcome] = await gathered(asker)
    assert isinstance(outcome, asyncio.CancelledError)


async def test_closing_what_is_idle_returns_at_once() -> None:
    await SingleFlight().close()


class Precheck:
    """A look that waits for its gate, and counts."""

    def __init__(self, found: str | None) -> None:
        self.gate, self.looks, self.found = asyncio.Event(), 0, found

    async def __call__(self) -> str | None:
        self.looks += 1
        await self.gate.wait()
        return self.found


async def glanced(flights: SingleFlight, work: Work, precheck: Precheck, times: int) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(flights.do("key", work, precheck)) for _ in range(times)]
    await asyncio.sleep(0)
    return tasks


async def test_what_one_glance_finds_is_everybodys_and_starts_no_work() -> None:
    flights, work, precheck = SingleFlight(), Work(), Precheck("found")
    askers = await glanced(flights, work, precheck, 10)
    precheck.gate.set()
    assert sorted(await gathered(*askers)) == [("found", False)] * 9 + [("found", True)]
    assert (precheck.looks, work.runs) == (1, 0)
    precheck.found = None
    work.gate.set()
    assert await flights.do("key", work, precheck) == ("answer", True)  # nothing is remembered


async def test_after_a_glance_at_nothing_the_work_is_done_once_for_all() -> None:
    flights, work, precheck = SingleFlight(), Work(), Precheck(None)
    askers = await glanced(flights, work, precheck, 10)
    precheck.gate.set()
    await work.started.wait()
    assert work.call is not None
    assert work.call.waiters == 10
    work.gate.set()
    assert sorted(await gathered(*askers)) == [("answer", False)] * 9 + [("answer", True)]
    assert (precheck.looks, work.runs) == (1, 1)


async def test_should_who_glances_for_all_leave_the_flight_itself_glances_again_once() -> None:
    leavers, stayers = 3, 7
    flights, work, precheck = SingleFlight(), Work(), Precheck("found")
    askers = await glanced(flights, work, precheck, leavers + stayers)
    for asker in askers[:leavers]:
        asker.cancel()
        await gathered(asker)
    precheck.gate.set()
    assert await gathered(*askers[leavers:]) == [("found", False)] * stayers
    assert (precheck.looks, work.runs) == (2, 0)


async def test_after_a_glance_that_was_left_the_work_is_done_too() -> None:
    flights, work, precheck = SingleFlight(), Work(), Precheck(None)
    leader, follower = await glanced(flights, work, precheck, 2)
    leader.cancel()
    await gathered(leader)
    for gate in (precheck.gate, work.gate):
        gate.set()
    assert await follower == ("answer", False)
    assert (precheck.looks, work.runs) == (2, 1)


async def test_who_leaves_alone_in_a_glance_leaves_nothing_behind() -> None:
    flights, work, precheck = SingleFlight(), Work(), Precheck("found")
    [asker] = await glanced(flights, work, precheck, 1)
    asker.cancel()
    await gathered(asker)
    precheck.gate.set()
    assert await flights.do("key", work, precheck) == ("found", True)
    assert (precheck.looks, work.runs) == (2, 0)


async def test_a_glance_that_fails_is_everybodys_failure_and_is_not_remembered() -> None:
    flights, work, precheck = SingleFlight(), Work(), Precheck("found")

    async def fail() -> str | None:
        await asyncio.sleep(0)
        raise ConnectionError

    outcomes = await gathered(*(flights.do("key", work, fail) for _ in range(3)))
    assert [type(outcome) for outcome in outcomes] == [ConnectionError] * 3
    precheck.gate.set()
    assert await flights.do("key", work, precheck) == ("found", True)
    assert work.runs == 0


async def test_nothing_starts_after_closing_and_nobody_waits_on() -> None:
    flights, work, precheck = SingleFlight(), Work(), Precheck(None)
    askers = await glanced(flights, work, precheck, 3)
    await flights.close()
    precheck.gate.set()
    outcomes = await gathered(*askers)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 3
    assert work.runs == 0
