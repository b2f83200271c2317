from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.cache.memory import ENTRY_OVERHEAD, RENDERING_OVERHEAD, MemoryCache
from tests.cache.stand_ins import Clock, entry


def cost(value: int, *bodies: int) -> int:
    """Bytes accounted for an entry under a key of one character."""
    return ENTRY_OVERHEAD + 1 + value + sum(RENDERING_OVERHEAD + body for body in bodies)


def test_the_least_recently_used_goes_first(clock: Clock) -> None:
    cache = MemoryCache(3 * cost(10), 100, clock)
    for key in "abc":
        cache.put(key, entry(bytes(10), clock=clock))
    cache.get("a")
    cache.put("d", entry(bytes(10), clock=clock))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]


def test_entries_are_bounded_in_number(clock: Clock) -> None:
    cache = MemoryCache(10**6, 2, clock)
    for key in "abc":
        cache.put(key, entry(clock=clock))
    assert len(cache) == 2
    assert cache.get("a") is None


def test_renderings_count_and_push_others_out(clock: Clock) -> None:
    cache = MemoryCache(cost(10) + cost(10, 100) - 1, 100, clock)
    cache.put("a", kept := entry(bytes(10), clock=clock))
    cache.put("b", entry(bytes(10), clock=clock))
    cache.add_rendering(kept, "view", bytes(100))
    assert cache.bytes_used == cost(10, 100)
    assert cache.get("b") is None
    assert cache.get("a") is kept
    assert kept.renderings == {"view": bytes(100)}


def test_a_rendering_that_would_make_its_entry_too_large_is_refused_quietly(clock: Clock) -> None:
    cache = MemoryCache(cost(10, 100), 100, clock)
    cache.put("a", kept := entry(bytes(10), clock=clock))
    cache.add_rendering(kept, "view", bytes(101))
    assert kept.renderings == {}
    assert cache.bytes_used == cost(10)


def test_a_rendering_of_an_entry_that_has_left_meanwhile_goes_nowhere(clock: Clock) -> None:
    cache = MemoryCache(1000, 1, clock)
    cache.put("a", gone := entry(clock=clock))
    cache.put("b", entry(clock=clock))
    used = cache.bytes_used
    cache.add_rendering(gone, "view", b"body")
    assert (len(cache), cache.bytes_used, gone.renderings) == (1, used, {})


def test_one_entry_may_be_kept_under_two_keys(clock: Clock) -> None:
    cache = MemoryCache(10_000, 100, clock)
    cache.put("a", one := entry(bytes(10), clock=clock))
    cache.put("b", one)
    cache.add_rendering(one, "view", b"body")
    cache.delete("a")
    other = cache.get("b")
    assert other is not None and (other.value, other.expires) == (one.value, one.expires)
    cache.delete("b")
    assert cache.bytes_used == 0


def test_who_holds_an_entry_that_has_left_sees_that_and_holds_no_renderings(clock: Clock) -> None:
    for take_out in (
        lambda cache: cache.delete("a"),
        lambda cache: cache.clear(),
        lambda cache: cache.put("a", entry()),
    ):
        cache = MemoryCache(10_000, 100, clock)
        cache.put("a", held := entry(bytes(10), clock=clock))
        cache.add_rendering(held, "view", b"body")
        assert held.kept_as == "a"
        take_out(cache)
        assert held.kept_as is None
        assert not held.renderings


def test_an_entry_stays_no_longer_than_it_was_allowed_to(clock: Clock) -> None:
    cache = MemoryCache(1000, 100, clock)
    cache.put("a", entry(ttl=300, clock=clock), 30)
    clock.now += 29.9
    kept = cache.get("a")
    assert kept is not None
    assert kept.left(clock()) > 270
    clock.now += 0.2
    assert cache.get("a") is None
    assert cache.bytes_used == 0


def test_with_no_bytes_it_is_off(clock: Clock) -> None:
    cache = MemoryCache(0, 100, clock)
    cache.put("a", entry(b"", clock=clock))
    assert len(cache) == 0


def test_what_is_refused_still_takes_the_place_of_what_was_there(clock: Clock) -> None:
    cache = MemoryCache(cost(10), 100, clock)
    cache.put("a", entry(bytes(10), clock=clock))
    cache.put("a", entry(bytes(11), clock=clock))
    assert cache.get("a") is None


KEYS = st.sampled_from("abcde")
STEPS = st.one_of(
    st.tuples(st.just("put"), KEYS, st.integers(0, 400)),
    st.tuples(st.just("add"), KEYS, st.integers(0, 400)),
    st.tuples(st.just("get"), KEYS, st.just(0)),
    st.tuples(st.just("delete"), KEYS, st.just(0)),
    st.tuples(st.just("wait"), KEYS, st.integers(0, 20)),
)


@given(st.lists(STEPS, max_size=60))
def test_the_account_is_right_and_within_the_bound_whatever_happens(steps: list[tuple[str, str, int]]) -> None:
    clock = Clock()
    cache = MemoryCache(2500, 3, clock)
    for step, key, number in steps:
        if step == "put":
            cache.put(key, entry(bytes(number), ttl=30, clock=clock))
        elif step == "add":
            if (found := cache._entries.get(key)) is not None:
                cache.add_rendering(found, number % 3, bytes(number))
        elif step == "get":
            cache.get(key)
        elif step == "delete":
            cache.delete(key)
        else:
            clock.now += number
        kept = cache._entries.values()
        assert cache.bytes_used == sum(cost(len(e.value), *map(len, e.renderings.values())) for e in kept) <= 2500
        assert len(cache) <= 3


def test_cleared_it_is_empty(clock: Clock) -> None:
    cache = MemoryCache(1000, 100, clock)
    cache.put("a", entry(clock=clock))
    cache.clear()
    assert (len(cache), cache.bytes_used, cache.get("a")) == (0, 0, None)


def test_it_tells_once_which_keys_were_hits(clock: Clock) -> None:
    cache = MemoryCache(10**6, 100, clock)
    cache.put("a", entry(clock=clock))
    cache.put("b", entry(clock=clock))
    for key in ("a", "a", "c"):
        cache.get(key)
    assert cache.take_asked() == {"a"}
    assert cache.take_asked() == set()
