"""The lease: of all workers that miss one key, one computes, and the others wait for what it commits.

A lease saves work; no answer depends on it. Whoever loses it, or Redis, computes and answers all the same.

    1. Worker A claims, and leads. B claims, is told to follow, and leaves a mark that somebody waits.
    2. A commits. The mark makes the commit publish a hint; B hears it, claims again, and is given the entry.
    -. The hint is lost: B claims again after a poll interval in any case.
    -. A dies: its lease expires unrenewed, and B's next claim makes it lead.
    -. A stalls, B leads and commits, A continues: its commit finds B's entry, and A answers with that one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from service.cache.entry import Entry
from service.cache.keys import entry_key, lease_keys
from service.cache.redis.auto_pipeline import DeadlineBudget, PendingReply
from service.cache.redis.codec import Accepts, Codec
from service.cache.redis.scripts import ABORT, CLAIM, COMMIT, DISCARD, RENEW, Command
from service.errors import StoreUnavailable

HINTS = "p1:hints"
"""The channel on which a key is published once its lease has ended and somebody waits. One for all: hints are rare."""

LEASE_MS = 2_000
RENEW_SECONDS = LEASE_MS / 3000
POLL_SECONDS = 0.1
MAX_CLAIMS = 3
CLAIMS_MS = 60_000
MAX_UNHEARD = 10_000
"""Claims of unknown outcome that a worker remembers; beyond them, inputs may be refused for a minute."""

Compute = Callable[[], Awaitable[Entry]]
"""Computes an entry."""


class TooManyClaims(Exception):
    """Three workers have claimed this key and not been heard of again: its input may be what killed them."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """An entry and how it came about.

    ``source``: "stored" before anybody was waited for, "followed" from another worker, or "computed" in this one.
    ``stored``: whether Redis has it. ``down``: whether Redis failed on the way.
    """

    entry: Entry
    source: Literal["stored", "followed", "computed"]
    stored: bool = True
    down: bool = False


class Hints:
    """Who in this worker waits for which key."""

    def __init__(self) -> None:
        self._events: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def expected(self, key: str) -> Iterator[asyncio.Event]:
        event = asyncio.Event()
        events = self._events.setdefault(key, set())
        events.add(event)
        try:
            yield event
        finally:
            events.discard(event)
            if not events and self._events.get(key) is events:
                del self._events[key]

    def tell(self, key: str) -> None:
        for event in self._events.get(key, ()):
            event.set()


class Leases:
    """``ask`` sends a command to Redis in a task of its own, or raises StoreUnavailable. Times are in seconds.

    ``compute_seconds``: a lease is not renewed for longer. ``follow_seconds``: nobody waits longer for another worker.
    """

    def __init__(
        self,
        ask: Callable[[Command], PendingReply[Any]],
        codec: Codec,
        compute_seconds: float,
        follow_seconds: float,
    ) -> None:
        self.hints = Hints()
        self._ask = ask
        self._codec = codec
        self._compute_seconds = compute_seconds
        self._follow_seconds = follow_seconds
        self._held: dict[bytes, str] = {}
        self._unheard: dict[bytes, str] = {}

    async def compute_once(self, key: str, compute: Compute, budget: DeadlineBudget, accepts: Accepts) -> Resolved:
        """The key's entry, computed at most once in the cluster. Raises what ``compute`` raises, or TooManyClaims."""
        until = self._codec.clock() + self._follow_seconds
        waited = False  # after that, polls that succeed are no cost of Redis's
        with self.hints.expected(key) as hint:
            while True:
                hint.clear()  # before the claim: a hint that comes while it is under way must wake us
                token = os.urandom(16)
                try:
                    claiming = DeadlineBudget(budget.left) if waited else budget
                    claim = await self._claim(key, token, claiming, accepts)
                except StoreUnavailable:
                    return await self._alone(compute, down=True)
                if isinstance(claim, Entry):
                    return Resolved(claim, "followed" if waited else "stored")
                if claim == "lead":
                    return await self._lead(key, token, compute, budget, accepts)
                if self._codec.clock() >= until:
                    return await self._alone(compute, down=False)
                waited = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await hint.wait()

    def close(self) -> None:
        """Give up the leases still held, so that nobody waits for them to expire."""
        for token, key in self._held.items():
            self._give_up(key, token)

    async def _claim(
        self, key: str, token: bytes, budget: DeadlineBudget, accepts: Accepts
    ) -> Entry | Literal["lead", "follow"]:
        """The committed entry, or this worker's part. A corrupt entry is removed, and claimed for once more."""
        command = CLAIM(lease_keys(key), (token, LEASE_MS, MAX_CLAIMS, CLAIMS_MS))
        try:
            for _ in range(2):
                asked = self._codec.clock()
                part, blob, left_ms = await budget.wait(self._ask(command))
                if self._unheard:
                    self.reconnected()
                if part == b"refused":
                    raise TooManyClaims(f"claimed {MAX_CLAIMS} times within {CLAIMS_MS // 1000} s, and never answered")
                if part != b"stored":
                    return "lead" if part == b"lead" else "follow"
                try:
                    if entry := self._codec.open(key, blob, left_ms, asked, accepts):
                        return entry
                except ValueError:
                    await budget.wait(self._ask(DISCARD([entry_key(key)], [blob])))
            raise StoreUnavailable("the value under this key does not go away")
        except (StoreUnavailable, asyncio.CancelledError):
            self._give_up(key, token)  # the claim may have reached Redis, or may yet
            raise

    async def _lead(
        self, key: str, token: bytes, compute: Compute, budget: DeadlineBudget, accepts: Accepts
    ) -> Resolved:
        self._held[token] = key
        try:
            entry = await self._computed(key, token, compute)
            try:
                return Resolved(await self._commit(key, token, entry, budget, accepts), "computed")
            except (StoreUnavailable, ValueError) as error:
                self._give_up(key, token)
                return Resolved(entry, "computed", stored=False, down=isinstance(error, StoreUnavailable))
        finally:
            self._held.pop(token, None)

    async def _computed(self, key: str, token: bytes, compute: Compute) -> Entry:
        renewal = asyncio.create_task(self._renew(key, token))
        try:
            return await compute()
        except BaseException:
            # Also when cancelled, as at shutdown: the other workers need not wait for the lease to expire.
            self._give_up(key, token)
            raise
        finally:
            renewal.cancel()

    async def _renew(self, key: str, token: bytes) -> None:
        """Keep the lease until the computation has taken too long, or the lease is found lost."""
        until = self._codec.clock() + self._compute_seconds
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if self._codec.clock() >= until:
                return
            # One renewal may fail: the next comes before the lease ends.
            with suppress(StoreUnavailable):
                if not await DeadlineBudget().wait(self._ask(RENEW(lease_keys(key), (token, LEASE_MS)))):
                    return

    async def _commit(self, key: str, token: bytes, entry: Entry, budget: DeadlineBudget, accepts: Accepts) -> Entry:
        """What is stored now: this entry, or the one committed first. Raises ValueError when it cannot be stored."""
        blob, left_ms = self._codec.seal(key, entry)
        command = COMMIT(lease_keys(key), (token, LEASE_MS, blob, left_ms, HINTS, key))
        for _ in range(2):
            asked = self._codec.clock()
            first, first_left_ms = await budget.wait(self._ask(command))
            if first is None:
                return entry
            try:
                if committed := self._codec.open(key, first, first_left_ms, asked, accepts):
                    return committed
            except ValueError:
                await budget.wait(self._ask(DISCARD([entry_key(key)], [first])))
        raise StoreUnavailable("the value under this key does not go away")

    async def _alone(self, compute: Compute, *, down: bool) -> Resolved:
        """Computed for this worker only: it holds no lease, so it stores nothing."""
        return Resolved(await compute(), "computed", stored=False, down=down)

    def reconnected(self) -> None:
        """Redis answers again: take back the claims that it may have carried out after nobody waited for them.

        1. Redis freezes, and a claim times out.   2. Giving it up fails, too.   3. Redis goes on, and carries it out.
        The lease ends by itself, but the claim would count for a minute, as if this worker had died of the input.
        """
        unacknowledged, self._unheard = self._unheard, {}
        for token, key in unacknowledged.items():
            self._give_up(key, token, late=True)

    def _give_up(self, key: str, token: bytes, late: bool = False) -> None:
        """End the lease if it is ours, without waiting: also a cancelled task may still do this."""

        def hear(future: asyncio.Future[Any]) -> None:
            if not future.cancelled() and future.exception() is not None:
                self._remember(key, token)

        try:
            self._ask(ABORT(lease_keys(key), (token, LEASE_MS, HINTS, key, int(late)))).add_done_callback(hear)
        except StoreUnavailable:
            self._remember(key, token)

    def _remember(self, key: str, token: bytes) -> None:
        if len(self._unheard) < MAX_UNHEARD:
            self._unheard[token] = key
