"""Numbers as people read them, tables, and the place in a document where they go."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` (0…1) of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def milliseconds(seconds: float) -> str:
    """Three significant digits, in the unit that suits them."""
    value, unit = (seconds * 1e3, "ms") if seconds >= 1e-3 else (seconds * 1e6, "µs")
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:,.0f} {unit}"


def rate(per_second: float) -> str:
    """Requests per second with thousands separators, three significant digits."""
    if per_second < 100:
        return f"{per_second:.3g}"
    digits = len(str(int(per_second))) - 3
    return f"{round(per_second, -digits):,.0f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: the first to the left, the others to the right."""
    cells = [list(header), *map(list, rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = [_line(row, widths) for row in cells]
    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
    return "| " + " | ".join(padded) + " |"


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_block(page: Path, name: str, text: str) -> bool:
    """Put ``text`` between ``<!-- name -->`` and ``<!-- /name -->``; False when the page or the markers are missing."""
    if not page.exists():
        return False
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    old = page.read_text()
    new, count = re.subn(
        re.escape(start) + ".*?" + re.escape(end), lambda _: f"{start}\n{text}\n{end}", old, flags=re.DOTALL
    )
    if count:
        page.write_text(new)
    return bool(count)
