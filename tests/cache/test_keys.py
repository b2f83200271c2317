from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cache.keys import RedisKeys, cache_key

FINGERPRINT, GENERATION = bytes(range(32)), b"\x00\x01\x02\x03\x04\x05\x06\x07"
LABEL = "iris:000102030405"


@pytest.mark.parametrize(
    ("identity", "key"),
    [
        (b"", "KIIxWfglRlQpF-G0XHoZoHJwViGoilR0fepMBfwMGVo"),
        (bytes.fromhex("4014666666666666"), "YucVu1Pz9YpnB4s1qWtwgZdWscLnESX7k-mOsJekfuE"),
        (b"\xff" * 150_000, "5JWX3CPdH52ALnHL4YB5BBVUeuOqV54cKALSOgdW5Mw"),
    ],
)
def test_keys_never_change_since_that_would_empty_every_cache(identity: bytes, key: str) -> None:
    assert cache_key(LABEL, FINGERPRINT, GENERATION, identity) == f"{LABEL}:{key}"


def test_redis_names_never_change_and_those_of_one_question_share_a_slot() -> None:
    keys = RedisKeys("p1")
    assert keys.entry("K") == "p1:{K}:v"
    assert keys.lease("K") == ("p1:{K}:v", "p1:{K}:l", "p1:{K}:w", "p1:{K}:a")
    assert keys.generation("iris") == "p1:g:iris"


@given(st.binary(max_size=64))
def test_a_key_is_its_label_and_43_characters_of_base64url(identity: bytes) -> None:
    label, _, key = cache_key(LABEL, FINGERPRINT, GENERATION, identity).rpartition(":")
    assert (label, len(key)) == (LABEL, 43)
    assert set(key) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def test_fingerprint_generation_and_identity_each_make_another_key() -> None:
    keys = {
        cache_key(LABEL, fingerprint, generation, identity)
        for fingerprint in (FINGERPRINT, bytes(32))
        for generation in (GENERATION, bytes(8))
        for identity in (b"", b"\0", b"\0\0")
    }
    assert len(keys) == 12


@pytest.mark.parametrize(("fingerprint", "generation"), [(bytes(31), bytes(9)), (bytes(33), bytes(7)), (b"", b"")])
def test_bytes_cannot_move_from_one_part_of_a_key_to_another(fingerprint: bytes, generation: bytes) -> None:
    with pytest.raises(ValueError, match="a fingerprint has 32 bytes and a generation 8"):
        cache_key(LABEL, fingerprint, generation, b"")
