"""The cache key of an answer, and the keys in Redis."""

from __future__ import annotations

from binascii import b2a_base64
from hashlib import sha256

FINGERPRINT_BYTES = 32
GENERATION_BYTES = 8

# Part of every key. Changing it, like anything else in this file, empties every cache in production.
_DOMAIN = b"cached-prediction-service/key/1\0"

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


def cache_key(fingerprint: bytes, generation: bytes, identity: bytes) -> str:
    """43 characters that name the answer of one model to one question.

    All 256 bits of a collision-resistant hash: with fewer bits or a faster hash, somebody could craft two inputs that
    have one key. Fingerprint and generation have fixed lengths, so two triples never become the same bytes.
    """
    if len(fingerprint) != FINGERPRINT_BYTES or len(generation) != GENERATION_BYTES:
        raise ValueError(f"a fingerprint has {FINGERPRINT_BYTES} bytes and a generation {GENERATION_BYTES}")
    digest = sha256(_DOMAIN + fingerprint + generation + identity).digest()
    # As base64.urlsafe_b64encode, without its three calls.
    return b2a_base64(digest, newline=False)[:43].translate(_URL_SAFE).decode("ascii")


# The keys of one question share a hash tag, as a Redis Cluster needs it for scripts with several keys.


def entry_key(key: str) -> str:
    return f"p1:{{{key}}}:v"


def lease_keys(key: str) -> tuple[str, str, str, str]:
    """The entry, the lease, the mark that a worker waits, and the number of claims."""
    stem = f"p1:{{{key}}}:"
    return stem + "v", stem + "l", stem + "w", stem + "a"


def generation_key(model: str) -> str:
    return f"p1:g:{model}"


def readers_key(model: str) -> str:
    """The workers that have read the model's generation, sorted by the time of the reading (ms of Redis's clock). The
    member '' has minus the time at which the list began."""
    return f"p1:w:{model}"


def acknowledgements_key(model: str, generation: bytes = b"") -> str:
    """The set of workers that use this generation and none before it. Without a generation: the workers that do not
    serve the model."""
    return f"p1:k:{model}:{generation.hex()}"


def distinct_questions_keys(model: str) -> tuple[str, str]:
    """The HyperLogLog of a model's cache keys, and the counts of its questions and hits."""
    return f"p1:{{{model}}}:hll", f"p1:{{{model}}}:asked"
