from __future__ import annotations

import asyncio
import os

import pytest

from service.cache.entry import Entry
from service.cache.keys import RedisKeys
from service.cache.lease import LEASE_MS, MAX_CLAIMS, Resolved, TooManyClaims, Waits
from service.cache.redis.l2 import RedisCache, open_redis
from service.cache.redis.scripts import CLAIM
from tests.cache.stand_ins import SECRET, Witness, Workers, entry, subscribed
from tests.support.process import becomes
from tests.support.redis_server import RedisServer

pytestmark = pytest.mark.anyio

KEYS = RedisKeys("p1")
VALUE, LEASE, WAITS, CLAIMS = KEYS.lease("K")
LONG_BEFORE_60_SECONDS = 20


class Work:
    """A computation that waits for its gate, and counts."""

    def __init__(self, outcome: bytes | Exception = b"answer") -> None:
        self.outcome = outcome
        self.gate, self.started, self.runs = asyncio.Event(), asyncio.Event(), 0

    async def __call__(self) -> Entry:
        self.runs += 1
        self.started.set()
        await self.gate.wait()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return entry(self.outcome)


def done(outcome: bytes | Exception = b"answer") -> Work:
    """One that does not wait."""
    work = Work(outcome)
    work.gate.set()
    return work


def claim_and_die(server: RedisServer) -> None:
    """A worker leads, and is never heard of again."""
    arguments = (os.urandom(16), LEASE_MS, MAX_CLAIMS, 60_000)
    assert server.client.eval(CLAIM.lua, 4, VALUE, LEASE, WAITS, CLAIMS, *arguments)[0] == b"lead"


async def follower(server: RedisServer, cache: RedisCache, work: Work) -> asyncio.Task[Resolved]:
    """Asks, and has been told to follow."""
    task = asyncio.create_task(cache.compute_once("K", work))
    await becomes(lambda: server.client.exists(WAITS))
    return task


# Leading, committing, following


async def test_who_may_not_publish_commits_all_the_same(server: RedisServer, workers: Workers, l2: RedisCache) -> None:
    other = await workers.start()
    server.client.execute_command("ACL SETUSER", "default", "resetchannels")
    try:
        work = Work()
        leading = asyncio.create_task(l2.compute_once("K", work))
        await work.started.wait()
        following = await follower(server, other, done())
        work.gate.set()
        led, followed = await leading, await following
        assert (led.stored, led.down, followed.source, followed.entry.value) == (True, False, "followed", b"answer")
    finally:
        server.client.execute_command("ACL SETUSER", "default", "allchannels")


async def test_who_claims_first_computes_and_stores_and_leaves_nothing_else_behind(
    l2: RedisCache, server: RedisServer
) -> None:
    resolved = await l2.compute_once("K", done())
    assert (resolved.entry.value, resolved.source, resolved.stored, resolved.down) == (
        b"answer",
        "computed",
        True,
        False,
    )
    assert server.client.keys("p1:{*") == [VALUE.encode()]
    stored = await l2.get("K")
    assert stored is not None
    assert stored.value == b"answer"


async def test_what_was_stored_meanwhile_is_not_computed(l2: RedisCache) -> None:
    await l2.put("K", entry(b"stored"))
    work = done()
    resolved = await l2.compute_once("K", work)
    assert (resolved.entry.value, resolved.source, work.runs) == (b"stored", "stored", 0)


async def test_ten_workers_compute_once_and_answer_alike(workers: Workers, server: RedisServer) -> None:
    caches = [await workers.start() for _ in range(10)]
    work = Work()
    asked = [asyncio.create_task(cache.compute_once("K", work)) for cache in caches]
    await work.started.wait()
    await becomes(lambda: server.client.exists(WAITS))
    work.gate.set()
    resolved = await asyncio.gather(*asked)
    assert work.runs == 1
    assert {r.entry.value for r in resolved} == {b"answer"}
    assert len({r.entry.ttl for r in resolved}) == 1
    assert sorted(r.source for r in resolved) == ["computed"] + ["followed"] * 9


