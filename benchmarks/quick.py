"""``make bench-quick``: our hit against nginx and bare uvicorn, in turns, in under a minute. Reports, never fails."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from benchmarks import machine, wrk
from benchmarks.client import Address, one_by_one
from benchmarks.figures import markdown, milliseconds, rate
from benchmarks.inputs import HOT_IRIS
from benchmarks.machine import SERVER_CORE
from benchmarks.ours import MODELS, serving
from benchmarks.peers import nginx
from benchmarks.peers.contestant import Model, alone
from benchmarks.peers.results import Results, Sample
from benchmarks.peers.roster import QUERY
from benchmarks.processes import StartFailed, free_port, running

UVICORN = Path(__file__).parent / "peers" / "serve_uvicorn.py"
TITLES = {"ours": "ours, hit in memory", "nginx": "nginx `return 200`", "uvicorn": "uvicorn, bare ASGI, fixed bytes"}


def main() -> None:
    options = _arguments()
    if not wrk.installed():
        print("not run: wrk is not installed (Debian: wrk)")
        return
    try:
        results = measure(Model(options.models / "iris"), options.rounds, options.seconds)
    except (StartFailed, OSError) as error:
        print(f"not run: {error}")
        return
    print(f"\n{table(results)}\n\n{machine.summary(machine.facts())}.")


def measure(model: Model, rounds: int, seconds: float) -> Results:
    """All three stay up on the server's core; the two whose turn it is not are idle."""
    results = Results()
    with _all_started(model) as addresses:
        turns = [(number, name) for number in range(rounds) for name in addresses]
        for number, name in tqdm(turns, unit=" turns"):
            address = addresses[name]
            list(one_by_one(address, [QUERY.request(HOT_IRIS)] * 5))
            many = wrk.run(address, QUERY, "nothing", 32, seconds)
            one = wrk.run(address, QUERY, "nothing", 1, seconds)
            results.samples[name].append(Sample(number, many.rate, one.p50, many.failures + one.failures))
    return results


@contextmanager
def _all_started(model: Model) -> Iterator[dict[str, Address]]:
    uvicorn = ("127.0.0.1", free_port())
    command, env = (sys.executable, UVICORN), {"PORT": str(uvicorn[1])}
    with ExitStack() as stack:
        limit = stack.enter_context(nginx.nginx("", nginx.FIXED, SERVER_CORE))
        stack.enter_context(running(command, address=uvicorn, cores=SERVER_CORE, env=env))
        models = stack.enter_context(alone(model))
        ours = stack.enter_context(serving(models=models, cores=SERVER_CORE))
        yield {"ours": ours.address, "nginx": limit, "uvicorn": uvicorn}


def table(results: Results) -> str:
    """Medians, and ratios within the rounds."""
    header = ["", "requests/s, 32 connections", "ours ÷ it", "p50, one connection", "ours ÷ it"]
    return markdown(header, [_line(results, name) for name in TITLES])


def _line(results: Results, name: str) -> list[str]:
    rates = results.ratio("ours", name)
    latencies = results.ratio("ours", name, lambda sample: sample.p50)
    failures = sum(sample.failures for sample in results.samples[name])
    return [
        TITLES[name] + (f" ({failures:,} failures)" if failures else ""),
        rate(results.rate(name)),
        f"{rates:.2f}",
        milliseconds(results.p50(name)),
        f"{latencies:.2f}",
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quick", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2, help="length of each measurement")
    parser.add_argument("--models", type=Path, default=MODELS, help="directory with the iris model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
