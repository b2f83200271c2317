"""The generation of each model: eight random bytes in every key, whose replacement is a purge.

Whatever becomes of messages, connections, workers and Redis: no worker uses a generation for longer than ten seconds
after it was replaced, because what was read from Redis holds for so long, from before Redis was asked. Everything else
only makes it faster:

    1. A reading registers its worker in Redis, in the same script.
    2. A purge replaces the generation, publishes it, and is told who is registered: whoever may still use the old one.
    3. A worker that hears of it reads anew, drops what it has, and only then acknowledges the generation in Redis.
    4. The purge waits until all have, for two seconds at most.
    -. A worker hears nothing: it reads anew every five seconds.
    -. It cannot: ten seconds after the last reading it has no generation, so nothing from before is found. What it
       computes from then on it keeps for ten seconds at most, and a purge whose worker may be cut off says ten seconds.

Generations are numbered, so a worker never returns to one that was replaced, whatever Redis comes back with (an older
snapshot, a replica that lagged behind): it replaces it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from service.cache.entry import seal, unseal
from service.cache.keys import GENERATION_BYTES, acknowledgements_key, generation_key, readers_key
from service.cache.observer import Observer
from service.cache.redis.auto_pipeline import DeadlineBudget, PendingReply
from service.cache.redis.scripts import ACKNOWLEDGE, GENERATIONS, PURGE, Command
from service.errors import StoreUnavailable
from service.logs import FloodLog

logger = logging.getLogger(__name__)

PURGES = "p1:purges"
"""The channel on which the name of a model is published whose generation was replaced."""

VALID_SECONDS = 10.0
"""For so long a reading holds: the worst case of a purge."""

REREAD_SECONDS = 5.0
RETRY_SECONDS = 1.0
ACKNOWLEDGE_SECONDS = 2.0
"""For so long a purge waits for the workers."""

REPLACED = (
    "Redis had a replaced or damaged generation, and a new one was written. If this goes on, a service with another "
    "PREDICT_CACHE_SECRET uses this Redis."
)
FLOOD_SECONDS = 60.0

MAX_NUMBER = 2**62
"""More than any that is counted up to: the next one must have room."""

CUT_OFF_SECONDS = 60.0
"""For so long a worker that has stopped reading without a word may be one that is cut off; then it counts as ended."""

_KEEP_MS = 120_000
_POLL_SECONDS = (0.001, 0.05)
_SEALED_TTL_MS = 1
"""A generation has no lifetime, but is sealed as entries are."""

_ATTEMPTS = 3
_PAYLOAD = struct.Struct(f"!Q{GENERATION_BYTES}s")
_NOT_THE_MASTER = (b"READONLY", b"NOREPLICAS")
"""Who refuses the registration so may be a master of the past: purges happen elsewhere."""


class Generation(NamedTuple):
    """``number``: the time in ms when it was written, or more where that is what it takes to be the next one."""

    number: int
    value: bytes

    def seal(self, model: str, secret: bytes) -> bytes:
        return seal(generation_key(model), _PAYLOAD.pack(*self), _SEALED_TTL_MS, secret)

    @classmethod
    def unseal(cls, model: str, blob: bytes, secret: bytes) -> Generation:
        """Raises ValueError for what was not sealed for this model."""
        payload, _ = unseal(generation_key(model), blob, secret)
        if len(payload) != _PAYLOAD.size or (generation := cls(*_PAYLOAD.unpack(payload))).number > MAX_NUMBER:
            raise ValueError("not a generation")
        return generation


def new_generation() -> bytes:
    return os.urandom(GENERATION_BYTES)


def next_generation(known: Generation | None) -> Generation:
    return Generation(max(known.number + 1 if known else 0, int(time.time() * 1000)), new_generation())


class Purged(NamedTuple):
    """``seconds``: until a worker that has not acknowledged the purge has noticed it in any case; 0 when all have.

    Not 0 either in Redis's first seconds: it may have forgotten who used the generation before.
    """

    workers: int
    acknowledged: int
    seconds: float


class Generations:
    """What this worker knows of them. ``valid_until``: the clock's reading at which it ceases to know.

    ``on_change``: drop what was kept under the generation before.
    """

    def __init__(
        self,
        ask: Callable[[Command], PendingReply[Any]],
        secret: bytes,
        observer: Observer,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self.valid_until = -float("inf")
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self._ask, self._secret, self._observer = ask, secret, observer
        self._clock, self._on_change = clock, on_change
        self._known: dict[str, Generation | None] = {}
        self._wanted = asyncio.Event()
        self._lapsed = False
        self._unsealed_at = -float("inf")
        self._replacements = FloodLog(logger, REPLACED, FLOOD_SECONDS)

    def get(self, model: str) -> bytes | None:
        known = self._known.get(model)
        return known.value if known is not None and self._clock() < self.valid_until else None

    async def register(self, model: str) -> None:
        """Keep the model's generation from now on. Tries once to read it: one deadline at most, no error."""
        self._known.setdefault(model, None)
        await self._try_read()

    async def purge(self, model: str) -> Purged:
        """Replace the model's generation, and wait for the workers.

        Raises StoreRefused, having purged nothing, or StoreUnavailable: Redis may then have carried it out, or may yet.
        """
        generation = next_generation(self._known.get(model))
        sealed = generation.seal(model, self._secret)
        times = [int(VALID_SECONDS * 1000), int(CUT_OFF_SECONDS * 1000)]
        command = PURGE([generation_key(model), readers_key(model)], [sealed, PURGES, model, *times])
        try:
            listening, all_known, registered = await DeadlineBudget().wait(self._ask(command))
        except StoreUnavailable:
            self.reread()
            raise
        noticed_by = self._clock() + VALID_SECONDS
        if self._is_acceptable(model, generation):
            self._learn(model, generation)
        acknowledged, nobody_missing = await self._acknowledged(model, generation, set(registered), listening)
        workers = max(len(acknowledged | set(registered)), listening)
        left = 0.0 if nobody_missing and all_known else max(0.0, noticed_by - self._clock())
        return Purged(workers, len(acknowledged), left)

    def heard(self, model: str) -> None:
        """A purge has been published."""
        if model in self._known:
            self.reread()
        else:  # whoever purges counts all who listen
            self._acknowledge(model)

    def reread(self) -> None:
        """Read them again now, in the background."""
        self._wanted.set()

    async def watch(self) -> None:
        """Runs until cancelled."""
        read = True
        while True:
            with suppress(TimeoutError):
                # Not wait_for, which in Python 3.11 forgets that it was cancelled if the event is set in the same turn.
                async with asyncio.timeout(REREAD_SECONDS if read else RETRY_SECONDS):
                    await self._wanted.wait()
            # Cleared before reading: a purge that is published meanwhile is read in the next round.
            self._wanted.clear()
            read = await self._try_read()

    def close(self) -> None:
        """This worker is to be waited for no more."""
        self.valid_until = -float("inf")
        self._replacements.close()
        for model in self._known:
            self._tell(("ZREM", readers_key(model), self.worker))

    async def _try_read(self) -> bool:
        if not self._known:
            return True
        asked = self._clock()
        try:
            await self._read()
        except StoreUnavailable as error:
            self._say_lapsed(error)
            return False
        self.valid_until = asked + VALID_SECONDS
        if self._lapsed:
            self._lapsed = False
            logger.info("Purges reach this worker again.")
        return True

    async def _read(self) -> None:
        """Raises StoreUnavailable unless Redis, as the master, has told a generation of each model."""
        refused = dict.fromkeys(self._known, b"")
        for _ in range(_ATTEMPTS):
            told = await self._ask_for(refused)
            again = {model: blob for model, blob in told.items() if not self._take(model, blob)}
            if not again:
                return
            refused |= again
        raise StoreUnavailable("a generation that must not be used does not go away")

    async def _ask_for(self, refused: dict[str, bytes]) -> dict[str, bytes]:
        """What Redis has for each model; what is refused is replaced before."""
        new = {model: next_generation(self._known[model]).seal(model, self._secret) for model in refused}
        models = [argument for model in refused for argument in (model, new[model], refused[model])]
        keys = [key for model in refused for key in (generation_key(model), readers_key(model))]
        reply = await DeadlineBudget().wait(self._ask(GENERATIONS(keys, [self.worker, _KEEP_MS, PURGES, *models])))
        if any(unregistered.startswith(_NOT_THE_MASTER) for unregistered in reply[::2]):
            raise StoreUnavailable("Redis is read-only")
        if None in reply:
            raise StoreUnavailable("a generation is lost and cannot be written")
        told = dict(zip(refused, reply[1::2], strict=True))
        for model in refused:
            if refused[model] and told[model] == new[model]:
                self._replacements.add(model=model)
        return told

    def _take(self, model: str, blob: bytes) -> bool:
        """Use what Redis has from now on, if it is not older than what is known, and was sealed by this service."""
        try:
            generation = Generation.unseal(model, blob, self._secret)
        except ValueError:
            self._observer.corrupt()
            # Two services with different secrets would else replace each other's for ever, as fast as they can.
            if self._clock() - self._unsealed_at < RETRY_SECONDS:
                raise StoreUnavailable("a generation that was not sealed here comes back") from None
            self._unsealed_at = self._clock()
            return False
        if not self._is_acceptable(model, generation):
            return False
        self._learn(model, generation)
        return True

    def _is_acceptable(self, model: str, generation: Generation) -> bool:
        known = self._known.get(model)
        return known is None or generation == known or generation.number > known.number

    def _learn(self, model: str, generation: Generation) -> None:
        if self._known.get(model) != generation:
            self._known[model] = generation
            self._on_change()
            self._acknowledge(model, generation.value)  # not before: whoever purges believes it

    async def _acknowledged(
        self, model: str, generation: Generation, registered: set[bytes], listening: int
    ) -> tuple[set[bytes], bool]:
        """Who uses this generation, or the one that has replaced it since, and whether nobody is missing."""
        acknowledged: set[bytes] = set()
        until, pause = time.monotonic() + ACKNOWLEDGE_SECONDS, _POLL_SECONDS[0]
        while True:
            later = self._known.get(model)
            if later is None or not later.number > generation.number:
                later = generation
            keys = (acknowledgements_key(model, of) for of in (b"", generation.value, later.value))
            with suppress(StoreUnavailable):
                acknowledged |= set(await DeadlineBudget().wait(self._ask(("SUNION", *keys))))
            nobody_missing = registered <= acknowledged and len(acknowledged) >= listening
            if nobody_missing or time.monotonic() >= until:
                return acknowledged, nobody_missing
            await asyncio.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS[1])

    def _say_lapsed(self, error: StoreUnavailable) -> None:
        if not self._lapsed and self._clock() >= self.valid_until:
            self._lapsed = True
            logger.warning(
                "Purges cannot reach this worker (%s): it gives no cached answer that is older than %g s.",
                error,
                VALID_SECONDS,
            )

    def _acknowledge(self, model: str, generation: bytes = b"") -> None:
        self._tell(ACKNOWLEDGE([acknowledgements_key(model, generation)], [self.worker, _KEEP_MS]))

    def _tell(self, command: Command) -> None:
        """Without waiting, and whether or not Redis hears it."""
        with suppress(StoreUnavailable):
            self._ask(command).add_done_callback(lambda told: told.cancelled() or told.exception())
