"""The threads that call a predictor, so that the event loop does not."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress

from service.inference.predictor import Compute, Outcome


class ModelThreads:
    """Threads that call ``compute``, which never raises, one batch at a time each. They are daemons, so a call that
    hangs does not keep the process alive."""

    def __init__(self, compute: Compute, name: str, count: int = 1) -> None:
        self._compute = compute
        self._loop = asyncio.get_running_loop()
        self._batches: queue.SimpleQueue[tuple[Sequence[bytes], asyncio.Future[list[Outcome]]] | None]
        self._batches = queue.SimpleQueue()
        self._count = count
        for _ in range(count):
            threading.Thread(target=self._work, name=f"predict-{name}", daemon=True).start()

    def run(self, payloads: Sequence[bytes]) -> asyncio.Future[list[Outcome]]:
        """One outcome per payload; never raises."""
        done: asyncio.Future[list[Outcome]] = self._loop.create_future()
        self._batches.put((payloads, done))
        return done

    def stop(self) -> None:
        for _ in range(self._count):
            self._batches.put(None)

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            payloads, done = batch
            outcomes = self._compute(payloads)
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(_resolve, done, outcomes)


def _resolve(done: asyncio.Future[list[Outcome]], outcomes: list[Outcome]) -> None:
    if not done.done():
        done.set_result(outcomes)
