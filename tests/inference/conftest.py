"""Estimators with threads of their own spend their time waiting for each other where every core is busy."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    with threadpool_limits(1):
        yield
