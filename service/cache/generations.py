"""The generation of each model: eight random bytes in every key, whose replacement is a purge."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from service.cache.joined import Allowance, Asked
from service.cache.keys import GENERATION_BYTES, generation_key
from service.cache.scripts import GENERATIONS, PURGE, Command
from service.errors import StoreUnavailable

PURGES = "p1:purges"
"""The channel on which the name of a purged model is published."""

REREAD_SECONDS = 5.0


def new_generation() -> bytes:
    return os.urandom(GENERATION_BYTES)


class Generations:
    """What this worker knows of them: read anew every five seconds, and when ``reread`` is called.

    Without Redis the last known ones stay in use, for L1's sake.
    """

    def __init__(
        self,
        ask: Callable[[Command], Asked[Any]],
        on_change: Callable[[str], None],
    ) -> None:
        self._ask = ask
        self._on_change = on_change
        self._known: dict[str, bytes | None] = {}
        self._wanted = asyncio.Event()

    def get(self, model: str) -> bytes | None:
        return self._known.get(model)

    async def register(self, model: str) -> None:
        """Keep the model's generation from now on. Tries once to read it: one deadline at most, no error."""
        self._known.setdefault(model, None)
        await self._try_read()

    async def purge(self, model: str) -> None:
        """Replace the model's generation everywhere.

        Raises StoreUnavailable, having purged nothing: a generation that only this worker knew would be taken back at
        the next reading, and with it the purged answers. (Past a deadline the purge may have happened all the same.)
        """
        generation = new_generation()
        await Allowance().wait(self._ask(PURGE([generation_key(model)], [generation, PURGES, model])))
        self._learn(model, generation)

    def reread(self) -> None:
        """Read them again now, in the background."""
        self._wanted.set()

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), REREAD_SECONDS)
            # Cleared before reading: a purge that is published meanwhile is read in the next round.
            self._wanted.clear()
            await self._try_read()

    async def _try_read(self) -> None:
        models = list(self._known)
        if not models:
            return
        command = GENERATIONS([generation_key(model) for model in models], [new_generation() for _ in models])
        try:
            generations = await Allowance().wait(self._ask(command))
        except StoreUnavailable:
            return
        for model, generation in zip(models, generations, strict=True):
            if generation is not None:
                self._learn(model, generation)

    def _learn(self, model: str, generation: bytes) -> None:
        if self._known.get(model) != generation:
            self._known[model] = generation
            self._on_change(model)
