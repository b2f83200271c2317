"""The hit path: answers from L1 below ASGI, with bytes that are ready.

The ordinary path enters a hit into the table: an answer that depends on nothing but what ``request_key`` takes from its
request, and the body. The protocol then finds the hit by all the bytes of the request as one read brought them, before
any parsing. If they differ in every request, arrive in several reads, or the request before was no hit, it finds the
hit by the parsed request. Every other request takes the ordinary path. While the service drains all of them do, because
every answer then says that its connection closes.

L1 stays the authority. A hit holds its entry, and the table drops what was evicted, purged or replaced or has expired;
while purges cannot reach this worker, it drops everything. The functions of the ordinary path make the bytes, again
whenever Age, the time left or the date has changed. Each time L1 is asked, which updates its LRU order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.cache.entry import Entry
from service.http.endpoint import Headers, Hot, Reply, Request
from service.runtime import Runtime
from service.server.request_key import MAX_HEAD_BYTES, SMALL_BODY_BYTES, START_BYTES, KnownBody, is_hashed, mask_id

if TYPE_CHECKING:
    from uvicorn.server import ServerState

MAX_SPELLINGS = 4
"""So many requests, as they were received, lead to one hit. A flood of different ones must not grow the table."""

MAX_NEWCOMERS = 4096
"""So many requests are remembered after their first hit. The second one enters them: many are never made again."""

OVERHEAD = 1000
"""Bytes that CPython spends on a hit, beside its key, its spellings (requests as they were received) and its answer."""

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
        count = int(self._rest)
        self._rest -= count
        self.grant(count - 1)

    def grant(self, count: int) -> None:
        self.left += count
        self._told += count

    def count(self) -> int:
        """The hits since the last call."""
        given, self._told = self._told - self.left, self.left
        return given


@dataclass(slots=True, eq=False)
class Hit:
    """The answer to one request from one entry. ``response``: its bytes, as they are until the clock says ``until``.

    ``awaited``: the beginning of the key, made from the head; empty for a request without a body. ``start``: the first
    bytes of a body that is hashed. ``fixed``: the headers that never change. ``id_size``: the length of the id in the
    body. Each request may have another id.
    """

    key: bytes
    awaited: bytes
    start: bytes
    hot: Hot
    entry: Entry
    status: int
    fixed: Headers
    body: bytes
    tally: HitCounter
    id_size: int = 0
    spellings: list[bytes] = field(default_factory=list)
    until: float = 0.0
    server_headers: Headers | None = None
    response: bytes = b""

    @property
    def cost(self) -> int:
        received = sum(map(len, self.spellings))
        return OVERHEAD + len(self.entry.value) + len(self.key) + 2 * len(self.body) + len(self.start) + received

    def answer_to(self, identifier: bytes) -> bytes:
        """The bytes with the id of this request in the place of the one they were made with."""
        start = len(self.response) - len(self.body) + (self.hot.id_at or 0)
        return self.response[:start] + identifier + self.response[start + self.id_size :]


class HitTable:
    """One worker's hits, bounded in bytes. The oldest goes first. If its request is made again, it comes back.

    ``by_spelling``: the hits whose bytes are ready, by their requests as they were received. ``awaited``: the heads
    whose bodies must be known to find a hit, and the number of hits of each. ``known``: large bodies that need no hash
    when they come again, by their first bytes, the one used last at the end. ``server_state``: uvicorn's, which has the
    Date header.
    """

    server_state: ServerState

    def __init__(self, runtime: Runtime) -> None:
        self._runtime, self._clock = runtime, runtime.clock
        self._l1, self._l2 = runtime.pipeline.l1, runtime.pipeline.l2
        self._observer, self.bodies = runtime.observer, runtime.bodies
        self._max_bytes = runtime.settings.hit_path_bytes
        self.by_spelling: dict[bytes, Hit] = {}
        self.by_key: dict[bytes, Hit] = {}
        self.awaited: Counter[bytes] = Counter()
        self.known: dict[bytes, KnownBody] = {}
        self.bytes_used = 0
        self._new_keys: set[int] = set()
        self._new_spellings: set[int] = set()
        self._tallies: dict[tuple[str, str, int, int], HitCounter] = {}

    def enter(self, request: Request, reply: Reply) -> None:
        """Remember an answer from L1 under the request's key."""
        head = request.scope["head"]
        hot = reply.hot
        if hot is None or self._runtime.draining or len(head) > MAX_HEAD_BYTES:
            return
        if is_hashed(head):
            name, identifier = request.scope.get("digest") or sha256(request.sent).digest(), None
        else:
            name, identifier = mask_id(head, request.sent)
        if identifier is not None and hot.id_at is None:
            return
        key = head + name
        hit, entry = self.by_key.get(key), self._l1.get(hot.key)
        if entry is None or (hot.entry is not None and hot.entry is not entry):
            return
        if self._clock() >= self._l2.valid_until:  # the key may have no generation; then no purge would reach the hit
            return
        if self._is_new(key, self._new_keys) if hit is None else hit.entry is entry:
            return
        self._forget(key)
        hit = self._hit(request, reply, hot, entry, head, name)
        hit.id_size = len(identifier or b"")
        self._remember(hit)
        if is_hashed(head) and key in self.by_key:
            self._know(hit, KnownBody(request.sent, name))

    def _hit(self, request: Request, reply: Reply, hot: Hot, entry: Entry, head: bytes, name: bytes) -> Hit:
        varying = {name for name, _ in hot.varying(self._clock())}
        fixed = [header for header in reply.headers if header[0] not in varying]
        body = b"" if request.method == "HEAD" else reply.body
        size, start = (0, request.sent[:START_BYTES]) if is_hashed(head) else (len(request.sent), b"")
        tally = self._tally(request.route, hot.model, reply.status, size)
        return Hit(head + name, head if name else b"", start, hot, entry, reply.status, fixed, body, tally)

    def find(self, key: bytes, identifier: bytes | None) -> Hit | None:
        """The hit of a request with this id, or without one. A body that has zeros where keys have them has no id."""
        hit = self.by_key.get(key)
        if hit is None or hit.id_size != len(identifier or b""):
            return None
        if (body := self.known.pop(hit.start, None)) is not None:
            self.known[hit.start] = body  # the last to go
        return hit

    def spell(self, hit: Hit, received: bytes, method: bytes, target: bytes, body_size: int) -> None:
        """Let these bytes find the hit from now on, if they have come before, or are the first that its key has found.

        What was received besides this request must not come to stand for it.
        """
        if body_size > SMALL_BODY_BYTES or len(received) > MAX_HEAD_BYTES + body_size or received in self.by_spelling:
            return
        if hit.spellings and self._is_new(received, self._new_spellings):
            return
        line = b"%b %b HTTP/1.1\r\n" % (method, target)
        if received.startswith(line) and received.find(b"\r\n\r\n") + 4 + body_size == len(received):
            self.bytes_used -= hit.cost
            for old in hit.spellings[: 1 - MAX_SPELLINGS]:
                self.by_spelling.pop(old, None)
            hit.spellings = [*hit.spellings, received][-MAX_SPELLINGS:]
            self.by_spelling[received] = hit
            self._count(hit.cost)

    def current(self, hit: Hit) -> bool:
        """Whether to answer with this hit. If so, its bytes are up to date and it has been counted."""
        now = self._clock()
        server_headers = self.server_state.default_headers
        if now >= hit.until or hit.entry.kept_as is None or hit.server_headers is not server_headers:
            if self._l1.get(hit.hot.key) is not hit.entry or now >= self._l2.valid_until:
                self._forget(hit.key)
                return False
            self._render(hit, now, server_headers)
            self.by_spelling.update(dict.fromkeys(hit.spellings, hit))
        tally = hit.tally
        if not tally.left:
            tally.start(self._observer.audit_gap())
            if self._observer.takes_audit(hit.hot.key):
                # Only this request leaves the hit path. The requests behind it are still answered here before the audit
                # runs, because the ordinary path takes ten times as long.
                return False
            tally.grant(1)
        tally.left -= 1
        return True

    def invalidate(self) -> None:
        """The Date header has changed, so every hit's bytes must be made again."""
        self.by_spelling.clear()

    def clear(self) -> None:
        for key in list(self.by_key):
            self._forget(key)

    def count_body(self, size: int) -> None:
        """A body that was hashed. The sizes of others are counted with their hits."""
        self._observer.metrics.body_bytes.inc(size)

    def flush(self) -> None:
        """Tell the observer of the hits since the last flush."""
        for (route, model, status, size), tally in self._tallies.items():
            if count := tally.count():
                self.server_state.total_requests += count
                self._observer.hits_below_asgi(route, model, status, size, count)

    def _tally(self, route: str, model: str, status: int, size: int) -> HitCounter:
        """``size``: of the requests' bodies, unless they were hashed: images have too many sizes."""
        tally = self._tallies.get((route, model, status, size))
        if tally is None:
            tally = self._tallies[route, model, status, size] = HitCounter()
            tally.start(self._observer.audit_gap() if status == 200 else NEVER)
        return tally

    def _is_new(self, key: bytes, newcomers: set[int]) -> bool:
        name = hash(key)  # and not the key, which may be long; of two keys with one hash, one enters early
        if name in newcomers:
            newcomers.remove(name)
            return False
        if len(newcomers) == MAX_NEWCOMERS:
            newcomers.clear()
        newcomers.add(name)
        return True

    def _remember(self, hit: Hit) -> None:
        if hit.cost > self._max_bytes:
            return
        self.by_key[hit.key] = hit
        self.awaited[hit.awaited] += 1
        hit.until = 0.0  # so that `current` makes its bytes, and then enters its spellings
        self._count(hit.cost)

    def _know(self, hit: Hit, body: KnownBody) -> None:
        self._forget_body(hit.start)
        self.known[hit.start] = body
        self._count(len(body.content))

    def _count(self, size: int) -> None:
        """So many bytes more. Bodies go before hits, whose keys have their hashes."""
        self.bytes_used += size
        while self.bytes_used > self._max_bytes:
            if self.known:
                self._forget_body(next(iter(self.known)))
            else:
                self._forget(next(iter(self.by_key)))

    def _forget_body(self, start: bytes) -> None:
        if (body := self.known.pop(start, None)) is not None:
            self.bytes_used -= len(body.content)

    def _forget(self, key: bytes) -> None:
        hit = self.by_key.pop(key, None)
        if hit is not None:
            self.bytes_used -= hit.cost
            self.awaited[hit.awaited] -= 1
            if not self.awaited[hit.awaited]:
                del self.awaited[hit.awaited]
            self._forget_body(hit.start)
            for received in hit.spellings:
                self.by_spelling.pop(received, None)

    def _render(self, hit: Hit, now: float, server_headers: Headers) -> None:
        entry = hit.entry
        headers = [*server_headers, *hit.hot.varying(now), *hit.fixed]
        fields = b"".join(b"%b: %b\r\n" % header for header in headers)
        hit.response = STATUS_LINE[hit.status] + fields + b"\r\n" + hit.body
        hit.server_headers = server_headers
        hit.until = min(entry.until, self._l2.valid_until, now + min(1 - entry.age(now) % 1, entry.left(now) % 1))
