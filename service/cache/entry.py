"""A cached answer, and its sealed form in Redis."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b, sha256
from hmac import compare_digest
from typing import TypeAlias

from service.logs import FloodLog

logger = logging.getLogger(__name__)

MAX_VALUE_BYTES = 64 * 2**10
"""Larger values are not stored in Redis."""

JITTER = 0.1
"""The largest part of its lifetime that a new entry may lose."""

CORRUPT_SECONDS = 60.0

_MAGIC = b"PRE\x01"  # the last byte is the version of this format
_HEADER = struct.Struct("!4sI16s")  # magic and version, ttl in ms, MAC
_BOUND = struct.Struct("!HI")  # what the MAC covers beside key and payload: the key's length, ttl in ms


Accepts: TypeAlias = Callable[[bytes], bool]
"""Whether a value could be an answer. The reader knows what answers look like, and the cache does not."""


@dataclass(slots=True, eq=False)
class Entry:
    """``value``: the packed array. ``ttl``: its lifetime in seconds. ``expires``: the clock's reading at its end.

    L1 writes the rest, and nobody else: the hit path holds entries, and so knows without a look-up whether L1 still has
    them. ``renderings``: view -> body. ``kept_as``: the key under which L1 keeps the entry, if it does. ``until``: the
    clock's reading at which the entry must leave L1. ``cost``: bytes, with its renderings.
    """

    value: bytes
    ttl: float
    expires: float
    renderings: dict[Hashable, bytes] = field(default_factory=dict)
    kept_as: str | None = None
    until: float = 0.0
    cost: int = 0

    def left(self, now: float) -> float:
        """Seconds until it expires; not positive once it has."""
        return self.expires - now

    def age(self, now: float) -> float:
        """Seconds since it was made: its lifetime less what is left, never negative."""
        return max(0.0, self.ttl - (self.expires - now))


def new_entry(value: bytes, ttl: float, now: float, random: Callable[[], float]) -> Entry:
    """As ``new_entries`` of one value."""
    return new_entries([value], ttl, now, random)[0]


def new_entries(values: Collection[bytes], ttl: float, now: float, random: Callable[[], float]) -> list[Entry]:
    """New entries. Each lives for ``ttl`` less up to a tenth, so that answers computed together do not expire together.

    The lifetime is in whole milliseconds, as in Redis: what is read back is what was written.
    """
    lifetimes = [(int(ttl * (1 - JITTER * random()) * 1000) or 1) / 1000 for _ in values]
    return [Entry(value, seconds, now + seconds, {}) for value, seconds in zip(values, lifetimes, strict=True)]


def seal(key: str, value: bytes, ttl_ms: int, secret: bytes) -> bytes:
    """``magic+version | ttl_ms u32 | MAC | value``; raises ValueError when the value or the TTL is too large."""
    if len(value) > MAX_VALUE_BYTES:
        raise ValueError(f"{len(value)} bytes are more than the {MAX_VALUE_BYTES} that are stored")
    if not 0 < ttl_ms < 2**32:
        raise ValueError(f"a TTL of {ttl_ms} ms cannot be stored")
    return _HEADER.pack(_MAGIC, ttl_ms, _mac(key, ttl_ms, value, secret)) + value


def unseal(key: str, blob: bytes, secret: bytes) -> tuple[bytes, int]:
    """Value and TTL (ms) of what ``seal`` made for this very key; raises ValueError for anything else."""
    if not _HEADER.size <= len(blob) <= _HEADER.size + MAX_VALUE_BYTES:
        raise ValueError("not the length of an entry")
    magic, ttl_ms, mac = _HEADER.unpack_from(blob)
    if magic != _MAGIC:
        raise ValueError("not an entry, or one of another version")
    value = blob[_HEADER.size :]
    if not compare_digest(mac, _mac(key, ttl_ms, value, secret)):
        raise ValueError("damaged, forged, or another key's entry")
    return value, ttl_ms


def anything(value: bytes) -> bool:
    return True


class Codec:
    """Seals entries, and checks what Redis returns, with one secret.

    ``corrupt`` is called for each value that is not what this service stored there, and ``discard`` to remove it.
    """

    def __init__(
        self,
        secret: bytes,
        clock: Callable[[], float],
        corrupt: Callable[[], None],
        discard: Callable[[str, bytes], None],
    ) -> None:
        self._secret, self.clock, self._count_corrupt, self._discard = secret, clock, corrupt, discard
        self._corrupt = FloodLog(logger, "A value in Redis is not what was stored there: a miss.", CORRUPT_SECONDS)

    def close(self) -> None:
        self._corrupt.close()

    def seal(self, key: str, entry: Entry, now: float) -> tuple[bytes, int]:
        """The sealed entry and the milliseconds it has left; raises ValueError when it is too large or has expired."""
        left_ms = int((entry.expires - now) * 1000)
        if left_ms <= 0:
            raise ValueError("expired")
        return seal(key, entry.value, round(entry.ttl * 1000), self._secret), left_ms

    def open(self, key: str, blob: object, left_ms: object, asked: float, accepts: Accepts) -> Entry | None:
        """The entry; None when there is none, when it has just expired, or when it is corrupt and thus discarded.

        ``left_ms``: Redis's PTTL. ``asked``: the clock's reading before Redis was asked. The time left is counted from
        ``asked``, so the entry may seem older than it is, but never younger.
        """
        if blob is None:
            return None
        try:
            if not (isinstance(blob, bytes) and isinstance(left_ms, int)):
                raise ValueError("not a reply about an entry")
            value, ttl_ms = unseal(key, blob, self._secret)
            if left_ms == -1:
                raise ValueError("without a TTL")
            if not accepts(value):
                raise ValueError("its seal is right, but its model gives no such answers")
        except ValueError as error:
            self._count_corrupt()
            self._corrupt.add(key=key, reason=str(error))
            if isinstance(blob, bytes):
                self._discard(key, blob)
            return None
        left = min(left_ms, ttl_ms) / 1000
        return Entry(value, ttl_ms / 1000, asked + left) if left > 0 else None


def _mac(key: str, ttl_ms: int, value: bytes, secret: bytes) -> bytes:
    state = _keyed(secret).copy()
    name = key.encode()
    state.update(_BOUND.pack(len(name), ttl_ms) + name + value)
    return state.digest()


@lru_cache(maxsize=8)
def _keyed(secret: bytes) -> blake2b:
    # Hashed, because blake2b takes no key longer than 64 bytes, and takes an empty key for none.
    return blake2b(key=sha256(secret).digest(), digest_size=16)
