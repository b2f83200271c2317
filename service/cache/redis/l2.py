"""L2: the answers that all workers share, in Redis."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, Literal, TypeAlias

from service.cache.entry import Accepts, Codec, Entry, anything
from service.cache.generations import Generations, Purged, new_generation
from service.cache.keys import RedisKeys
from service.cache.lease import DEFAULT_WAITS, Leases, Waits
from service.cache.redis.auto_pipeline import (
    AutoPipeline,
    DeadlineBudget,
    PendingReply,
    StallTolerantClock,
    join,
    split,
    weight,
)
from service.cache.redis.breaker import State
from service.cache.redis.client import Observer, RedisClient
from service.cache.redis.scripts import COUNT, DISCARD, PUT, READ, Argument, Command, Invocation
from service.cache.redis.subscriber import Subscriber
from service.errors import StoreRefused

logger = logging.getLogger(__name__)

_MEANING = {
    "up": "Redis answers: it is used.",
    "read-only": "Redis takes no writes: what it has is read, and nothing is stored there.",
    "down": "Redis is not used: this worker has only its own cache.",
}

MAX_IN_FLIGHT = 4  # round trips; the client has as many connections, and one more for PING
KEYS_PER_TRIP = 256
"""Redis looks so many up in half a millisecond, and meanwhile answers nobody else. A batch asks for no more at once."""

COUNTED_SECONDS = 86_400
"""Distinct questions are counted for so long, and then anew: traffic of long ago says little."""


class RedisCache:
    """Made by ``open_redis``. Whatever Redis does, a method raises StoreUnavailable or nothing.

    A ``budget`` is what Redis may still cost one request: give the same one to all calls on its behalf.
    """

    state: State

    def __init__(
        self,
        url: str,
        keys: RedisKeys,
        secret: bytes,
        observer: Observer,
        on_change: Callable[[], None],
        clock: Callable[[], float],
        waits: Waits,
    ) -> None:
        self.state, self._troubled = "down", False
        self._keys = keys
        self._codec = Codec(secret, clock, observer.corrupt, self._discard)
        self._on_change = on_change
        waiting = StallTolerantClock()
        reconnect: Callable[[], None] = lambda: self._subscriber.reconnect()  # noqa: E731 - there is no subscriber yet
        self._client = RedisClient(url, waiting, self._on_state, observer, reconnect, keys.probe)
        self._pipeline: AutoPipeline[Command, Any] = AutoPipeline(
            self._execute, MAX_IN_FLIGHT, KEYS_PER_TRIP, waiting, weight
        )
        self._generations = Generations(self._pipeline, keys, secret, observer.corrupt, clock, on_change)
        self._leases = Leases(self._ask_to_write, self._tell_to_write, keys, self._codec, waits)
        self.generation, self.register = self._generations.get, self._generations.register
        self.compute_once = self._leases.compute_once
        handlers = {keys.purges: self._generations.heard, keys.hints: self._leases.heard}
        self._subscriber = Subscriber(self._client, handlers, self._on_resubscribed)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Send a first PING, one deadline at most, and start the background tasks; raises ConfigurationError."""
        await self._client.breaker.probe()
        for watch in (self._client.breaker.watch, self._generations.watch, self._subscriber.watch):
            task = asyncio.create_task(watch(), name=watch.__qualname__)
            task.add_done_callback(_surface)
            self._tasks.append(task)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._leases.close()
        self._generations.close()
        await self._pipeline.close()
        self._client.close()
        self._codec.close()

    @property
    def valid_until(self) -> float:
        """Until this reading of the clock all generations are known. Each time they are read it moves on."""
        return self._generations.valid_until

    async def purge(self, model: str) -> Purged:
        """Forget all answers of the model on every worker; raises as ``Generations.purge``."""
        self._require(self._client.breaker.closed)
        return await self._generations.purge(model)

    async def get(self, key: str, budget: DeadlineBudget | None = None, accepts: Accepts = anything) -> Entry | None:
        """The entry, or None. A value that this service did not write under this key, or that ``accepts`` refuses, is
        counted and removed, and is a miss."""
        return (await self.get_many([key], budget, accepts)).get(key)

    async def get_many(
        self, keys: Sequence[str], budget: DeadlineBudget | None = None, accepts: Accepts = anything
    ) -> dict[str, Entry]:
        """As ``get`` of each key, all in one command: those that there are."""
        self._require(self._client.breaker.closed)
        asked, pending = self._codec.clock(), self._pipeline.ask(Invocation(READ, self._keys.entries(keys)))
        found = {}
        for key, (blob, left_ms) in zip(keys, await (budget or DeadlineBudget()).wait(pending), strict=True):
            if blob is not None and (entry := self._codec.open(key, blob, left_ms, asked, accepts)):
                found[key] = entry
        return found

    async def put(
        self,
        key: str,
        entry: Entry,
        *,
        overwrite: bool = False,
        budget: DeadlineBudget | None = None,
        accepts: Accepts = anything,
    ) -> Entry:
        """The entry that is stored now: this one, or the one that another worker committed first.

        An entry that is too large or has expired is not stored, without an error.
        """
        return (await self.put_many({key: entry}, overwrite=overwrite, budget=budget, accepts=accepts))[key]

    async def put_many(
        self,
        entries: Mapping[str, Entry],
        *,
        overwrite: bool = False,
        budget: DeadlineBudget | None = None,
        accepts: Accepts = anything,
    ) -> dict[str, Entry]:
        """As ``put`` of each, all in one command."""
        self._require(self._client.breaker.writable)
        budget = budget or DeadlineBudget()
        stored, written, arguments = dict(entries), [], list[Argument]()
        asked = self._codec.clock()
        for key, entry in entries.items():
            try:
                blob, left_ms = self._codec.seal(key, entry, asked)
            except ValueError:
                continue
            arguments += (blob, -left_ms if overwrite else left_ms)
            written.append(key)
        if not written:
            return stored
        pending = self._pipeline.ask(Invocation(PUT, self._keys.entries(written), arguments))
        for key, (first, left_ms) in zip(written, await budget.wait(pending), strict=True):
            if first is None:
                continue
            committed = self._codec.open(key, first, left_ms, asked, accepts)
            # Where there was a value that is no entry, this one replaces it.
            stored[key] = committed or await self.put(key, entries[key], overwrite=True, budget=budget)
        return stored

    async def delete(self, key: str) -> None:
        """Forget one answer; raises StoreUnavailable."""
        await DeadlineBudget().wait(self._ask_to_write(("UNLINK", self._keys.entry(key))))

    async def touch(self, keys: Collection[str]) -> None:
        """Tell Redis that these keys are in use: it evicts the least used. Raises StoreUnavailable."""
        await DeadlineBudget().wait(self._ask_to_write(("TOUCH", *map(self._keys.entry, keys))))

    async def count(self, model: str, keys: Collection[str], asked: int, hits: int) -> list[int]:
        """Add the keys of a model's questions, and counts of questions and hits, and return the cluster's: questions,
        hits, and an estimate of how many questions were distinct. Raises StoreUnavailable."""
        command = Invocation(COUNT, self._keys.distinct_questions(model), (COUNTED_SECONDS, asked, hits, *keys))
        counts: list[int] = await DeadlineBudget().wait(self._ask_to_write(command))
        return counts

    def _discard(self, key: str, blob: bytes) -> None:
        self._tell_to_write(Invocation(DISCARD, [self._keys.entry(key)], [blob]))

    def _ask_to_write(self, command: Command) -> PendingReply[Any]:
        self._require(self._client.breaker.writable)
        return self._pipeline.ask(command)

    def _tell_to_write(self, command: Command, failed: Callable[[], None] = lambda: None) -> None:
        """Where Redis takes no writes it is not even asked: each refusal would make the pause of writes longer."""
        if self._client.breaker.writable:
            self._pipeline.tell(command, failed)
        else:
            failed()

    async def _execute(self, items: list[Command], seconds: float) -> list[Any]:
        return split(items, await self._client.run(join(items), seconds))

    def _require(self, usable: bool) -> None:
        if not usable:
            raise StoreRefused("Redis is down, full or read-only")

    def _on_state(self, state: State, reason: str) -> None:
        level = logging.INFO if state == "up" and not self._troubled else logging.WARNING
        extra = {"state": state, "reason": reason}
        Context().run(logger.log, level, _MEANING[state], extra=extra)  # without the id of a request
        self.state, self._troubled = state, state != "up"
        if state != "down":
            self._generations.reread()
            self._leases.reconnected()

    def _on_resubscribed(self) -> None:
        self._on_change()
        self._generations.reread()


