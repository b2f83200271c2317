"""``make figures``: every number of docs/reliability.md, measured anew; about four minutes. Reports, never fails."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.figures import replace_block, write_json
from benchmarks.ours import RESULTS, ROOT
from tests.reliability import deaths, entries, faults, once, report
from tests.reliability.fixture import Fixture

FILE = RESULTS / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"

FIGURES: dict[str, Callable[[Fixture], Awaitable[once.Figures]]] = {
    "computations": once.computations,
    "lag": once.lag,
    "faults": faults.faults,
    "entries": entries.entries,
    "kills": deaths.kills,
    "sigterm": deaths.sigterm,
}


def main() -> None:
    options = _arguments()
    found = {**machine.facts(), "load_average": os.getloadavg()[0]}
    known = _known()
    content = {**found, **{part: known.get(part, {}) for part in ("figures", "surprises")}}
    asyncio.run(measure(options.only or FIGURES, content))
    text = report.page(content, machine.summary(found))
    print(f"\n{text}")
    if not replace_block(PAGE, "figures", text):
        sys.exit(f"{PAGE} has no place for the figures")


async def measure(names: Iterable[str], content: dict[str, Any]) -> None:
    """One figure after the other, each with servers of its own, and each written as soon as it is known."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        fixture = Fixture(Path(directory), lambda text: print(f"{time.monotonic() - begun:4.0f} s  {text}", flush=True))
        for name in names:
            content["figures"][name] = await FIGURES[name](fixture)
            content["surprises"][name], fixture.surprises = fixture.surprises, []
            write_json(FILE, content)


def _known() -> dict[str, Any]:
    """What an earlier run found, for a run of only some figures."""
    if not FILE.exists():
        return {}
    known: dict[str, Any] = json.loads(FILE.read_text())
    return known


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--only", choices=FIGURES, action="append", help="this figure, and others from the last run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
