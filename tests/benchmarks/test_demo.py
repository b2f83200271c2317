"""``make demo`` shows a first-time reader a miss, a hit, what ten requests cost, and readable keys."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from benchmarks import demo


def test_the_demo_shows_a_hit_ten_requests_with_and_without_the_cache_and_the_keys(
    iris_models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", tempfile.gettempdir())  # so that what the demo sets is undone
    assert demo.main(["--models", str(iris_models)]) == 0
    shown = capsys.readouterr().out
    first, second = re.findall(r"setosa .* ms   Cache-Status: predict; (\S+);", shown)
    assert (first, second) == ("fwd=uri-miss", "hit")
    assert re.search(r"without the cache .* ms   0 of 10 were hits", shown)
    assert re.search(r"with it .* ms   (9|10) of 10 were hits", shown)
    assert re.search(r"\d+ s  p1:\{iris:[0-9a-f]{12}:[\w-]{43}\}:v\n", shown)
