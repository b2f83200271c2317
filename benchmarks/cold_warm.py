"""``make bench``: how long an answer takes when it is computed, and when it is remembered."""

from __future__ import annotations

import argparse
import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from statistics import median

from tqdm import tqdm

from benchmarks import charts, inputs, machine
from benchmarks.client import Address, address_of, closed_loop, get, one_by_one
from benchmarks.figures import markdown, milliseconds, percentile, rate, replace_block, write_json
from benchmarks.ours import RESULTS, ROOT, Service, serving

NO_STORE = "Cache-Control: no-store\r\n"
CONCURRENCY = 32
REPEATS = 10
"""Identical requests in the comparison with and without the cache."""

CAPTION = "Latency of computed and of remembered answers"
TARGETS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "iris": inputs.iris_targets,
    "digits": inputs.digit_targets,
}
OUTCOMES = {"computed": "computed (cold)", "L2": "hit in Redis", "L1": "hit in memory"}
"""What became of a request, in the order of the table."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds, of ``count`` requests asked one after the other."""

    count: int
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One model. ``never_seen_computed``: the share of never-seen inputs that really had to be computed.

    ``latency``: by outcome. ``throughput``: requests per second at CONCURRENCY connections, by outcome.
    ``repeated``: seconds for REPEATS identical requests, with and without the cache.
    """

    model: str
    never_seen_computed: float
    latency: dict[str, Latency]
    throughput: dict[str, float]
    repeated: dict[str, float]


def main() -> None:
    options = _arguments()
    own = serving(redis=options.redis, cores=machine.OTHER_CORES)
    service: AbstractContextManager[Service] = nullcontext(Service(address_of(options.url))) if options.url else own
    with service as running:
        machine.pin(machine.CLIENT_CORE)
        models = [name for name in TARGETS if name in running.models()]
        measured = [measure(running.address, name, options.requests, options.seconds) for name in models]
    found = machine.facts()
    text = report(measured, machine.summary(found))
    print(f"\n{text}")
    write_json(RESULTS / "cold_warm.json", {**found, "models": [asdict(each) for each in measured]})
    draw(measured)
    if replace_block(ROOT / "README.md", "bench", f"![{CAPTION}](benchmarks/results/cold_warm.png)\n\n{text}"):
        print("\nThe block <!-- bench --> in README.md is up to date.")


def measure(address: Address, model: str, count: int, seconds: float) -> Measured:
    """Everything about one model, with a progress bar per step."""
    chance = random.Random()
    targets = TARGETS[model](chance)
    latency, share = _latencies(address, model, list(itertools.islice(targets, count)))
    fresh = (get(target, NO_STORE) for target in targets)
    hot = itertools.repeat(get(next(targets)))
    list(one_by_one(address, itertools.islice(hot, 3)))
    throughput = {
        "computed": _throughput(address, f"{model}: {CONCURRENCY} connections, all computed", fresh, seconds),
        "L1": _throughput(address, f"{model}: {CONCURRENCY} connections, all hits", hot, seconds),
    }
    return Measured(model, share, latency, throughput, _repeated(address, model, targets))


def _latencies(address: Address, model: str, targets: list[str]) -> tuple[dict[str, Latency], float]:
    """The same inputs three times over: computed, then found in Redis (if there is one), then in memory."""
    samples: dict[str, list[float]] = defaultdict(list)
    first_pass_computed = 0
    requests = [get(target) for _ in range(3) for target in targets]
    replies = one_by_one(address, requests)
    for number, reply in enumerate(tqdm(replies, f"{model}: one by one", len(requests), unit=" requests")):
        if reply.status != 200:
            raise SystemExit(f"{model} answered {reply.status}: {reply.body[:200].decode(errors='replace')}")
        samples[reply.outcome].append(reply.seconds)
        first_pass_computed += number < len(targets) and reply.outcome == "computed"
    found = {name: _latency(samples[name]) for name in OUTCOMES if samples[name]}
    return found, first_pass_computed / len(targets)


def _latency(seconds: list[float]) -> Latency:
    return Latency(len(seconds), *(percentile(seconds, share) for share in (0.5, 0.95, 0.99)))


def _throughput(address: Address, title: str, requests: Iterator[bytes], seconds: float) -> float:
    """Requests per second, as many as this client can send; wrk, in bench-peers, can send more."""
    with tqdm(desc=title, unit=" requests") as bar:
        took = closed_loop(address, requests, CONCURRENCY, seconds, lambda _: bar.update())
        answered: int = bar.n
    return answered / took


def _repeated(address: Address, model: str, targets: Iterator[str], rounds: int = 7) -> dict[str, float]:
    """The median time for ten identical requests in all, the first of them never seen before."""
    totals: dict[str, list[float]] = {"with": [], "without": []}
    for _ in tqdm(range(rounds), f"{model}: {REPEATS} identical requests", unit=" rounds"):
        for name, headers in (("with", ""), ("without", NO_STORE)):
            replies = one_by_one(address, [get(next(targets), headers)] * REPEATS)
            totals[name].append(sum(reply.seconds for reply in replies))
    return {name: median(values) for name, values in totals.items()}


def report(measured: list[Measured], where: str) -> str:
    """The tables, in Markdown."""
    header = ["", "requests", "p50", "p95", "p99", f"requests/s, {CONCURRENCY} connections"]
    rows = [
        [
            f"{each.model}, {OUTCOMES[name]}",
            f"{found.count:,}",
            *map(milliseconds, (found.p50, found.p95, found.p99)),
            _speed(each, name),
        ]
        for each in measured
        for name, found in each.latency.items()
    ]
    ratios = [
        [
            each.model,
            _ratio(each.latency),
            milliseconds(each.repeated["without"]),
            milliseconds(each.repeated["with"]),
            f"{each.repeated['without'] / each.repeated['with']:.1f} ×",
        ]
        for each in measured
    ]
    ratio_header = ["", "cold p50 / warm p50", f"{REPEATS} identical requests, no cache", "with it", "faster"]
    shares = ", ".join(f"{each.never_seen_computed:.0%} of {each.model}" for each in measured)
    foot = f"Of the never-seen inputs {shares} were computed: those in the same cell of a tree model share one answer."
    return "\n\n".join([markdown(header, rows), markdown(ratio_header, ratios), f"{foot}\n{where}."])


def _ratio(latency: dict[str, Latency]) -> str:
    """How many times slower a computed answer is than the fastest kind of hit."""
    hits = [found.p50 for name, found in latency.items() if name != "computed"]
    return f"{latency['computed'].p50 / min(hits):,.1f} ×" if hits and "computed" in latency else "–"


def _speed(each: Measured, outcome: str) -> str:
    return rate(each.throughput[outcome]) if outcome in each.throughput else "–"


def draw(measured: list[Measured]) -> None:
    """benchmarks/results/cold_warm.png"""
    spans = [
        charts.Span(f"{each.model}, {OUTCOMES[name]}", found.p50, found.p99, "warm" if name != "computed" else "cold")
        for each in measured
        for name, found in each.latency.items()
    ]
    pairs = [charts.Pair(each.model, each.repeated["without"], each.repeated["with"]) for each in measured]
    charts.cold_warm(RESULTS / "cold_warm.png", spans, pairs, REPEATS)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_warm", description=__doc__)
    parser.add_argument("--url", help="a running service, e.g. http://127.0.0.1:8000; by default one is started")
    parser.add_argument("--redis", default="embedded", help="PREDICT_REDIS_URL of the service that is started")
    parser.add_argument("--requests", type=int, default=400, help="never-seen inputs per model")
    parser.add_argument("--seconds", type=float, default=3, help="length of each throughput run")
    return parser.parse_args()


if __name__ == "__main__":
    main()
