"""Never-seen JPEGs asked by several processes at once, so that one Python is not what is measured."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from queue import Queue

from benchmarks.client import Address, Reply, closed_loop, open_loop, post
from benchmarks.figures import percentile
from benchmarks.inputs import jpeg

DRAWN = 64
"""Pictures that a client draws; each request has one of them with a comment of its own, so it is a file never seen."""


@dataclass(frozen=True, slots=True)
class Found:
    """``rate``: answers per second. ``latencies`` in seconds; ``failures``: answers other than computed ones."""

    rate: float
    latencies: list[float]
    failures: int

    def percentile(self, share: float) -> float:
        return percentile(self.latencies, share)


def requests(target: str, chance: random.Random) -> Iterator[bytes]:
    """Without end."""
    files = [jpeg(chance) for _ in range(DRAWN)]
    while True:
        for file in files:
            comment = b"\xff\xfe\x00\x12" + chance.randbytes(16)
            yield post(target, file[:2] + comment + file[2:], "image/jpeg")


def ask(
    address: Address, target: str, seconds: float, clients: int, *, connections: int = 0, rate: float = 0.0
) -> Found:
    """By so many ``connections`` that are always busy, or at a fixed ``rate``; both over all ``clients``."""
    context = multiprocessing.get_context("spawn")
    clients = min(clients, connections or clients)
    start, found = context.Barrier(clients), context.Queue()
    shares = [(connections // clients + (n < connections % clients), rate / clients) for n in range(clients)]
    processes = [
        context.Process(target=_client, args=(address, target, seconds, *share, start, found)) for share in shares
    ]
    for process in processes:
        process.start()
    parts: list[Found] = [found.get(timeout=seconds + 120) for _ in processes]
    for process in processes:
        process.join()
    latencies = [latency for part in parts for latency in part.latencies]
    return Found(sum(part.rate for part in parts), latencies, sum(part.failures for part in parts))


def _client(
    address: Address, target: str, seconds: float, connections: int, rate: float, start: Barrier, found: Queue[Found]
) -> None:
    asked = requests(target, random.Random())
    next(asked)  # draws the pictures
    latencies: list[float] = []
    failures = 0

    def seen(reply: Reply) -> None:
        nonlocal failures
        latencies.append(reply.seconds)
        failures += reply.status != 200 or reply.outcome != "computed"

    start.wait(60)
    if rate:
        open_loop(address, asked, rate, seconds, seen)
        took = seconds
    else:
        took = closed_loop(address, asked, connections, seconds, seen)
    found.put(Found(len(latencies) / took, latencies, failures))
