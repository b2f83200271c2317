from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.cache.redis.auto_pipeline import StallTolerantClock

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> StallTolerantClock:
    return StallTolerantClock()


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def test_what_takes_too_long_is_ended(clock: StallTolerantClock) -> None:
    with pytest.raises(TimeoutError):
        await clock.wait(future(), clock.now() + 0.01)


async def test_a_task_that_takes_too_long_is_cancelled(clock: StallTolerantClock) -> None:
    task = asyncio.create_task(asyncio.Event().wait())
    with pytest.raises(TimeoutError):
        await clock.wait(task, clock.now() + 0.01)
    assert task.cancelled()


async def test_what_is_past_its_deadline_already_is_ended_but_not_what_is_done(clock: StallTolerantClock) -> None:
    here = future()
    here.set_result("here")
    assert await clock.wait(here, clock.now() - 1) == "here"
    with pytest.raises(TimeoutError):
        await clock.wait(future(), clock.now() - 1)


async def test_what_ends_in_time_is_left_alone(clock: StallTolerantClock) -> None:
    reply = future()
    asyncio.get_running_loop().call_soon(reply.set_result, "here")
    assert await clock.wait(reply, clock.now() + 0.01) == "here"
    await asyncio.sleep(0.05)
    assert reply.result() == "here"


async def test_its_own_error_is_told(clock: StallTolerantClock) -> None:
    reply = future()
    asyncio.get_running_loop().call_soon(reply.set_exception, ConnectionError("lost"))
    with pytest.raises(ConnectionError):
        await clock.wait(reply, clock.now() + 10)


async def test_a_reply_that_arrived_while_the_loop_paused_is_taken(clock: StallTolerantClock) -> None:
    """It lies in the socket, which is read after the timers have run."""
    (reader, writer), (_, other) = await _connected()
    asyncio.get_running_loop().call_soon(other.write, b"here")
    asyncio.get_running_loop().call_soon(time.sleep, 0.1)
    assert await clock.wait(asyncio.create_task(reader.readexactly(4)), clock.now() + 0.02) == b"here"
    writer.close()
    other.close()


async def test_after_a_pause_what_still_does_not_arrive_is_ended(clock: StallTolerantClock) -> None:
    asyncio.get_running_loop().call_soon(time.sleep, 0.1)
    with pytest.raises(TimeoutError):
        await clock.wait(future(), clock.now() + 0.01)


async def test_a_loop_whose_every_turn_is_a_pause_ends_what_takes_too_long_all_the_same(
    clock: StallTolerantClock,
) -> None:
    loop, waiting = asyncio.get_running_loop(), future()

    def pause() -> None:
        time.sleep(0.05)
        if not waiting.done():
            loop.call_soon(pause)

    loop.call_soon(pause)
    with pytest.raises(TimeoutError):
        await clock.wait(waiting, clock.now() + 0.05)


@asynccontextmanager
async def somebody_waiting(clock: StallTolerantClock) -> AsyncIterator[None]:
    task = asyncio.create_task(clock.wait(future(), clock.now() + 10))
    await asyncio.sleep(0)
    yield
    task.cancel()
    await asyncio.wait([task])


async def test_pauses_of_the_loop_count_as_a_step_each(clock: StallTolerantClock) -> None:
    async with somebody_waiting(clock):
        started = clock.now()
        for _ in range(3):
            asyncio.get_running_loop().call_soon(time.sleep, 0.1)
            await asyncio.sleep(0)
        assert 0 < clock.now() - started < 0.1


async def test_a_loop_that_turns_counts_every_millisecond_and_never_more(clock: StallTolerantClock) -> None:
    async with somebody_waiting(clock):
        started, first = time.monotonic(), clock.now()
        last = first
        while last - first < 0.05:
            await asyncio.sleep(0.001)
            assert last <= clock.now() <= first + time.monotonic() - started + 0.001
            last = clock.now()


async def test_it_stands_still_while_nobody_waits_and_wakes_nobody(clock: StallTolerantClock) -> None:
    async with somebody_waiting(clock):
        await asyncio.sleep(0.03)
    assert clock._timer is None
    before = clock.now()
    await asyncio.sleep(0.03)
    assert clock.now() == before > 0
    with pytest.raises(TimeoutError):
        await clock.wait(future(), clock.now() + 0.02)


async def test_what_somebody_waited_for_counts_also_when_that_was_less_than_a_step(clock: StallTolerantClock) -> None:
    for _ in range(3):
        before, reply = clock.now(), future()
        asyncio.get_running_loop().call_later(0.004, reply.set_result, "here")
        await clock.wait(reply, before + 10)
        assert 0.002 < clock.now() - before < 0.05


async def test_a_cancellation_from_elsewhere_is_no_timeout(clock: StallTolerantClock) -> None:
    task = asyncio.create_task(clock.wait(future(), clock.now() + 10))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _connected() -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    return [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
