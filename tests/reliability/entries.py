"""Values in Redis that are damaged, foreign or misplaced: how many of them are served."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Sequence

from redis import Redis

from tests.reliability.fixture import Fixture
from tests.reliability.once import Figures
from tests.support.client import Connection, Response
from tests.support.probe import expected, target
from tests.support.process import becomes
from tests.support.redis_server import RedisServer
from tests.support.server import Server

COUNT = 50
"""Entries for each kind of damage."""
CLIENTS = 8

Change = Callable[[bytes], bytes]
TTL_MS = 100_000


def _flip_one_bit(value: bytes) -> bytes:
    position = random.randrange(8 * len(value))
    return (int.from_bytes(value, "big") ^ (1 << position)).to_bytes(len(value), "big")


CHANGES: dict[str, Change] = {
    "randomised": lambda value: os.urandom(len(value)),
    "truncated": lambda value: value[: random.randrange(len(value))],
    "one bit flipped": _flip_one_bit,
    "emptied": lambda value: b"",
}


def _change(redis: Redis, keys: Sequence[bytes], change: Change) -> None:
    for key in keys:
        value = redis.get(key)
        assert isinstance(value, bytes)
        redis.set(key, change(value), px=TTL_MS)


def _retype(redis: Redis, keys: Sequence[bytes]) -> None:
    for key in keys:
        redis.delete(key)
        redis.rpush(key, b"a list")
        redis.pexpire(key, TTL_MS)


def _persist(redis: Redis, keys: Sequence[bytes]) -> None:
    for key in keys:
        redis.persist(key)


def _rotate(redis: Redis, keys: Sequence[bytes]) -> None:
    """Every key gets the valid value of another."""
    dumps = [redis.dump(key) for key in keys]
    for key, dump in zip(keys, dumps[1:] + dumps[:1], strict=True):
        assert isinstance(dump, bytes)
        redis.restore(key, TTL_MS, dump, replace=True)


def _damages() -> Iterator[tuple[str, Callable[[Redis, Sequence[bytes]], None]]]:
    for name, change in CHANGES.items():
        yield name, lambda redis, keys, change=change: _change(redis, keys, change)  # type: ignore[misc]
    yield from {"of another type": _retype, "without TTL": _persist, "copied from another key": _rotate}.items()


async def entries(fixture: Fixture) -> Figures:
    """Asked once and thus stored; damaged; asked again, and once more."""
    found: Figures = {}
    with fixture.redis() as redis, fixture.service(redis.url) as server:
        for name, damage in _damages():
            fixture.say(f"entries: {COUNT} {name}")
            found[name] = await _suffer(fixture, redis, server, damage)
    return found


async def _suffer(
    fixture: Fixture, redis: RedisServer, server: Server, damage: Callable[[Redis, Sequence[bytes]], None]
) -> Figures:
    xs = [fixture.fresh() for _ in range(COUNT)]
    others = redis.entries()
    await _ask_all(server, xs)
    await becomes(lambda: len(redis.entries() - others) == COUNT)
    damage(redis.client, sorted(redis.entries() - others))
    after = await _ask_all(server, xs)
    later = await _ask_all(server, xs)
    return {
        "entries": COUNT,
        "wrong": sum(_is_wrong(answer, x) for answers in (after, later) for answer, x in zip(answers, xs, strict=True)),
        "served": sum(answer.hit for answer in after),
        "computed_again": fixture.book.count(*xs) - COUNT,
        "hits_right_after": sum(answer.hit for answer in later),
    }


def _is_wrong(answer: Response, x: float) -> bool:
    return answer.status != 200 or answer.json()["probabilities"] != expected(x)


async def _ask_all(server: Server, xs: Sequence[float]) -> list[Response]:
    """In order, over a few connections."""

    async def share(number: int) -> list[Response]:
        async with await Connection.open(server.address) as connection:
            return [await connection.get(target(x)) for x in xs[number::CLIENTS]]

    shares = await asyncio.gather(*(share(number) for number in range(CLIENTS)))
    return [shares[number % CLIENTS][number // CLIENTS] for number in range(len(xs))]
