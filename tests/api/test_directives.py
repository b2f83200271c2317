"""Request directives: case-insensitive, unknown ones ignored, the strictest of duplicates wins."""

import time

import pytest

from service.http.directives import holds, matches, parse_cache_control
from service.lookup import DEFAULT, CacheDirectives


@pytest.mark.parametrize(
    ("value", "directives"),
    [
        ("", DEFAULT),
        ("max-stale=5, foo, bar=baz", DEFAULT),
        ("no-cache", CacheDirectives(fresh=True)),
        ("No-Cache", CacheDirectives(fresh=True)),
        ("no-store", CacheDirectives(store=False)),
        ("only-if-cached", CacheDirectives(compute=False)),
        ("max-age=5", CacheDirectives(max_age=5)),
        ("max-age=5, max-age=3", CacheDirectives(max_age=3)),
        ('max-age="7"', CacheDirectives(max_age=7)),
        ("min-fresh=5,min-fresh=9", CacheDirectives(min_fresh=9)),
        ("max-age=0", CacheDirectives(max_age=0)),
        ("max-age=", CacheDirectives(max_age=0)),
        ("max-age=soon", CacheDirectives(max_age=0)),
        ("max-age=-1", CacheDirectives(max_age=0)),
        ('foo="a, no-cache", max-age=3', CacheDirectives(max_age=3)),
        (" , no-cache ,, only-if-cached", CacheDirectives(fresh=True, compute=False)),
    ],
)
def test_what_a_header_asks(value: str, directives: CacheDirectives) -> None:
    assert parse_cache_control(value) == directives


@pytest.mark.parametrize("value", ["a" * 30_000 + "(", "a" + " " * 30_000 + "(", 'a="\\' * 7_000, " " * 30_000 + "("])
def test_a_long_header_is_read_in_the_time_of_a_short_one(value: str) -> None:
    started = time.process_time()
    assert parse_cache_control(value) == DEFAULT
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (b'"abc"', True),
        (b'W/"abc"', True),
        (b'"x", W/"abc" , "y"', True),
        (b'"abcd"', False),
        (b"abc", False),
        (b'"x"', False),
        (b"", False),
    ],
)
def test_tags_are_compared_weakly(condition: bytes, expected: bool) -> None:
    assert matches(condition, b'"abc"') is expected


@pytest.mark.parametrize(
    ("condition", "etag", "expected"),
    [
        (b"*", None, True),
        (b"*", b'W/"abc"', True),
        (b'"abc"', b'"abc"', True),
        (b'"x", "abc"', b'"abc"', True),
        (b'W/"abc"', b'"abc"', False),
        (b'"abc"', b'W/"abc"', False),
        (b'W/"abc"', b'W/"abc"', False),
        (b'"abcd"', b'"abc"', False),
        (b'"abc"', None, False),
        (b"", b'"abc"', False),
    ],
)
def test_if_match_compares_tags_strongly(condition: bytes, etag: bytes | None, expected: bool) -> None:
    assert holds(condition, etag) is expected
