"""The cache key of an answer, and the keys in Redis."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable
from contextvars import ContextVar
from hashlib import sha256

FINGERPRINT_BYTES = 32
GENERATION_BYTES = 8

# Part of every key. Changing it, like anything else in this file, empties every cache in production.
_DOMAIN = b"cached-prediction-service/key/1\0"

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


current_tenant: ContextVar[bytes] = ContextVar("current_tenant", default=b"")
"""Who asks, where an operator separates tenants; empty otherwise."""


def of_tenant(generation: bytes) -> bytes:
    """The generation that is part of the current tenant's keys and entity tags. A purge changes all tenants'."""
    tenant = current_tenant.get()
    return sha256(generation + tenant).digest()[:GENERATION_BYTES] if tenant else generation


def cache_key(label: str, fingerprint: bytes, generation: bytes, identity: bytes) -> str:
    """The label, and 43 characters that name the answer of one model to one question.

    The label, a model's name and version, is for people who read keys. The characters have all 256 bits of a
    collision-resistant hash: with fewer bits or a faster hash, somebody could craft two inputs that have one key.
    Fingerprint and generation have fixed lengths, so two triples never become the same bytes.
    """
    if len(fingerprint) != FINGERPRINT_BYTES or len(generation) != GENERATION_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes and a generation {GENERATION_BYTES}")
    digest = sha256(_DOMAIN + fingerprint + generation + identity).digest()
    # As base64.urlsafe_b64encode, without its three calls.
    return f"{label}:{b2a_base64(digest, newline=False)[:43].translate(_URL_SAFE).decode('ascii')}"


def cache_keys(
    label: str, fingerprint: bytes, generation: bytes, mark: bytes, identities: bytes, size: int
) -> list[str]:
    """``cache_key`` of many identities: each is ``mark`` and so many bytes."""
    beginning = sha256(_DOMAIN + fingerprint + generation + mark)
    digests = []
    for start in range(0, len(identities), size):
        state = beginning.copy()
        state.update(identities[start : start + size])
        digests.append(state.digest() + b"\0")
    # 33 bytes are 44 characters without padding, so all digests can be written at once.
    text = b2a_base64(b"".join(digests), newline=False).translate(_URL_SAFE).decode("ascii")
    return [f"{label}:{text[start : start + 43]}" for start in range(0, len(text), 44)]


class RedisKeys:
    """The keys and channels in Redis. All begin with ``prefix``, so that several services can share one Redis.

    The keys of one question share a hash tag, as a Redis Cluster needs it for scripts with several keys.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.probe = f"{prefix}:probe"  # never exists: it is read and written to see whether Redis lets us
        self.purges = f"{prefix}:purges"  # the channel for the names of models whose generation was replaced
        # The channel for keys whose lease has ended while a worker waited. Hints are rare, so all keys share it.
        self.hints = f"{prefix}:hints"

    def entry(self, key: str) -> str:
        return self.entries([key])[0]

    def entries(self, keys: Iterable[str]) -> list[str]:
        return [f"{self.prefix}:{{{key}}}:v" for key in keys]

    def lease(self, key: str) -> tuple[str, str, str, str]:
        """The entry, the lease, the mark that a worker waits, and the number of claims."""
        stem = f"{self.prefix}:{{{key}}}:"
        return stem + "v", stem + "l", stem + "w", stem + "a"

    def generation(self, model: str) -> str:
        return f"{self.prefix}:g:{model}"

    def readers(self, model: str) -> str:
        """The workers that have read the model's generation, sorted by the time of the reading (ms of Redis's clock).
        The member '' has minus the time at which the list began."""
        return f"{self.prefix}:w:{model}"

    def acknowledgements(self, model: str, generation: bytes = b"") -> str:
        """The set of workers that use this generation and none before it. Without a generation: the workers that do
        not serve the model."""
        return f"{self.prefix}:k:{model}:{generation.hex()}"

    def distinct_questions(self, model: str) -> tuple[str, str]:
        """The HyperLogLog of a model's cache keys, and the counts of its questions and hits."""
        return f"{self.prefix}:{{{model}}}:hll", f"{self.prefix}:{{{model}}}:asked"
