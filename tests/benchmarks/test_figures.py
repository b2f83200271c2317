"""Numbers as people read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.figures import markdown, milliseconds, percentile, rate, replace_block


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_measured(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_the_percentiles_of_one_value_are_that_value() -> None:
    assert [percentile([7.0], share) for share in (0.5, 0.99)] == [7.0, 7.0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.3e-6, "12.3 µs"), (0.00123, "1.23 ms"), (0.0999, "99.9 ms"), (0.99951, "1,000 ms"), (1.5, "1,500 ms")],
)
def test_times_carry_three_digits_and_their_unit(seconds: float, text: str) -> None:
    assert milliseconds(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(94_567.8, "94,600"), (1234.5, "1,230"), (435.2, "435"), (16.04, "16")])
def test_rates_carry_three_digits(value: float, text: str) -> None:
    assert rate(value) == text


def test_a_table_is_aligned() -> None:
    lines = markdown(["", "requests/s"], [["nginx", "94,600"], ["a longer name", "1"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "|---------------|-----------:|"


def test_a_block_is_replaced_and_all_around_it_kept(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    assert replace_block(page, "bench", r"new \1")
    assert page.read_text() == "before\n<!-- bench -->\nnew \\1\n<!-- /bench -->\nafter\n"


def test_a_page_without_the_markers_stays_as_it_is(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    assert not replace_block(page, "bench", "new")
    page.write_text("<!-- bench-peers -->x<!-- /bench-peers -->")
    assert not replace_block(page, "bench", "new")
    assert page.read_text() == "<!-- bench-peers -->x<!-- /bench-peers -->"
