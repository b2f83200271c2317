from __future__ import annotations

import asyncio

import pytest

from service.deadlines import Deadlines
from service.errors import DeadlineExceeded

pytestmark = pytest.mark.anyio


async def forever() -> None:
    await asyncio.Event().wait()


async def test_what_ends_in_time_gives_its_result_or_its_error() -> None:
    async def fail() -> None:
        raise ValueError

    deadlines = Deadlines(60)
    assert await deadlines.within(asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError):
        await deadlines.within(fail())


async def test_what_takes_longer_is_ended_whoever_came_first_first() -> None:
    deadlines, ended = Deadlines(0.05), []

    async def wait(name: str) -> None:
        try:
            await deadlines.within(forever())
        except DeadlineExceeded:
            ended.append(name)

    first = asyncio.create_task(wait("first"))
    await asyncio.sleep(0.02)
    await asyncio.gather(first, wait("second"))
    assert ended == ["first", "second"]


async def test_after_it_the_task_goes_on() -> None:
    deadlines = Deadlines(0.01)
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            await deadlines.within(forever())
    assert await deadlines.within(asyncio.sleep(0, "done")) == "done"


async def test_a_cancellation_from_elsewhere_is_no_timeout() -> None:
    task = asyncio.create_task(Deadlines(60).within(forever()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nothing_is_left_of_who_has_ended_and_no_timer_when_nobody_waits() -> None:
    deadlines = Deadlines(0.05)
    await asyncio.gather(*(deadlines.within(asyncio.sleep(0)) for _ in range(100)))
    assert not deadlines._began
    await asyncio.sleep(0.05)
    assert deadlines._timer is None
