from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.cache.entry import MAX_VALUE_BYTES, Entry, new_entry, seal, unseal

SECRET = b"secret"
KEYS = st.text(max_size=50)
TTLS = st.integers(1, 2**32 - 1)


def test_the_format_never_changes_since_that_would_empty_every_cache() -> None:
    assert seal("K", b"value", 300_000, SECRET).hex() == "50524501000493e039fa3301f088caaf3722b161f7f4fcf776616c7565"


@given(KEYS, st.binary(max_size=200), TTLS, st.binary(max_size=100))
def test_what_was_sealed_is_unsealed(key: str, value: bytes, ttl_ms: int, secret: bytes) -> None:
    assert unseal(key, seal(key, value, ttl_ms, secret), secret) == (value, ttl_ms)


@given(KEYS, st.binary(max_size=50), TTLS, st.data())
def test_one_changed_bit_anywhere_is_noticed(key: str, value: bytes, ttl_ms: int, data: st.DataObject) -> None:
    blob = bytearray(seal(key, value, ttl_ms, SECRET))
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError):
        unseal(key, bytes(blob), SECRET)


@given(st.binary(max_size=50), st.data())
def test_a_truncated_or_lengthened_value_is_noticed(value: bytes, data: st.DataObject) -> None:
    blob = seal("K", value, 1000, SECRET)
    cut = data.draw(st.integers(0, len(blob) - 1))
    for wrong in (blob[:cut], blob[cut + 1 :], blob + b"\0"):
        with pytest.raises(ValueError):
            unseal("K", wrong, SECRET)


@given(KEYS, KEYS)
def test_a_value_copied_to_another_key_is_noticed(key: str, other: str) -> None:
    blob = seal(key, b"value", 1000, SECRET)
    if key != other:
        with pytest.raises(ValueError, match="another key's"):
            unseal(other, blob, SECRET)


@pytest.mark.parametrize("secret", [b"", b"Secret", SECRET + b"\0", SECRET * 20])
def test_another_secret_is_noticed(secret: bytes) -> None:
    with pytest.raises(ValueError, match="forged"):
        unseal("K", seal("K", b"value", 1000, SECRET), secret)


@given(st.binary(max_size=100))
def test_random_bytes_are_no_entry(blob: bytes) -> None:
    with pytest.raises(ValueError):
        unseal("K", blob, SECRET)


def test_values_up_to_64_KiB_are_sealed_and_no_larger_ones() -> None:
    largest = bytes(MAX_VALUE_BYTES)
    assert unseal("K", seal("K", largest, 1000, SECRET), SECRET) == (largest, 1000)
    with pytest.raises(ValueError, match="65537 bytes"):
        seal("K", largest + b"\0", 1000, SECRET)
    with pytest.raises(ValueError, match="length"):
        unseal("K", bytes(MAX_VALUE_BYTES + 100), SECRET)


@pytest.mark.parametrize("ttl_ms", [-1, 0, 2**32])
def test_a_TTL_that_does_not_fit_is_refused(ttl_ms: int) -> None:
    with pytest.raises(ValueError, match="TTL"):
        seal("K", b"", ttl_ms, SECRET)


@given(st.floats(0.001, 4_000_000), st.floats(0, 1, exclude_max=True))
def test_jitter_only_shortens_a_life_and_by_a_tenth_at_most(ttl: float, chance: float) -> None:
    entry = new_entry(b"", ttl, 0.0, lambda: chance)
    assert ttl * 0.9 - 0.001 <= entry.ttl <= max(ttl, 0.001)


def test_without_luck_nothing_is_lost_and_with_much_a_tenth() -> None:
    assert new_entry(b"", 300, 0.0, lambda: 0.0).ttl == 300
    assert new_entry(b"", 300, 0.0, lambda: 1.0).ttl == 270


def test_age_grows_from_zero_to_the_lifetime_while_what_is_left_shrinks() -> None:
    entry = new_entry(b"", 300, 1000.0, lambda: 0.0)
    assert (entry.age(1000.0), entry.left(1000.0)) == (0, 300)
    assert (entry.age(1100.0), entry.left(1100.0)) == (100, 200)
    assert (entry.age(1300.0), entry.left(1300.0)) == (300, 0)


def test_an_age_is_never_negative() -> None:
    assert Entry(b"", 10, 1011.0).age(1000.0) == 0
