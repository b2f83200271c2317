from __future__ import annotations

import asyncio
import time

import pytest

from service.cache.deadline import deadline

pytestmark = pytest.mark.anyio


async def test_what_takes_too_long_is_ended() -> None:
    with pytest.raises(TimeoutError):
        async with deadline(0.01):
            await asyncio.Event().wait()


async def test_what_ends_in_time_is_left_alone() -> None:
    async with deadline(0.01):
        pass
    await asyncio.sleep(0.02)


async def test_a_reply_that_arrived_while_the_loop_paused_is_taken() -> None:
    reply = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(reply.set_result, "here")
    asyncio.get_running_loop().call_soon(time.sleep, 0.1)
    async with deadline(0.01):
        await asyncio.sleep(0)
        assert await reply == "here"


async def test_after_a_pause_what_still_does_not_arrive_is_ended() -> None:
    asyncio.get_running_loop().call_soon(time.sleep, 0.1)
    with pytest.raises(TimeoutError):
        async with deadline(0.01):
            await asyncio.Event().wait()


async def test_a_pause_of_the_loop_counts_as_one_step() -> None:
    async with deadline(0.2) as spent:
        for _ in range(3):
            asyncio.get_running_loop().call_soon(time.sleep, 0.1)
            await asyncio.sleep(0)
        assert 0.01 <= spent() <= 0.1


async def test_a_loop_that_turns_counts_every_millisecond() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        async with deadline(0.05) as spent:
            while True:
                await asyncio.sleep(0.001)
                assert spent() <= time.monotonic() - started + 0.002


async def test_a_cancellation_from_elsewhere_is_no_timeout() -> None:
    async def wait() -> None:
        async with deadline(10):
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
