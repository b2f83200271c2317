"""A random walk over everything that may happen to purges, workers, Redis and clients. What must hold at every step:

- every answer is right, and says in its very numbers before which purge it was computed;
- no answer to a request that was sent after the bound which a purge has stated is from before that purge;
- between two quiet moments nothing is computed more often than the events in between allow.

``RANDOM_WALK_SECONDS`` is its length; ``RANDOM_WALK_SEED`` repeats one.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from service.cache.generations import VALID_SECONDS
from service.cache.keys import RedisKeys
from tests.support.client import Connection, fetch
from tests.support.probe import Book, ChangingProbe, expected, register, target
from tests.support.process import PATIENCE, becomes, is_running
from tests.support.proxy import FaultProxy, fault_proxy
from tests.support.redis_server import RedisServer, running_redis
from tests.support.server import ADMIN_TOKEN, Server, running_server

pytestmark = pytest.mark.anyio

SECONDS = float(os.environ.get("RANDOM_WALK_SECONDS", "60"))
SEED = int(os.environ.get("RANDOM_WALK_SEED", random.SystemRandom().randrange(2**32)))
WORKERS = 3
HEALING_SECONDS = VALID_SECONDS + 2
"""After Redis has lost a purge and is back: by then a worker that knew of it has repeated it, and all have noticed."""
RECONNECT_SECONDS = 3
"""After a worker can reach Redis again: by then it has read the generations."""

OPERATOR = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"}


@dataclass
class Walk:
    """Two services on one Redis, ``far`` by way of a proxy.

    ``epoch``: of what is computed now. ``floors``: (a purge was asked for, its bound, epoch): requests sent past the
    bound are answered with this epoch or a later one, unless Redis has lost the purge and is not ``healed_at`` yet.
    ``unknown_until``: a worker that Redis has forgotten may be cut off; its answers are ten seconds old at most.
    ``allowed``: how often a question may have been computed since the last quiet moment, one more at most.
    """

    near: Server
    far: Server
    redis: RedisServer
    proxy: FaultProxy
    book: Book
    chance: random.Random
    epoch: int = 0
    floors: list[tuple[float, float, int]] = field(default_factory=list)
    lost_at: float = 0.0
    healed_at: float = 0.0
    allowed: int = 0
    counted: dict[float, int] = field(default_factory=dict)
    stopped: dict[int, float] = field(default_factory=dict)
    faults_end: dict[str, float] = field(default_factory=dict)
    trail: list[str] = field(default_factory=list)
    unknown_until: float = 0.0
    under_way: set[asyncio.Task[None]] = field(default_factory=set)
    answers: int = 0
    hits: int = 0
    steps: int = 0

    def say(self, what: str) -> None:
        self.trail.append(f"{time.monotonic():.3f} {what}")

    def server(self) -> Server:
        return self.near if self.chance.random() < 0.6 else self.far

    def floor(self, sent: float) -> int:
        lost = self.lost_at if sent < self.healed_at else 0.0
        return max((epoch for asked, bound, epoch in self.floors if bound <= sent and asked > lost), default=0)

    # What clients do.

    async def ask(self, x: float, leave_after: float | None = None) -> None:
        """Who gets no answer because a worker died, or stands still, or because it leaves, has no claim."""
        server = self.server()
        sent = time.monotonic()
        floor = self.floor(sent)
        try:
            async with asyncio.timeout(leave_after or 40), await Connection.open(server.address) as connection:
                answer = await connection.get(target(x))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        assert answer.status == 200, answer
        epochs = [e for e in range(self.epoch + 1) if expected(x, e) == answer.json()["probabilities"]]
        assert epochs, answer
        assert epochs[0] >= floor, f"sent {sent:.3f}, epoch {epochs[0]}, purged before {floor}: {answer}"
        self.answers += 1
        self.hits += answer.hit

    async def some_ask(self) -> None:
        questions = [self.chance.randrange(1, 7) + 0.5 for _ in range(self.chance.randrange(1, 12))]
        leave = [self.chance.uniform(0.0001, 0.01) if self.chance.random() < 0.2 else None for _ in questions]
        await asyncio.gather(*(self.ask(x, after) for x, after in zip(questions, leave, strict=True)))

    async def purge(self) -> None:
        server, epoch, asked = self.server(), self.epoch + 1, time.monotonic()
        self.epoch = epoch
        self.book.set_epoch(epoch)
        self.allowed += WORKERS
        body = json.dumps({"model": "probe"}).encode()
        try:
            async with asyncio.timeout(40):
                answer = await fetch(server.address, "/admin/purge", "POST", OPERATOR, body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return
        self.say(f"purge {epoch}: {answer.status} {answer.body!r}")
        if answer.status in (200, 202):
            told = answer.json()
            assert (answer.status == 200) == (told["complete_within_seconds"] == 0), answer
            past_its_bound = answer.seconds > VALID_SECONDS  # the worker that was asked was stopped
            assert answer.status == 202 or told["acknowledged"] == told["workers"] or past_its_bound, answer
            assert told["complete_within_seconds"] <= VALID_SECONDS
            within = VALID_SECONDS if asked < self.unknown_until else told["complete_within_seconds"]
            self.floors.append((asked, time.monotonic() + within, epoch))
        else:
            assert answer.status == 503, answer

    # What happens to workers.

    async def kill_worker(self) -> None:
        server = self.server()
        pid = self.chance.choice(server.workers() or [0])
        if pid and pid not in self.stopped:
            self.say(f"kill {pid}")
            self.allowed += 2
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def stop_worker(self) -> None:
        pids = [pid for pid in self.near.workers() + self.far.workers() if pid not in self.stopped]
        if len(pids) > 1:
            pid, seconds = self.chance.choice(pids), self.chance.choice([0.2, 1, 3, 13])
            self.say(f"stop {pid} for {seconds} s")
            self.allowed += 2
            os.kill(pid, signal.SIGSTOP)
            self.stopped[pid] = time.monotonic() + seconds

    # What happens to Redis, and on the way there.

    def lost_purges(self, what: str) -> None:
        """Redis has what it had before: until it is repaired, who has not heard of a purge may use what it had."""
        self.say(what)
        self.allowed += 2 * WORKERS
        self.lost_at = time.monotonic()
        self.healed_at = self.lost_at + HEALING_SECONDS

    def forget_readers(self) -> None:
        if (cut_off_until := self.faults_end.get("cut off")) is not None:
            self.unknown_until = cut_off_until + RECONNECT_SECONDS

    async def save_snapshot(self) -> None:
        self.redis.client.save()
        shutil.copy(self.redis.directory / "dump.rdb", self.redis.directory / "kept.rdb")
        self.say("snapshot")

    async def restart_from_snapshot(self) -> None:
        kept = self.redis.directory / "kept.rdb"
        self.redis.kill()
        if kept.exists():
            shutil.copy(kept, self.redis.directory / "dump.rdb")
        await asyncio.sleep(self.chance.choice([0, 0.3, 2]))
        self.redis.start()
        self.forget_readers()
        self.lost_purges("restart from the snapshot")

    async def restart_empty(self) -> None:
        self.redis.kill()
        (self.redis.directory / "dump.rdb").unlink(missing_ok=True)
        self.redis.start()
        self.forget_readers()
        self.allowed += 2 * WORKERS
        self.say("restart empty")

    async def flush(self) -> None:
        self.redis.client.flushall()
        self.forget_readers()
        self.allowed += WORKERS
        self.say("flush")

    async def kill_clients(self) -> None:
        self.redis.client.client_kill_filter(_type=self.chance.choice(["normal", "pubsub"]), skipme=True)
        self.allowed += WORKERS
        self.say("clients killed")

    async def damage(self) -> None:
        names = sorted(self.redis.names()) or [b"nothing"]
        name, kind = self.chance.choice(names), self.chance.randrange(4)
        if self.chance.random() < 0.3:
            name = RedisKeys("p1").generation("probe").encode()
        value = self.redis.client.get(name) if self.redis.client.type(name) == b"string" else b""
        assert isinstance(value, bytes | None)
        self.redis.client.delete(name)
        self.forget_readers()
        if kind == 0:
            self.redis.client.set(name, (value or b"")[:-1])
        elif kind == 1:
            self.redis.client.rpush(name, "x")
        elif kind == 2:
            self.redis.client.set(name, bytes(self.chance.randbytes(40)))
        self.allowed += WORKERS
        self.say(f"damaged {name!r} ({kind})")

    async def freeze(self) -> None:
        self.begin("freeze", self.redis.freeze)

    async def read_only(self) -> None:
        self.begin("read-only", lambda: self.redis.client.replicaof("127.0.0.1", "1"))

    async def cut_off(self) -> None:
        fault = self.chance.choice(["refuse", "black hole", "reset"])
        self.begin("cut off", lambda: self.proxy.set(fault))

    def begin(self, fault: str, start: Callable[[], object]) -> None:
        if not self.faults_end:
            seconds = self.chance.choice([0.3, 2, 5, 14])
            self.say(f"{fault} for {seconds} s")
            start()
            self.faults_end[fault] = time.monotonic() + seconds
            self.allowed += WORKERS * (2 + int(seconds / VALID_SECONDS))

    def end_what_is_due(self, now: float) -> None:
        for pid, due in list(self.stopped.items()):
            if due <= now:
                del self.stopped[pid]
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
                self.say(f"continued {pid}")
        ends = {
            "freeze": self.redis.thaw,
            "read-only": lambda: self.redis.client.replicaof("NO", "ONE"),
            "cut off": lambda: self.proxy.set("none"),
        }
        for fault, due in list(self.faults_end.items()):
            if due <= now:
                ends[fault]()
                del self.faults_end[fault]
                self.say(f"end of {fault}")

    # The walk.

    async def step(self) -> None:
        ordinary: list[Callable[[], Awaitable[None]]] = [self.purge, self.kill_worker, self.stop_worker]
        on_redis = [self.save_snapshot, self.restart_from_snapshot, self.restart_empty, self.flush, self.kill_clients]
        ordinary += [self.freeze, self.read_only, self.cut_off]
        if {"freeze", "read-only"}.isdisjoint(self.faults_end):
            ordinary += [*on_redis, self.damage, self.damage, self.purge]
        event = self.chance.choice(ordinary) if self.chance.random() < 0.25 else None
        self.steps += 1
        self.start(self.some_ask())
        if event in (self.purge, None):
            self.start(self.purge() if event else self.some_ask())
        else:
            await event()

    def start(self, what: Coroutine[Any, Any, None]) -> None:
        """Beside the steps that follow: a worker that stands still must not hold up the walk."""
        if len(self.under_way) < 100:
            self.under_way.add(asyncio.create_task(what))
        else:
            what.close()

    async def tend(self) -> None:
        """End what is due, on time. Runs until cancelled."""
        while True:
            self.end_what_is_due(time.monotonic())
            await asyncio.sleep(0.05)

    async def settle(self, everything: bool = False) -> None:
        """Raise what went wrong in what has been started."""
        if everything and self.under_way:
            await asyncio.wait(self.under_way)
        for task in [task for task in self.under_way if task.done()]:
            self.under_way.discard(task)
            task.result()

    async def calm(self) -> None:
        """Everything ends, all workers are back: then what was computed is counted, and a new question once."""
        self.end_what_is_due(float("inf"))
        await self.settle(everything=True)
        servers = (self.near, self.far)
        await becomes(lambda: sum(len(server.workers()) for server in servers) == WORKERS, within=2 * PATIENCE)
        for server in servers:
            await becomes(server.is_ready)
        await becomes(lambda: self.listening() == WORKERS)
        await asyncio.sleep(max(VALID_SECONDS / 2, self.healed_at - time.monotonic()) + 1)
        self.count()
        await self.purge()
        assert self.floors[-1][2] == self.epoch, "a purge in a quiet moment failed"
        x = 1000 + self.steps + 0.5
        await asyncio.gather(*(self.ask(x) for _ in range(20)))
        assert self.book.count(x) == 1, self.book.lines(x)
        self.allowed = 1

    def listening(self) -> int:
        with suppress(redis.RedisError):
            return int(self.redis.client.pubsub_numsub("p1:purges")[0][1])
        return -1

    def count(self) -> None:
        for number in range(1, 7):
            x = number + 0.5
            total = self.book.count(x)
            computed = total - self.counted.get(x, 0)
            assert computed <= self.allowed + 1, f"{x} was computed {computed} times, {self.allowed} allowed"
            self.counted[x] = total


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    root = tmp_path_factory.mktemp("walk")
    models, book = root / "models", Book(root / "probe")
    book.directory.mkdir()
    book.set_epoch(0)
    register(ChangingProbe(book.directory), models, "probe")
    settings = {"models_dir": models, "default_model": "probe", "lease": "always", "ttl_seconds": 4000}
    with ExitStack() as stack:
        server = stack.enter_context(running_redis(root / "redis"))
        proxy = stack.enter_context(fault_proxy(server.port))
        near = stack.enter_context(running_server(root / "near", redis_url=server.url, workers=WORKERS - 1, **settings))
        far = stack.enter_context(running_server(root / "far", redis_url=proxy.url, **settings))
        walk = Walk(near, far, server, proxy, book, random.Random(SEED))
        yield walk
        walk.end_what_is_due(float("inf"))


@pytest.fixture
async def walk(rig: Walk) -> AsyncIterator[Walk]:
    tending = asyncio.create_task(rig.tend())
    yield rig
    tending.cancel()
    print(f"seed {SEED}, step {rig.steps}", *rig.trail[-60:], sep="\n")
    for pid in rig.stopped:
        if is_running(pid):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.faults
@pytest.mark.timeout(SECONDS + 600)
async def test_whatever_happens_answers_are_right_purges_hold_and_nothing_is_computed_too_often(walk: Walk) -> None:
    print(f"seed {SEED}")
    end = time.monotonic() + SECONDS
    await walk.calm()
    while time.monotonic() < end:
        calm_at = time.monotonic() + walk.chance.uniform(5, 25)
        while time.monotonic() < calm_at:
            await walk.step()
            await walk.settle()
            await asyncio.sleep(walk.chance.choice([0, 0.01, 0.1, 0.5]))
        await walk.calm()
    print(f"seed {SEED}: {walk.steps} steps, {walk.answers} answers, {walk.hits} of them hits, {walk.epoch} purges")
    assert 0 < walk.hits < walk.answers
