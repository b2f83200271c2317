"""The generation of each model: eight random bytes in every key. A purge replaces them.

No worker uses a generation for longer than ten seconds after it was replaced, whatever fails: a reading from Redis is
valid for ten seconds, counted from before Redis was asked. Everything else only makes purges faster:

    1. The script that reads the generations also registers the worker as a reader.
    2. A purge replaces the generation, publishes that, and gets the readers: they may still use the old one.
    3. A worker that hears of it reads again, drops what it has, and then acknowledges the generation in Redis.
    4. The purge waits until all readers have acknowledged, for two seconds at most.
    -. A worker hears nothing: it reads again every five seconds.
    -. A worker cannot read: ten seconds after its last reading it has no generation, so it finds nothing from before.
       From then on it keeps what it computes for ten seconds, and a purge that may have missed it says ten seconds.

Generations are numbered. When Redis returns with an older one (a snapshot, a lagging replica), a worker that knows a
later number replaces it again.
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
from service.cache.keys import GENERATION_BYTES, RedisKeys
from service.cache.redis.auto_pipeline import AutoPipeline, DeadlineBudget
from service.cache.redis.scripts import ACKNOWLEDGE, GENERATIONS, PURGE, Invocation
from service.errors import StoreUnavailable
from service.logs import FloodLog

logger = logging.getLogger(__name__)

VALID_SECONDS = 10.0
"""How long a reading is valid: the worst case of a purge."""

REREAD_SECONDS = 5.0
RETRY_SECONDS = 1.0
ACKNOWLEDGE_SECONDS = 2.0
"""How long a purge waits for acknowledgements."""

REPLACED = (
    "Redis had a replaced or damaged generation, and a new one was written. If this goes on, a service with another "
    "PREDICT_CACHE_SECRET uses this Redis."
)
FLOOD_SECONDS = 60.0

MAX_NUMBER = 2**62
"""Larger numbers are refused, so that there is always a next one."""

CUT_OFF_SECONDS = 60.0
"""A worker that stopped reading without a word counts as cut off for so long, and as ended after that."""

_KEEP_MS = 120_000
_POLL_SECONDS = (0.001, 0.05)
_SEALED_TTL_MS = 1
"""A generation has no lifetime, but is sealed as entries are."""

_ATTEMPTS = 3
_PAYLOAD = struct.Struct(f"!Q{GENERATION_BYTES}s")
_NOT_THE_MASTER = (b"READONLY", b"NOREPLICAS")
"""A server that refuses a registration so may be a former master, while purges happen on another server."""


class Generation(NamedTuple):
    """``number``: the time in ms when it was written, or the last number plus one if that is more."""

    number: int
    value: bytes

    def seal(self, key: str, secret: bytes) -> bytes:
        return seal(key, _PAYLOAD.pack(*self), _SEALED_TTL_MS, secret)

    @classmethod
    def unseal(cls, key: str, blob: bytes, secret: bytes) -> Generation:
        """Raises ValueError for what was not sealed for this key."""
        payload, _ = unseal(key, blob, secret)
        if len(payload) != _PAYLOAD.size or (generation := cls(*_PAYLOAD.unpack(payload))).number > MAX_NUMBER:
            raise ValueError("not a generation")
        return generation


def new_generation() -> bytes:
    return os.urandom(GENERATION_BYTES)


def next_generation(known: Generation | None) -> Generation:
    return Generation(max(known.number + 1 if known else 0, int(time.time() * 1000)), new_generation())


class Purged(NamedTuple):
    """``seconds``: the longest time until workers without an acknowledgement notice the purge. 0 when all have
    acknowledged it, except in Redis's first seconds: Redis may have forgotten readers.
    """

    workers: int
    acknowledged: int
    seconds: float


class Generations:
    """The generations that this worker knows, until the clock reads ``valid_until``.

    ``on_change``: drop what was kept under the generation before.
    """

    def __init__(
        self,
        pipeline: AutoPipeline[Any, Any],
        keys: RedisKeys,
        secret: bytes,
        corrupt: Callable[[], None],
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self.valid_until = -float("inf")
        self.worker = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self._pipeline, self._keys, self._secret, self._count_corrupt = pipeline, keys, secret, corrupt
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
        """Keep the model's generation from now on, and try once to read it: one deadline at most, and no error."""
        self._known.setdefault(model, None)
        await self._try_read()

    async def purge(self, model: str) -> Purged:
        """Replace the model's generation, and wait for the workers.

        Raises StoreRefused when nothing was purged, or StoreUnavailable when Redis may have purged, or may do so later.
        """
        generation = next_generation(self._known.get(model))
        keys = [self._keys.generation(model), self._keys.readers(model)]
        sealed = generation.seal(keys[0], self._secret)
        times = [int(VALID_SECONDS * 1000), int(CUT_OFF_SECONDS * 1000)]
        command = Invocation(PURGE, keys, [sealed, self._keys.purges, model, *times])
        try:
            listening, all_known, registered = await DeadlineBudget().wait(self._pipeline.ask(command))
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
        """A purge of the model was published."""
        if model in self._known:
            self.reread()
        else:  # the purge counts all listeners, so this worker must acknowledge as well
            self._acknowledge(model)

    def reread(self) -> None:
        """Read the generations again now, in the background."""
        self._wanted.set()

    async def watch(self) -> None:
        """Runs until cancelled."""
        read = True
        while True:
            with suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it forgets its cancellation if the event is set in the same turn.
                async with asyncio.timeout(REREAD_SECONDS if read else RETRY_SECONDS):
                    await self._wanted.wait()
            # Cleared before reading, so that a purge which is published meanwhile leads to another reading.
            self._wanted.clear()
            read = await self._try_read()

    def close(self) -> None:
        """Tell Redis that no purge need wait for this worker any more."""
        self.valid_until = -float("inf")
        self._replacements.close()
        for model in self._known:
            self._pipeline.tell(("ZREM", self._keys.readers(model), self.worker))

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
        """Raises StoreUnavailable unless a master gives a usable generation of each model."""
        refused = dict.fromkeys(self._known, b"")
        for _ in range(_ATTEMPTS):
            stored = await self._ask_for(refused)
            again = {model: blob for model, blob in stored.items() if not self._take(model, blob)}
            if not again:
                return
            refused |= again
        raise StoreUnavailable("a replaced generation does not go away")

    async def _ask_for(self, refused: dict[str, bytes]) -> dict[str, bytes]:
        """Model -> the sealed generation in Redis, where the script first replaces each that is in ``refused``."""
        keys = [key for model in refused for key in (self._keys.generation(model), self._keys.readers(model))]
        new = {
            model: next_generation(self._known[model]).seal(key, self._secret)
            for model, key in zip(refused, keys[::2], strict=True)
        }
        models = [argument for model in refused for argument in (model, new[model], refused[model])]
        command = Invocation(GENERATIONS, keys, [self.worker, _KEEP_MS, self._keys.purges, *models])
        reply = await DeadlineBudget().wait(self._pipeline.ask(command))
        if any(unregistered.startswith(_NOT_THE_MASTER) for unregistered in reply[::2]):
            raise StoreUnavailable("Redis is read-only")
        if None in reply:
            raise StoreUnavailable("a generation is missing and cannot be written")
        stored = dict(zip(refused, reply[1::2], strict=True))
        for model in refused:
            if refused[model] and stored[model] == new[model]:
                self._replacements.add(model=model)
        return stored

    def _take(self, model: str, blob: bytes) -> bool:
        """Use this generation from now on, if this service sealed it and it is not older than the known one."""
        try:
            generation = Generation.unseal(self._keys.generation(model), blob, self._secret)
        except ValueError:
            self._count_corrupt()
            # Without a pause, two services with different secrets would replace each other's generations all the time.
            if self._clock() - self._unsealed_at < RETRY_SECONDS:
                raise StoreUnavailable("a service with another secret replaces the generation") from None
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
            self._acknowledge(model, generation.value)  # last: the purge relies on it

    async def _acknowledged(
        self, model: str, generation: Generation, registered: set[bytes], listening: int
    ) -> tuple[set[bytes], bool]:
        """The workers that use this generation or a later one, and whether nobody is missing."""
        acknowledged: set[bytes] = set()
        until, pause = time.monotonic() + ACKNOWLEDGE_SECONDS, _POLL_SECONDS[0]
        while True:
            later = self._known.get(model)
            if later is None or not later.number > generation.number:
                later = generation
            keys = (self._keys.acknowledgements(model, of) for of in (b"", generation.value, later.value))
            with suppress(StoreUnavailable):
                acknowledged |= set(await DeadlineBudget().wait(self._pipeline.ask(("SUNION", *keys))))
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
        self._pipeline.tell(
            Invocation(ACKNOWLEDGE, [self._keys.acknowledgements(model, generation)], [self.worker, _KEEP_MS])
        )
