"""The hit path: answers from L1 below ASGI, with bytes that are ready.

The ordinary path enters a hit into the table: a GET whose answer depends on nothing but its target. The protocol then
finds the hit by the whole request head as it was received, before any parsing. If the heads differ in every request, or
the request before was no hit, it finds the hit by the parsed target. Every other request takes the ordinary path. While
the service drains all of them do, because every answer then says that its connection closes.

L1 stays the authority. A hit holds its entry's slot, and the table drops what was evicted, purged or replaced or has
expired; while purges cannot reach this worker, it drops everything. The functions of the ordinary path make the bytes,
again whenever Age, the time left or the date has changed. Each time L1 is asked, which updates its LRU order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.cache.memory import Slot
from service.http.caching import response_headers
from service.http.endpoint import Headers, Reply
from service.lookup import Answer
from service.runtime import Runtime

if TYPE_CHECKING:
    from uvicorn.server import ServerState

SPECIAL = frozenset(
    (
        *(b"cache-control", b"if-match", b"if-none-match", b"authorization", b"expect", b"upgrade", b"traceparent"),
        *(b"content-length", b"transfer-encoding"),
    )
)
"""Headers on which an answer may depend, or which announce a body or another protocol."""

MAX_HEAD_BYTES = 4096
MAX_HEADS = 4
"""Heads of one hit. A flood of different heads must not grow the table."""

MAX_NEWCOMERS = 4096
"""Targets that have been a hit once. Only a second hit enters a target, because many targets are never asked again."""

OVERHEAD = 1000
"""Bytes that CPython spends on a hit, beside its target, heads and answer."""

POST = b"POST "
NOT_POSTED = frozenset((b"cache-control", b"age"))
"""Headers that the answer to a POST leaves out, as no HTTP cache may keep it."""

VARYING = frozenset((b"cache-status", b"cache-control", b"age"))

NEVER = 2**60
"""A gap so long that no worker reaches its end."""


@dataclass(slots=True, eq=False)
class HitCounter:
    """The hits of one route and model. One subtraction counts them for the metrics and down to the next audit.

    ``left``: hits until the next audit is due.
    """

    left: int = 0
    _told: int = 0
    _rest: float = 0.0

    def start(self, gap: float) -> None:
        """The next audit is due at the ``gap``-th hit. A fraction of a hit is added to the next gap."""
        self._rest += min(gap, NEVER)
        whole = int(self._rest)
        self._rest -= whole
        self.grant(whole - 1)

    def grant(self, count: int) -> None:
        self.left += count
        self._told += count

    def count(self) -> int:
        """The hits since the last call."""
        given, self._told = self._told - self.left, self.left
        return given


@dataclass(slots=True, eq=False)
class Hit:
    """The answer to one target from one entry. ``until``: the clock's reading at which its bytes must be made again."""

    target: bytes
    key: str
    kept: Slot
    fixed: Headers
    body: bytes
    tally: HitCounter
    heads: list[bytes] = field(default_factory=list)
    until: float = 0.0
    server_headers: Headers | None = None
    whole: bytes = b""

    @property
    def cost(self) -> int:
        return OVERHEAD + len(self.kept.entry.value) + len(self.target) + 2 * len(self.body) + sum(map(len, self.heads))


def is_plain(headers: Headers) -> bool:
    """Whether the answer depends on none of the headers."""
    return all(
        name not in SPECIAL and (name != b"connection" or value.lower() == b"keep-alive") for name, value in headers
    )


def is_whole(received: bytes, headers: Headers) -> bool:
    """Whether what was received is one request with its whole body, and no more."""
    length = next((value for name, value in headers if name == b"content-length"), b"0")
    end = received.find(b"\r\n\r\n") + 4
    return end > 3 and length.isdigit() and end + int(length) == len(received)


