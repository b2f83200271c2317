"""Batches of which every row is a miss and is stored: part of ``make bench-forms``.

Two connections, as of the other batches. A purge before each BATCHES makes all rows new; only the batches' time counts.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path

from benchmarks.client import Address, Connection, Reply, closed_loop, post
from benchmarks.inputs import Row, iris_rows
from benchmarks.machine import SERVER_CORE
from benchmarks.ours import serving
from benchmarks.processes import StartFailed, private_redis

TOKEN = "the-bench-purges-with-this-token"
STORED = {"/predict_batch, stored, no Redis": False, "/predict_batch, stored in Redis": True}
"""Name of the form -> whether there is a Redis."""
CONNECTIONS, BATCHES = 2, 16
PATIENCE = 60.0
"""Seconds in which all BATCHES are answered."""


def stored_rates(models: Path, rows: int, seconds: float, rounds: int) -> dict[str, list[float]]:
    """Form -> rows a second in each round. ``rows``: of a batch."""
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, redis in STORED.items():
            with suppress(OSError, StartFailed):  # Redis may not be installed
                rates.setdefault(name, []).append(_rate(models, redis, rows, seconds))
    return rates


def _rate(models: Path, redis: bool, rows: int, seconds: float) -> float:
    purge = post("/admin/purge", json.dumps({"model": "iris"}).encode(), headers=f"Authorization: Bearer {TOKEN}\r\n")
    with ExitStack() as stack:
        url = stack.enter_context(private_redis()) if redis else ""
        settings: dict[str, object] = {"admin_token": TOKEN, "workers": 1}
        service = stack.enter_context(serving(redis=url, models=models, cores=SERVER_CORE, settings=settings))
        connection = stack.enter_context(Connection(service.address))
        batches = [_batch(part) for part in _distinct_rows(service.address, rows)]
        taken: list[float] = []
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(taken) < 4:
            connection.ask(purge)
            taken.append(closed_loop(service.address, iter(batches), CONNECTIONS, PATIENCE, _must_miss))
    taken = taken[len(taken) // 4 :]  # without the warm-up
    return rows * BATCHES * len(taken) / sum(taken)


def _batch(rows: Sequence[Row], **view: bool) -> bytes:
    return post("/predict_batch", json.dumps({"inputs": rows, **view}).encode())


def _distinct_rows(address: Address, size: int) -> Iterator[Sequence[Row]]:
    """The rows of BATCHES batches, no two of which have one key: the service itself says which share a cell."""
    drawn, found = iris_rows(random.Random(0)), dict[str, Row]()
    with Connection(address) as connection:
        while len(found) < size * BATCHES:
            rows = list(islice(drawn, size))
            results = json.loads(connection.ask(_batch(rows, domain=True)).body)["results"]
            found |= {str(said["unchanged_within"]): row for said, row in zip(results, rows, strict=True)}
    rows = list(found.values())
    return (rows[start : start + size] for start in range(0, size * BATCHES, size))


def _must_miss(reply: Reply) -> None:
    if " hits=0 " not in reply.header("Cache-Status"):
        raise OSError(f"no batch of misses: {reply.header('Cache-Status')}")
