"""Batches of which every row is a miss and is stored: part of ``make bench-forms``.

One client sends one batch at a time, and a purge before each makes its rows new. Only the batches' time counts.
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from benchmarks.client import Connection
from benchmarks.machine import SERVER_CORE
from benchmarks.ours import serving
from benchmarks.processes import StartFailed, private_redis

TOKEN = "the-bench-purges-with-this-token"
STORED = {"/predict_batch, stored, no Redis": False, "/predict_batch, stored in Redis": True}
"""Name of the form -> whether there is a Redis."""


def stored_rates(models: Path, batch: bytes, rows: int, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Form -> rows a second in each round. ``batch``: the request, with so many rows."""
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, redis in STORED.items():
            with suppress(OSError, StartFailed):  # Redis may not be installed
                rates.setdefault(name, []).append(_rate(models, redis, batch, rows, seconds))
    return rates


def _rate(models: Path, redis: bool, batch: bytes, rows: int, seconds: float) -> float:
    body = json.dumps({"model": "iris"}).encode()
    head = f"POST /admin/purge HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}"
    purge = f"{head}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with ExitStack() as stack:
        url = stack.enter_context(private_redis()) if redis else ""
        settings: dict[str, object] = {"admin_token": TOKEN, "workers": 1}
        service = stack.enter_context(serving(redis=url, models=models, cores=SERVER_CORE, settings=settings))
        connection = stack.enter_context(Connection(service.address))
        taken, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            connection.ask(purge)
            reply = connection.ask(batch)
            if " hits=0 " not in reply.header("Cache-Status"):
                raise OSError(f"no batch of misses: {reply.header('Cache-Status')}")
            taken.append(reply.seconds)
    taken = taken[len(taken) // 4 :]  # without the warm-up
    return rows * len(taken) / sum(taken)
