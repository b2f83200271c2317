"""Query strings are read strictly."""

import pytest

from service.errors import InvalidInput
from service.http.predict import parse_query


@pytest.mark.parametrize(
    ("query", "params"),
    [
        (b"", {}),
        (b"a=1&b=2", {"a": "1", "b": "2"}),
        (b"a=%2B5.1", {"a": "+5.1"}),
        (b"a=5+1", {"a": "5 1"}),
        (b"a=x=y", {"a": "x=y"}),
        (b"a", {"a": ""}),
        (b"%C3%A4=%E2%82%AC", {"ä": "€"}),
    ],
)
def test_names_and_values_are_decoded_once(query: bytes, params: dict[str, str]) -> None:
    assert parse_query(query) == params


@pytest.mark.parametrize("query", [b"a=1&a=1", b"a=1&%61=2", b"=1", b"a=1&&b=2", b"a=%FF", b"a=\xff", b"&"])
def test_repeated_nameless_or_undecodable_parameters_are_refused(query: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_query(query)


def test_a_flood_of_parameters_is_refused() -> None:
    with pytest.raises(InvalidInput):
        parse_query(b"&".join(b"p%d=1" % i for i in range(1001)))
