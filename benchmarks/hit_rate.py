"""``make bench-hit-rate``: how many inputs that nobody sent before are hits, since a tree model's keys are cells."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from tqdm import tqdm

from benchmarks import charts, machine
from benchmarks.client import Address, get, one_by_one
from benchmarks.figures import markdown, replace_block, write_json
from benchmarks.inputs import iris_target
from benchmarks.ours import MODELS, RESULTS, TABLES, serving

NOISES = (0.1, 0.3)
"""Standard deviations in cm of what is added to the flowers' measurements."""

LEAST_CM = 0.1
POINTS = 50
"""Of each curve: the requests are counted in so many parts."""

CAPTION = "Hits among inputs that nobody has sent before, over the number of requests"
SETTINGS: dict[str, object] = {"ttl_seconds": 86_400, "l1_max_bytes": 2**30, "l1_max_entries": 10**6, "audit_share": 0}
"""Nothing may expire or be evicted while this counts."""

Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Requests, one after the other. ``seen``: had been asked before, to the last digit; ``hits``: of the others."""

    requests: int
    seen: int
    hits: int

    @property
    def hit_rate(self) -> float:
        """Of the inputs never seen before."""
        never = self.requests - self.seen
        return self.hits / never if never else 0.0

    @property
    def exact_rate(self) -> float:
        """Of all inputs, for a cache that matches them exactly."""
        return self.seen / self.requests


@dataclass(frozen=True, slots=True)
class Measured:
    """``noise``: standard deviation in cm."""

    noise: float
    parts: list[Part]

    @property
    def whole(self) -> Part:
        return total(self.parts)

    @property
    def last_tenth(self) -> Part:
        return total(self.parts[-max(1, len(self.parts) // 10) :])


def total(parts: list[Part]) -> Part:
    return Part(sum(p.requests for p in parts), sum(p.seen for p in parts), sum(p.hits for p in parts))


def main() -> None:
    options = _arguments()
    measured = []
    for noise in NOISES:
        with serving(models=options.models, cores=machine.OTHER_CORES, settings=SETTINGS) as service:
            machine.pin(machine.CLIENT_CORE)
            rows = noisy_flowers(noise, random.Random(options.seed))
            measured.append(Measured(noise, measure(service.address, rows, options.requests, f"noise {noise} cm")))
        machine.pin(machine.ALL_CORES)
    found = machine.facts()
    text = f"{table(measured)}\n\n{machine.summary(found)}."
    print(f"\n{text}")
    write_json(RESULTS / "hit_rate.json", {**found, "seed": options.seed, "noises": [_content(m) for m in measured]})
    draw(RESULTS / "hit_rate.png", measured)
    if replace_block(TABLES, "hit-rate", f"![{CAPTION}](../benchmarks/results/hit_rate.png)\n\n{text}"):
        print("\nThe block <!-- hit-rate --> in docs/performance.md is up to date.")


def noisy_flowers(noise: float, chance: random.Random) -> Iterator[Row]:
    """The 150 measured flowers in random order, measured again: with normal noise, read to a tenth of a millimetre."""
    from sklearn.datasets import load_iris  # not above: it takes a second, and the tests need none of it

    flowers = load_iris().data.tolist()
    while True:
        flower = chance.choice(flowers)
        yield tuple(max(LEAST_CM, round(x + chance.gauss(0, noise), 2)) for x in flower)


def measure(address: Address, rows: Iterator[Row], count: int, title: str) -> list[Part]:
    """Ask ``count`` of them, one after the other; raises ValueError on any answer but 200."""
    chosen = list(islice(rows, count))
    replies = one_by_one(address, (get(iris_target(row)) for row in chosen))
    asked: set[Row] = set()
    hits, seen = [], []
    for row, reply in tqdm(zip(chosen, replies, strict=True), title, total=count, unit=" requests"):
        if reply.status != 200:
            raise ValueError(f"{row} was answered with {reply.status}: {reply.body.decode(errors='replace')}")
        seen.append(row in asked)
        hits.append(reply.outcome in ("L1", "L2") and not seen[-1])
        asked.add(row)
    size = max(1, count // POINTS)
    starts = range(0, count, size)
    return [Part(len(seen[i : i + size]), sum(seen[i : i + size]), sum(hits[i : i + size])) for i in starts]


def table(measured: list[Measured]) -> str:
    """The share of hits in all, and at the end; what exact matching would have had."""
    header = ["noise", "requests", "never seen", "hits among them", "of the last tenth", "exact match would have had"]
    rows = []
    for each in measured:
        whole = each.whole
        never = f"{whole.requests - whole.seen:,}"
        shares = [f"{whole.hit_rate:.1%}", f"{each.last_tenth.hit_rate:.1%}", f"{whole.exact_rate:.2%}"]
        rows.append([f"± {each.noise} cm", f"{whole.requests:,}", never, *shares])
    return markdown(header, rows)


def draw(path: Path, measured: list[Measured]) -> None:
    """A line per noise for the cells, and one for exact matching, named at their ends."""
    figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
    axis.set_title(CAPTION, loc="left", fontsize=11, color=charts.INK, fontweight="bold")
    for each, style in zip(measured, ("-", "--"), strict=True):
        ends = [sum(part.requests for part in each.parts[: i + 1]) for i in range(len(each.parts))]
        for kind, colour, rates in (
            ("cells", charts.COLOURS["ours"], [part.hit_rate for part in each.parts]),
            ("exact match", charts.COLOURS["cold"], [part.exact_rate for part in each.parts]),
        ):
            axis.plot(ends, rates, style, color=colour, linewidth=2)
            if kind == "cells" or each is measured[0]:
                noise = f", ± {each.noise} cm" if kind == "cells" else ""
                _name(axis, ends[-1], rates[-1], f"{kind}{noise}: {rates[-1]:.1%}")
    axis.set_xlim(0, ends[-1] * 1.28)
    axis.set_ylim(-0.04, 1)
    axis.set_xticks([ends[-1] * i / 5 for i in range(6)])
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.tick_params(length=0, labelcolor=charts.FAINT, labelsize=9)
    axis.grid(color="#e2e8f0", linewidth=0.8)
    for side in ("top", "right", "left", "bottom"):
        axis.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _name(axis: Any, x: float, y: float, text: str) -> None:
    """At the end of a line."""
    axis.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=9, color=charts.INK)


def _content(each: Measured) -> dict[str, object]:
    """For the results file."""
    whole = each.whole
    return {
        "noise_cm": each.noise,
        **asdict(whole),
        "hit_rate": whole.hit_rate,
        "last_tenth_hit_rate": each.last_tenth.hit_rate,
        "exact_rate": whole.exact_rate,
        "parts": [[part.requests, part.seen, part.hits] for part in each.parts],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hit_rate", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="per noise")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--models", type=Path, default=MODELS, help="directory with the iris model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
