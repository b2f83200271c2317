"""A cached answer, and its sealed form in Redis."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b, sha256
from hmac import compare_digest

MAX_VALUE_BYTES = 64 * 2**10
"""Larger values are not stored in Redis."""

JITTER = 0.1
"""The largest part of its lifetime that a new entry may lose."""

_MAGIC = b"PRE\x01"  # the last byte is the version of this format
_HEADER = struct.Struct("!4sI16s")  # magic and version, ttl in ms, MAC
_BOUND = struct.Struct("!HI")  # what the MAC covers beside key and payload: the key's length, ttl in ms


@dataclass(slots=True, eq=False)
class Entry:
    """``value``: the packed array. ``ttl``: its lifetime in seconds. ``expires``: the clock's reading at its end.

    ``renderings``: view -> body. Only L1 uses them, and only ``MemoryCache.add_rendering`` adds one.
    """

    value: bytes
    ttl: float
    expires: float
    renderings: dict[Hashable, bytes] = field(default_factory=dict)

    def left(self, now: float) -> float:
        """Seconds until it expires; not positive once it has."""
        return self.expires - now

    def age(self, now: float) -> float:
        """Seconds since it was made: its lifetime less what is left, never negative."""
        return max(0.0, self.ttl - (self.expires - now))


def new_entry(value: bytes, ttl: float, now: float, random: Callable[[], float]) -> Entry:
    """A new entry. It lives for ``ttl`` less up to a tenth, so that answers computed together do not expire together.

    The lifetime is in whole milliseconds, as in Redis: what is read back is what was written.
    """
    ttl_ms = max(1, int(ttl * (1 - JITTER * random()) * 1000))
    return Entry(value, ttl_ms / 1000, now + ttl_ms / 1000)


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


def _mac(key: str, ttl_ms: int, value: bytes, secret: bytes) -> bytes:
    state = _keyed(secret).copy()
    name = key.encode()
    state.update(_BOUND.pack(len(name), ttl_ms) + name + value)
    return state.digest()


@lru_cache(maxsize=8)
def _keyed(secret: bytes) -> blake2b:
    # Hashed, because blake2b takes no key longer than 64 bytes, and takes an empty key for none.
    return blake2b(key=sha256(secret).digest(), digest_size=16)
