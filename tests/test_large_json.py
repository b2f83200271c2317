"""JSON read piece by piece is what it is when it is read at once."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import large_json
from service.errors import MalformedRequest
from service.large_json import LargeArray, LargeString, load_large

TEXTS = st.text(st.sampled_from('a\\"[]{},:\u00e9\u2028\U0001f600\n'), max_size=60)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | TEXTS,
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=60,
)
SPOILS = st.lists(
    st.tuples(st.integers(0, 400), st.sampled_from(['"', "\\", "[", "]", "{", "}", ",", ":", " ", "1", ""]))
)


@pytest.fixture(autouse=True, scope="module")
def small_pieces() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "PIECE_BYTES", 20)
        patch.setattr(large_json, "_BLOCK", 7)
        yield


def whole(value: Any) -> Any:
    if isinstance(value, LargeArray):
        elements = [whole(element) for element in value]
        assert len(elements) == len(value)
        return elements
    if isinstance(value, LargeString):
        return "".join(value.pieces())
    return {name: whole(inner) for name, inner in value.items()} if isinstance(value, dict) else value


@given(VALUES, st.booleans())
def test_in_pieces_and_at_once_it_is_the_same(value: Any, escaped: bool) -> None:
    text = json.dumps({"x": value}, ensure_ascii=escaped).encode()
    assert whole(load_large(text)) == {"x": value}


@given(VALUES, SPOILS)
def test_what_is_not_json_at_once_is_not_json_in_pieces(value: Any, spoils: list[tuple[int, str]]) -> None:
    text = json.dumps({"x": value}, ensure_ascii=False)
    for place, spoil in spoils:
        text = text[:place] + spoil + text[place + (not spoil) :]
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        with pytest.raises(MalformedRequest):
            whole(load_large(text.encode()))
    else:
        assert whole(load_large(text.encode())) == expected


def test_the_length_of_an_array_is_known_before_its_elements_are_read() -> None:
    array = load_large(b'{"a":[1,2,[3,4],nonsense, "a long enough string"]}')["a"]
    assert len(array) == 5
    with pytest.raises(MalformedRequest):
        list(array)


TOO_MUCH = {
    "depth": b"[" * 65 + b"]" * 65,
    "arrays": b"[" + b"[]," * 500_000 + b"1]",
    "values": b"[" + b"1," * 5_000_001 + b"1]",
}


@pytest.mark.parametrize("text", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_what_costs_far_more_to_hold_than_to_send_is_refused(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_json, "_BLOCK", 2**20)
    with pytest.raises(MalformedRequest):
        load_large(text)