def _surface(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.result()  # raises only for a defect, for the event loop's exception handler to report


class NoRedis:
    """An L2 that stores nothing. A generation lasts as long as this process."""

    state: Literal["off"] = "off"
    valid_until = math.inf

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._generations: dict[str, bytes] = {}
        self._on_change = on_change

    def generation(self, model: str) -> bytes:
        generation = self._generations.get(model)
        if generation is None:
            generation = self._generations[model] = new_generation()
        return generation

    async def register(self, model: str) -> None:
        self.generation(model)

    async def purge(self, model: str) -> Purged:
        self._generations[model] = new_generation()
        self._on_change()
        return Purged(workers=1, acknowledged=1, seconds=0.0)

    async def get(self, *_: object) -> None:
        return None

    async def delete(self, key: str) -> None:
        """Nothing is stored."""

    async def touch(self, keys: Collection[str]) -> None:
        """Nothing is evicted."""

    async def count(self, model: str, keys: Collection[str], asked: int, hits: int) -> None:
        """Distinct questions are not counted without Redis."""


L2: TypeAlias = RedisCache | NoRedis


@asynccontextmanager
async def open_redis(
    url: str,
    *,
    secret: bytes,
    prefix: str = "p1",
    observer: Observer,
    on_change: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.monotonic,
    waits: Waits = DEFAULT_WAITS,
) -> AsyncIterator[L2]:
    """L2 at the URL (``redis://``, ``rediss://`` or ``unix://``), reachable or not; without a URL one that is off.

    ``on_change``: drop what L1 has. A model's generation is another one, or messages about purges may have been lost.
    """
    if not url:
        yield NoRedis(on_change)
        return
    cache = RedisCache(url, RedisKeys(prefix), secret, observer, on_change, clock, waits)
    try:
        await cache.open()
        yield cache
    finally:
        await cache.close()
