"""The lease: of all workers that miss one key, one computes, and the others wait for the entry that it commits.

A lease saves work; no answer depends on it. A worker that loses its lease, or Redis, computes and answers all the same.

    1. Worker A claims, and leads. B claims, is told to follow, and the claim leaves a mark that a worker waits.
    2. A commits. Because of the mark, the commit publishes a hint. B hears it, claims again, and gets the entry.
    -. The hint is lost: B claims again after a poll interval in any case.
    -. A dies: nobody renews its lease, so it expires, and B's next claim makes B lead.
    -. A stalls, B leads and commits, A goes on: A's commit finds B's entry, and A answers with that entry.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from service.cache.entry import Accepts, Codec, Entry, anything
from service.cache.keys import RedisKeys
from service.cache.redis.auto_pipeline import DeadlineBudget, PendingReply
from service.cache.redis.scripts import ABORT, CLAIM, COMMIT, RENEW, Command, Invocation
from service.errors import StoreUnavailable

LEASE_MS = 2_000
RENEW_SECONDS = LEASE_MS / 3000
POLL_SECONDS = 0.1
MAX_CLAIMS = 3
CLAIMS_MS = 60_000
ATTEMPTS = 3
"""How often a claim or a commit may find a corrupt value. The value is removed before the next attempt."""
MAX_UNACKNOWLEDGED = 10_000
"""A worker remembers so many claims of unknown outcome. The inputs of further ones may be refused for a minute."""

Compute = Callable[[], Awaitable[Entry]]


class Waits(NamedTuple):
    """In seconds. ``compute``: the longest that a lease is renewed. ``follow``: the longest that a follower waits."""

    compute: float = 60.0
    follow: float = 20.0


DEFAULT_WAITS = Waits()


class TooManyClaims(Exception):
    """Three workers have claimed this key and never answered: its input may have killed them."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """An entry and how it came about.

    ``source``: Redis had it at the first claim ("stored"), another worker committed it meanwhile ("followed"), or this
    worker computed it ("computed"). ``stored``: Redis has it. ``down``: Redis failed on the way.
    """

    entry: Entry
    source: Literal["stored", "followed", "computed"]
    stored: bool = True
    down: bool = False


class Leases:
    """``ask`` sends a command to Redis, or raises StoreUnavailable where Redis takes no writes. ``tell`` sends one that
    nobody waits for, and calls its second argument if that fails."""

    def __init__(
        self,
        ask: Callable[[Command], PendingReply[Any]],
        tell: Callable[[Command, Callable[[], None]], None],
        keys: RedisKeys,
        codec: Codec,
        waits: Waits,
    ) -> None:
        self._ask, self._tell, self._keys, self._codec, self._waits = ask, tell, keys, codec, waits
        self._hints: dict[str, asyncio.Event] = {}
        self._held: dict[bytes, tuple[str, float]] = {}
        self._renewal: asyncio.Task[None] | None = None
        self._unacknowledged: dict[bytes, str] = {}

    async def compute_once(
        self, key: str, compute: Compute, budget: DeadlineBudget | None = None, accepts: Accepts = anything
    ) -> Resolved:
        """The key's entry, computed at most once in the cluster. Raises what ``compute`` raises, or TooManyClaims.

        When Redis fails, this worker computes the entry and does not store it.
        """
        budget, until = budget or DeadlineBudget(), self._codec.clock() + self._waits.follow
        waited = False  # a follower's polls do not use up its budget
        hint = self._hints[key] = asyncio.Event()
        try:
            while True:
                hint.clear()  # before the claim: a hint that comes during the claim must wake this follower
                token = os.urandom(16)
                try:
                    claiming = DeadlineBudget(budget.left) if waited else budget
                    claim = await self._claim(key, token, claiming, accepts)
                except StoreUnavailable:
                    return Resolved(await compute(), "computed", stored=False, down=True)
                if isinstance(claim, Entry):
                    return Resolved(claim, "followed" if waited else "stored")
                if claim == "lead":
                    return await self._lead(key, token, compute, budget, accepts)
                if self._codec.clock() >= until:
                    return Resolved(await compute(), "computed", stored=False)
                waited = True
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await hint.wait()
        finally:
            self._hints.pop(key, None)

    def heard(self, key: str) -> None:
        """A lease on the key has ended. Without this hint a follower finds out by its next poll."""
        if (hint := self._hints.get(key)) is not None:
            hint.set()

    def close(self) -> None:
        """Give up the leases that are still held, so that no follower waits for them to expire."""
        if self._renewal is not None:
            self._renewal.cancel()
        for token, (key, _) in self._held.items():
            self._give_up(key, token)

    async def _claim(
        self, key: str, token: bytes, budget: DeadlineBudget, accepts: Accepts
    ) -> Entry | Literal["lead", "follow"]:
        """The committed entry, or this worker's part. A corrupt entry is removed, and the claim repeated."""
        command = Invocation(CLAIM, self._keys.lease(key), (token, LEASE_MS, MAX_CLAIMS, CLAIMS_MS))
        try:
            for _ in range(ATTEMPTS):
                asked = self._codec.clock()
                part, blob, left_ms = await budget.wait(self._ask(command))
                if self._unacknowledged:
                    self.reconnected()
                if part == b"refused":
                    raise TooManyClaims(f"claimed {MAX_CLAIMS} times within {CLAIMS_MS // 1000} s, and never answered")
                if part != b"stored":
                    return "lead" if part == b"lead" else "follow"
                if entry := self._codec.open(key, blob, left_ms, asked, accepts):
                    return entry
            raise StoreUnavailable("the value under this key does not go away")
        except (StoreUnavailable, asyncio.CancelledError):
            self._give_up(key, token)  # Redis may have carried the claim out, or may do so later
            raise

    async def _lead(
        self, key: str, token: bytes, compute: Compute, budget: DeadlineBudget, accepts: Accepts
    ) -> Resolved:
        self._hold(key, token)
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
        try:
            return await compute()
        except BaseException:
            # Also when cancelled, as at shutdown: then no follower waits for the lease to expire.
            self._give_up(key, token)
            raise

    def _hold(self, key: str, token: bytes) -> None:
        self._held[token] = key, self._codec.clock() + self._waits.compute
        if self._renewal is None or self._renewal.done():
            self._renewal = asyncio.create_task(self._renew(), context=Context())  # of no request

    async def _renew(self) -> None:
        """Renew the leases that are held, but not those whose computations take too long. One task does so for all,
        because most leases end before they need it."""
        while self._held:
            await asyncio.sleep(RENEW_SECONDS)
            now = self._codec.clock()
            for token, (key, until) in self._held.items():
                if now < until:
                    # One renewal may fail, because the next one comes before the lease ends.
                    self._tell(Invocation(RENEW, self._keys.lease(key), (token, LEASE_MS)), lambda: None)

    async def _commit(self, key: str, token: bytes, entry: Entry, budget: DeadlineBudget, accepts: Accepts) -> Entry:
        """The entry that is stored now: this one, or the one committed first. Raises ValueError if it is too large."""
        blob, left_ms = self._codec.seal(key, entry, self._codec.clock())
        command = Invocation(COMMIT, self._keys.lease(key), (token, LEASE_MS, blob, left_ms, self._keys.hints, key))
        for _ in range(ATTEMPTS):
            asked = self._codec.clock()
            first, first_left_ms = await budget.wait(self._ask(command))
            if first is None:
                return entry
            if committed := self._codec.open(key, first, first_left_ms, asked, accepts):
                return committed
        raise StoreUnavailable("the value under this key does not go away")

    def reconnected(self) -> None:
        """Redis answers again: take back claims of unknown outcome.

        1. Redis freezes, and a claim times out.   2. Giving it up fails, too.   3. Redis goes on and carries it out.
        The lease ends by itself, but the claim would count for a minute, as if the input had killed this worker.
        """
        unacknowledged, self._unacknowledged = self._unacknowledged, {}
        for token, key in unacknowledged.items():
            self._give_up(key, token, late=True)

    def _give_up(self, key: str, token: bytes, late: bool = False) -> None:
        """End the lease if it is ours, without waiting. So a cancelled task can do it, too."""

        def remember() -> None:
            if len(self._unacknowledged) < MAX_UNACKNOWLEDGED:
                self._unacknowledged[token] = key

        arguments = (token, LEASE_MS, self._keys.hints, key, int(late))
        self._tell(Invocation(ABORT, self._keys.lease(key), arguments), remember)
