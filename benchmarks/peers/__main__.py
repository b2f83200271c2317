"""``make bench-peers``: us and the others in turns, several rounds, medians and spread."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks import machine, wrk
from benchmarks.client import Address, one_by_one
from benchmarks.figures import write_json
from benchmarks.inputs import HOT_IRIS
from benchmarks.ours import MODELS, RESULTS
from benchmarks.peers import report, special
from benchmarks.peers.contestant import Contestant, Model, Row, computed, verify
from benchmarks.peers.results import Results, Sample
from benchmarks.peers.roster import ROSTER
from benchmarks.processes import StartFailed

PRIME = 5
"""Times that a hot key is asked before its measurement: the first computes, the second finds it in Redis."""
SPECIAL = "special"
"""The name under which --only asks for what special.py measures."""


def main() -> None:
    options = _arguments()
    if not wrk.installed():
        sys.exit("wrk is not installed (Debian: wrk)")
    model = Model(options.models / "iris")
    chosen = [each for each in ROSTER if not options.only or options.only & {row.name for row in each.rows}]
    results = take_turns(chosen, model, options.rounds, options.seconds)
    extras = special.measure(model, options.rounds) if not options.only or SPECIAL in options.only else {}
    found = machine.facts()
    rows = [row for contestant in chosen for row in contestant.rows]
    settings = {"rounds": options.rounds, "seconds": options.seconds}
    print("\n" + report.write(results, rows, extras, machine.summary(found)))
    write_json(RESULTS / "peers.json", {**found, **settings, "rows": results.as_json(rows), "special": extras})


def take_turns(contestants: Sequence[Contestant], model: Model, rounds: int, seconds: float) -> Results:
    """Every contestant once per round; one that fails is named with its reason, and not tried again."""
    results = Results()
    turns = [(number, contestant) for number in range(rounds) for contestant in contestants]
    with tqdm(turns, unit=" turns") as bar:
        for number, contestant in bar:
            if contestant.rows[0].name in results.reasons:
                continue
            bar.set_description(f"round {number + 1}, {contestant.rows[0].name}")
            try:
                _turn(contestant, model, number, seconds, results)
            except (StartFailed, OSError) as error:
                reason = " ".join(str(error).split())[:160]
                results.reasons.update({row.name: reason for row in contestant.rows})
                bar.write(f"{contestant.rows[0].name}: {reason}")
    return results


def _turn(contestant: Contestant, model: Model, number: int, seconds: float, results: Results) -> None:
    with contestant.start(contestant, model, contestant.cores) as address:
        verify(contestant, model, address)
        for row in contestant.rows:
            results.samples[row.name].append(_sample(contestant, row, address, number, seconds))


def _sample(contestant: Contestant, row: Row, address: Address, number: int, seconds: float) -> Sample:
    shape = wrk.Shape(contestant.shape.target, contestant.shape.body, contestant.shape.headers + row.headers)
    list(one_by_one(address, [shape.request(HOT_IRIS)] * PRIME))
    processes = machine.descendants(os.getpid())
    before, busy = computed(contestant, address), machine.cpu_seconds(processes)
    many = wrk.run(address, shape, row.vary, 32, seconds)
    after, busy = computed(contestant, address), machine.cpu_seconds(processes) - busy
    one = wrk.run(address, shape, row.vary, 1, seconds)
    share = None if before is None or after is None else min(1.0, (after - before) / many.answers)
    return Sample(number, many.rate, one.p50, many.failures + one.failures, busy / many.answers, share)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = {row.name for contestant in ROSTER for row in contestant.rows} | {SPECIAL}
    parser.add_argument("--only", type=lambda text: set(text.split(",")), help=", ".join(sorted(names)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="length of each measurement")
    parser.add_argument("--models", type=Path, default=MODELS, help="directory with the iris model")
    options = parser.parse_args()
    if options.only and (unknown := options.only - names):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    return options


if __name__ == "__main__":
    main()