async def test_a_follower_hears_the_hint_long_before_it_would_look_again(
    workers: Workers, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.lease.POLL_SECONDS", 60)
    one, two = await workers.start(), await workers.start()
    await subscribed(server, KEYS.hints, 2)
    work = Work()
    leading = asyncio.create_task(one.compute_once("K", work))
    await work.started.wait()
    following = await follower(server, two, work)
    work.gate.set()
    await leading
    await asyncio.wait_for(following, LONG_BEFORE_60_SECONDS)


async def test_a_follower_that_misses_the_hint_looks_for_itself(workers: Workers, server: RedisServer) -> None:
    one, two = await workers.start(), await workers.start(waits=Waits(follow=60))
    work = Work()
    leading = asyncio.create_task(one.compute_once("K", work))
    await work.started.wait()
    following = await follower(server, two, work)
    server.client.client_kill_filter(_type="pubsub")
    work.gate.set()
    await leading
    await asyncio.wait_for(following, LONG_BEFORE_60_SECONDS)
    assert work.runs == 1


async def test_a_hint_that_means_nothing_makes_a_follower_look_just_once(
    workers: Workers, server: RedisServer, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cache.lease.POLL_SECONDS", 60)
    cache = await workers.start()
    await subscribed(server, KEYS.hints)
    claim_and_die(server)
    following = await follower(server, cache, done())
    server.client.publish(KEYS.hints, "K")
    await becomes(lambda: witness.commands == 2)
    await asyncio.sleep(0.05)  # in which there would be a hundred more
    assert witness.commands == 2
    following.cancel()


async def test_nothing_is_published_when_nobody_waits(l2: RedisCache, server: RedisServer) -> None:
    with server.client.pubsub() as listener:
        listener.subscribe(KEYS.hints)
        await l2.compute_once("K", done())
        server.client.publish(KEYS.hints, "end")
        heard = []
        while b"end" not in heard:
            if message := listener.get_message(timeout=5):
                heard.append(message["data"])
    assert heard == [1, b"end"]  # the subscription itself, then the end


async def test_keys_do_not_wait_for_each_other(l2: RedisCache) -> None:
    slow = Work()
    waiting = asyncio.create_task(l2.compute_once("K", slow))
    await slow.started.wait()
    assert (await l2.compute_once("L", done(b"quick"))).entry.value == b"quick"
    slow.gate.set()
    await waiting


# Leaders that die, stall or fail


async def test_the_lease_of_a_slow_leader_is_renewed(l2: RedisCache, server: RedisServer) -> None:
    work = Work()
    leading = asyncio.create_task(l2.compute_once("K", work))
    await work.started.wait()
    server.client.pexpire(LEASE, 60_000)
    await becomes(lambda: 0 < int(server.client.pttl(LEASE)) <= LEASE_MS, within=30)
    work.gate.set()
    assert (await leading).source == "computed"


async def test_a_lease_is_not_renewed_beyond_the_compute_deadline(workers: Workers, server: RedisServer) -> None:
    stuck, other = await workers.start(waits=Waits(compute=0.5)), await workers.start()
    work = Work()
    leading = asyncio.create_task(stuck.compute_once("K", work))
    await work.started.wait()
    server.client.pexpire(LEASE, 900)
    resolved = await other.compute_once("K", done(b"other"))
    assert (resolved.entry.value, resolved.source) == (b"other", "computed")
    work.gate.set()
    assert (await leading).entry.value == b"other"


async def test_when_a_leader_dies_a_follower_leads(l2: RedisCache, server: RedisServer) -> None:
    claim_and_die(server)
    work = done()
    following = await follower(server, l2, work)
    assert work.runs == 0
    server.client.pexpire(LEASE, 1)
    resolved = await following
    assert (resolved.source, resolved.stored, work.runs) == ("computed", True, 1)
    assert server.client.keys("p1:{*") == [VALUE.encode()]


async def test_a_leader_that_stalled_answers_with_what_was_committed_meanwhile(
    workers: Workers, server: RedisServer
) -> None:
    stalled, other = await workers.start(), await workers.start()
    work = Work(b"late")
    leading = asyncio.create_task(stalled.compute_once("K", work))
    await work.started.wait()
    server.client.delete(LEASE)  # as if it had been stopped for longer than its lease
    await other.compute_once("K", done(b"first"))
    work.gate.set()
    resolved = await leading
    assert (resolved.entry.value, resolved.source, resolved.stored) == (b"first", "computed", True)


async def test_a_leader_that_stalled_does_not_end_the_lease_of_its_successor(
    workers: Workers, server: RedisServer
) -> None:
    stalled, other = await workers.start(), await workers.start()
    failing, slow = Work(RuntimeError("no")), Work()
    leading = asyncio.create_task(stalled.compute_once("K", failing))
    await failing.started.wait()
    server.client.delete(LEASE)
    succeeding = asyncio.create_task(other.compute_once("K", slow))
    await slow.started.wait()
    failing.gate.set()
    with pytest.raises(RuntimeError):
        await leading
    await stalled.put("L", entry())  # asked for after the lease was given up
    assert server.client.exists(LEASE)
    slow.gate.set()
    assert (await succeeding).stored


async def test_a_failure_is_not_stored_and_a_follower_tries_at_once(workers: Workers, server: RedisServer) -> None:
    one, two = await workers.start(), await workers.start(waits=Waits(follow=60))
    failing = Work(RuntimeError("no"))
    leading = asyncio.create_task(one.compute_once("K", failing))
    await failing.started.wait()
    following = await follower(server, two, done())
    server.client.pexpire(LEASE, 60_000)
    failing.gate.set()
    with pytest.raises(RuntimeError, match="no"):
        await leading
    resolved = await asyncio.wait_for(following, LONG_BEFORE_60_SECONDS)
    assert resolved.source == "computed"  # type: ignore[attr-defined]


async def test_a_computation_that_is_cancelled_gives_its_lease_up(l2: RedisCache, server: RedisServer) -> None:
    work = Work()
    leading = asyncio.create_task(l2.compute_once("K", work))
    await work.started.wait()
    leading.cancel()
    await becomes(lambda: not server.client.exists(LEASE, CLAIMS), within=30)


async def test_closing_gives_up_the_leases_still_held(server: RedisServer) -> None:
    async with open_redis(server.url, secret=SECRET, observer=Witness()) as cache:
        work = Work()
        leading = asyncio.create_task(cache.compute_once("K", work))
        await work.started.wait()
    assert not server.client.exists(LEASE, CLAIMS)
    work.gate.set()
    resolved = await leading
    assert (resolved.entry.value, resolved.stored) == (b"answer", False)


async def test_a_claim_whose_asker_leaves_is_given_up(l2: RedisCache, server: RedisServer, witness: Witness) -> None:
    with pytest.raises(RuntimeError):
        await l2.compute_once("L", done(RuntimeError("no")))  # Redis has learnt the scripts
    await becomes(lambda: witness.commands == 2)
    server.freeze()
    asking = asyncio.create_task(l2.compute_once("K", done()))
    for _ in range(10):  # until the claim has been sent
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    server.thaw()
    await becomes(lambda: witness.commands == 4)
    assert not server.client.exists(LEASE, CLAIMS)


async def test_an_input_that_kills_its_workers_is_refused_after_three_until_the_claims_are_forgotten(
    l2: RedisCache, server: RedisServer
) -> None:
    for _ in range(MAX_CLAIMS):
        claim_and_die(server)
        server.client.delete(LEASE)
    work = done()
    with pytest.raises(TooManyClaims):
        await l2.compute_once("K", work)
    assert work.runs == 0
    assert 0 < server.client.pttl(CLAIMS) <= 60_000
    assert (await l2.compute_once("L", done())).source == "computed"
    server.client.pexpire(CLAIMS, 0)
    assert (await l2.compute_once("K", work)).source == "computed"


async def test_failures_never_add_up_to_a_refusal(l2: RedisCache) -> None:
    for _ in range(2 * MAX_CLAIMS):
        with pytest.raises(RuntimeError):
            await l2.compute_once("K", done(RuntimeError("no")))


# Patience, and Redis's failures


async def test_past_its_patience_a_follower_computes_and_does_not_store(workers: Workers, server: RedisServer) -> None:
    claim_and_die(server)
    impatient = await workers.start(waits=Waits(follow=0))
    resolved = await impatient.compute_once("K", done())
    assert (resolved.source, resolved.stored, resolved.down) == ("computed", False, False)
    assert not server.client.exists(VALUE)


async def test_without_Redis_everybody_computes_and_answers(l2: RedisCache, server: RedisServer) -> None:
    server.freeze()
    resolved = await asyncio.wait_for(l2.compute_once("K", done()), 5)
    assert (resolved.entry.value, resolved.source, resolved.stored, resolved.down) == (
        b"answer",
        "computed",
        False,
        True,
    )


async def test_a_leader_whose_commit_fails_answers_all_the_same(l2: RedisCache, server: RedisServer) -> None:
    work = Work()
    leading = asyncio.create_task(l2.compute_once("K", work))
    await work.started.wait()
    server.freeze()
    work.gate.set()
    resolved = await leading
    assert (resolved.entry.value, resolved.stored, resolved.down) == (b"answer", False, True)


async def test_a_follower_whose_Redis_freezes_computes_for_itself(l2: RedisCache, server: RedisServer) -> None:
    claim_and_die(server)
    following = await follower(server, l2, done())
    server.freeze()
    resolved = await asyncio.wait_for(following, 10)  # seconds, of the 20 that it may follow
    assert (resolved.source, resolved.down) == ("computed", True)  # type: ignore[attr-defined]


async def test_under_OOM_everybody_computes_and_what_is_stored_is_still_found(
    l2: RedisCache, server: RedisServer
) -> None:
    await l2.put("L", entry(b"stored"))
    server.configure(maxmemory_policy="noeviction", maxmemory="1")
    assert (await l2.compute_once("L", done())).entry.value == b"stored"
    resolved = await l2.compute_once("K", done())
    assert (resolved.source, resolved.stored, resolved.down) == ("computed", False, True)
    assert not server.client.exists(VALUE, LEASE)


async def test_too_large_an_answer_is_given_and_not_stored(l2: RedisCache, server: RedisServer) -> None:
    resolved = await l2.compute_once("K", done(bytes(100_000)))
    assert (len(resolved.entry.value), resolved.stored, resolved.down) == (100_000, False, False)
    await becomes(lambda: not server.client.exists(LEASE, CLAIMS), within=30)


# Values that no worker wrote


@pytest.mark.parametrize("name", [VALUE, LEASE, WAITS, CLAIMS])
@pytest.mark.parametrize("damage", ["junk", "list", "empty"])
async def test_damaged_keys_of_a_lease_do_no_harm(
    l2: RedisCache, server: RedisServer, witness: Witness, name: str, damage: str
) -> None:
    if damage == "list":
        server.client.rpush(name, "x")
    else:
        server.client.set(name, b"" if damage == "empty" else b"99999999999")
    resolved = await l2.compute_once("K", done())
    assert (resolved.entry.value, resolved.source, resolved.stored) == (b"answer", "computed", True)
    assert server.client.keys("p1:{*") == [VALUE.encode()]
    assert witness.corruptions == (name == VALUE)
    assert (await l2.compute_once("K", done())).source == "stored"


async def test_a_claim_that_a_frozen_redis_carries_out_later_counts_against_no_input(
    l2: RedisCache, server: RedisServer
) -> None:
    server.freeze()
    try:
        while l2.state == "up":  # claims, and then their giving up, fail until the breaker opens
            assert (await l2.compute_once("K", done())).source == "computed"
    finally:
        server.thaw()
    await becomes(lambda: l2.state == "up")
    await becomes(lambda: not server.client.exists(CLAIMS))
    await becomes(lambda: not server.client.exists(LEASE))
    assert (await l2.compute_once("K", done())).stored