class HitTable:
    """One worker's hits, bounded in bytes. The oldest goes first, and a target that is still in use comes back.

    ``by_head``: the hits whose bytes are ready. ``server_state``: uvicorn's, which has the Date header.
    """

    server_state: ServerState

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._settings, self._metrics = runtime, runtime.settings, runtime.metrics
        self._clock = runtime.clock
        self._l1, self._l2 = runtime.pipeline.l1, runtime.pipeline.l2
        self._auditor, self._economics = runtime.auditor, runtime.economics
        self._max_bytes = runtime.settings.hit_path_bytes
        self.by_head: dict[bytes, Hit] = {}
        self.by_target: dict[bytes, Hit] = {}
        self.bytes_used = 0
        self._newcomers: set[int] = set()
        self._tallies: dict[tuple[str, str], HitCounter] = {}

    def enter(self, route: str, target: bytes, received: bytes, headers: Headers, reply: Reply) -> None:
        """Remember an answer from L1. ``received``: the one read from the socket that brought the request. That is the
        ``target``, too, of a request with a body."""
        posted = target.startswith(POST)
        if posted:
            if not is_whole(target, headers):
                return
            headers = [header for header in headers if header[0] != b"content-length"]
        if reply.hot is None or self._runtime.draining or not is_plain(headers) or not target:
            return
        model, answer = reply.hot
        hit, kept = self.by_target.get(target), self._l1.find(answer.key)
        if kept is None or kept.entry is not answer.entry or len(target) > MAX_HEAD_BYTES:
            return
        if self._clock() >= self._l2.valid_until:  # the key may have no generation, so no purge would reach the hit
            return
        if hit is None and self._is_new(target):
            return
        # A head with a request id does not come again.
        named = any(name == b"x-request-id" for name, _ in headers)
        is_head = (posted or self._is_head(received, target)) and not named
        if hit is not None and hit.kept is kept and (not is_head or received in hit.heads):
            if posted:
                self._go_on(hit)
            return
        if posted and named:
            return
        if hit is None or hit.kept is not kept:
            fixed = [header for header in reply.headers if header[0] not in VARYING]
            hit = Hit(target, answer.key, kept, fixed, reply.body, self._tally(route, model.name))
        self._forget(target)
        if is_head:
            hit.heads = [*hit.heads, received][-MAX_HEADS:]
        self._remember(hit)

    def current(self, hit: Hit) -> bool:
        """Whether to answer with this hit. If so, its bytes are up to date and it has been counted."""
        now = self._clock()
        server_headers = self.server_state.default_headers
        due = now >= hit.until or hit.kept.evicted or hit.server_headers is not server_headers
        if due and not self._refresh(hit, now):
            return False
        tally = hit.tally
        if not tally.left:
            tally.start(self._auditor.countdown.gap())
            if self._auditor.has_room:
                # Only this request leaves the hit path. The requests behind it are still answered here before the audit
                # runs, because the ordinary path takes ten times as long.
                self._auditor.countdown.force_sample(hit.key)
                return False
            tally.grant(1)
        tally.left -= 1
        return True

    def _go_on(self, hit: Hit) -> None:
        """With a request that is known by its bytes alone, which the ordinary path has answered once more."""
        self._refresh(hit, self._clock())
        if not hit.tally.left:
            hit.tally.start(self._auditor.countdown.gap())
            if self._auditor.has_room:
                self._auditor.countdown.force_sample(hit.key)  # when the ordinary path is asked again, within a second

    def _refresh(self, hit: Hit, now: float) -> bool:
        """Make its bytes anew, and have it found by its heads; False when its answer is gone from L1."""
        if self._l1.find(hit.key) is not hit.kept or now >= self._l2.valid_until:
            self._forget(hit.target)
            return False
        self._render(hit, now, self.server_state.default_headers)
        self.by_head.update(dict.fromkeys(hit.heads, hit))
        return True

    def invalidate(self) -> None:
        """The server's headers have changed, so every hit's bytes must be made again."""
        self.by_head.clear()

    def clear(self) -> None:
        for target in list(self.by_target):
            self._forget(target)

    def flush(self) -> None:
        """Add the hits since the last flush to the metrics. They have no latencies, being too short to measure."""
        for (route, model), tally in self._tallies.items():
            if count := tally.count():
                self.server_state.total_requests += count
                self._metrics.requests.labels(route, 200).inc(count)
                self._metrics.cache_results.labels(model, "l1").inc(count)
                self._economics.add_hits(model, count)

    def _tally(self, route: str, model: str) -> HitCounter:
        tally = self._tallies.get((route, model))
        if tally is None:
            tally = self._tallies[route, model] = HitCounter()
            tally.start(self._auditor.countdown.gap())
        return tally

    def _is_new(self, target: bytes) -> bool:
        number = hash(target)  # who is taken for another is entered one hit early
        if number in self._newcomers:
            self._newcomers.remove(number)
            return False
        if len(self._newcomers) == MAX_NEWCOMERS:
            self._newcomers.clear()
        self._newcomers.add(number)
        return True

    def _is_head(self, received: bytes, target: bytes) -> bool:
        """Whether the received bytes are exactly the head of this one request."""
        return (
            len(received) <= MAX_HEAD_BYTES
            and received.startswith(b"GET %b HTTP/1.1\r\n" % target)
            and received.find(b"\r\n\r\n") == len(received) - 4
        )

    def _remember(self, hit: Hit) -> None:
        if hit.cost > self._max_bytes:
            return
        self.by_target[hit.target] = hit
        hit.until = 0.0  # so that `current` makes its bytes, and then enters its heads
        self.bytes_used += hit.cost
        while self.bytes_used > self._max_bytes:
            self._forget(next(iter(self.by_target)))

    def _forget(self, target: bytes) -> None:
        hit = self.by_target.pop(target, None)
        if hit is not None:
            self.bytes_used -= hit.cost
            for head in hit.heads:
                self.by_head.pop(head, None)

    def _render(self, hit: Hit, now: float, server_headers: Headers) -> None:
        entry = hit.kept.entry
        answer = Answer(hit.key, entry, "l1")
        fresh = response_headers(answer, self._settings, now)
        if hit.target.startswith(POST):
            fresh = [header for header in fresh if header[0] not in NOT_POSTED]
        headers = [*server_headers, *fresh, *hit.fixed]
        fields = b"".join(b"%b: %b\r\n" % header for header in headers)
        hit.whole = b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + hit.body
        hit.server_headers = server_headers
        hit.until = min(hit.kept.until, self._l2.valid_until, now + min(1 - entry.age(now) % 1, entry.left(now) % 1))
