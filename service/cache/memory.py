"""What one worker keeps: L1, bounded in bytes and entries, and small memos."""

from __future__ import annotations

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping, Sequence, Set
from itertools import compress
from typing import TypeVar

from service.cache.entry import Entry

# Measured: what CPython spends on an entry (object, dictionary, place in the cache) and on a rendering.
ENTRY_OVERHEAD = 600
RENDERING_OVERHEAD = 130

MAX_ASKED = 1000

K = TypeVar("K")
V = TypeVar("V")


class Memo(dict[K, V]):
    """At most ``most`` results. A full memo forgets all of them: those still in use soon come back."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def keep(self, key: K, result: V) -> None:
        self.keep_many({key: result})

    def keep_many(self, results: Mapping[K, V]) -> None:
        if len(self) + len(results) > self._most:
            self.clear()
        self.update(results)


class MemoryCache:
    """The least recently used entry goes first. An entry larger than the bound is not kept. ``max_bytes`` 0: off."""

    def __init__(self, max_bytes: int, max_entries: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._asked: set[str] = set()
        self.bytes_used = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Entry | None:
        """The entry, which is now the most recently used; None when there is none, or it has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry.until <= self._clock():
            self.delete(key)
            return None
        self._entries.move_to_end(key)
        if len(self._asked) < MAX_ASKED:
            self._asked.add(key)
        return entry

    def get_many(self, keys: Sequence[str]) -> list[Entry | None]:
        """As ``get`` of each key."""
        now = self._clock()
        entries = map(self._entries.get, keys)
        found = [None if entry is None or entry.until <= now else entry for entry in entries]
        known = keys if all(found) else list(compress(keys, found))
        deque(map(self._entries.move_to_end, known), maxlen=0)
        self._asked.update(known[: MAX_ASKED - len(self._asked)])
        return found

    def take_asked(self) -> set[str]:
        """The keys of hits since the last call, ``MAX_ASKED`` at most."""
        asked, self._asked = self._asked, set()
        return asked

    def put(self, key: str, entry: Entry, seconds: float = math.inf) -> bool:
        """As ``put_many`` of one; whether it is kept."""
        return key in self.put_many({key: entry}, seconds)

    def put_many(self, entries: Mapping[str, Entry], seconds: float = math.inf) -> Set[str]:
        """Keep entries until they expire, for ``seconds`` at most; the keys of those that are kept. What was kept
        under a key goes in any case. Of an entry that is kept elsewhere a copy is kept."""
        now, kept = self._clock(), self._entries
        latest = now + seconds
        for key, entry in entries.items():
            if key in kept:
                self.delete(key)
            cost = ENTRY_OVERHEAD + len(key) + len(entry.value)
            if cost > self._max_bytes or entry.expires <= now:
                continue
            if entry.kept_as is not None:  # under another key, or by another cache
                entry = Entry(entry.value, entry.ttl, entry.expires)
            entry.kept_as, entry.cost, entry.until = key, cost, entry.expires if entry.expires < latest else latest
            kept[key] = entry
            self.bytes_used += cost
        self._evict()
        return entries.keys() & self._entries.keys()

    def add_rendering(self, entry: Entry, view: Hashable, body: bytes) -> None:
        """Keep a body that was rendered from an entry with it, unless it is too large, or the entry has left L1."""
        cost = RENDERING_OVERHEAD + len(body)
        if entry.kept_as is None or view in entry.renderings or entry.cost + cost > self._max_bytes:
            return
        entry.renderings[view] = body
        entry.cost += cost
        self.bytes_used += cost
        if self.bytes_used > self._max_bytes:
            self._entries.move_to_end(entry.kept_as)  # so that _evict spares this entry
            self._evict()

    def delete(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes_used -= entry.cost
            _leave(entry)

    def clear(self) -> None:
        for entry in self._entries.values():
            _leave(entry)
        self._entries.clear()
        self.bytes_used = 0

    def _evict(self) -> None:
        while self.bytes_used > self._max_bytes or len(self._entries) > self._max_entries:
            self.delete(next(iter(self._entries)))


def _leave(entry: Entry) -> None:
    """A request may still hold the entry. Its renderings are counted no more."""
    entry.kept_as = None
    entry.renderings.clear()
