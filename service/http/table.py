"""Rows of numbers in JSON as one array."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.inference.manifest import MAX_EXACT
from service.large_json import LargeArray


def as_table(rows: list[Any] | LargeArray, names: Sequence[str]) -> NDArray[np.float64] | None:
    """Rows × columns; None unless all rows are arrays, or all are objects, of just so many numbers."""
    parts = []
    for group in rows.groups() if isinstance(rows, LargeArray) else (rows,):
        part = _numbers(group, names)
        if part is None:
            return None
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _numbers(group: list[Any], names: Sequence[str]) -> NDArray[np.float64] | None:
    kinds = set(map(type, group))
    if kinds not in ({list}, {dict}) or set(map(len, group)) != {len(names)} or not names:
        return None
    try:
        columns = [list(map(itemgetter(name), group)) for name in names] if kinds == {dict} else group
        values = list(chain.from_iterable(columns))
        types = set(map(type, values))
        if not types <= {int, float}:  # a bool is an int, but no number
            return None
        table = np.array(values, np.float64)
    except (KeyError, OverflowError):
        return None
    if int in types and np.abs(table).max() > MAX_EXACT:  # rounded before or after it is compared with a bound
        return None
    return table.reshape(len(names), -1).T if kinds == {dict} else table.reshape(-1, len(names))
