"""``make bench-resnet``: ResNet-18 on the CPU, never-seen JPEGs by HTTP against each runtime called in a loop."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import TypeAlias

from tqdm import tqdm

from benchmarks import machine, runtimes, wrk
from benchmarks.client import Connection, Reply, closed_loop, post
from benchmarks.figures import replace_block, write_json
from benchmarks.inputs import jpeg, small_png
from benchmarks.machine import SERVER_CORE
from benchmarks.ours import RESULTS, ROOT, TABLES, Service, serving
from benchmarks.peers.environments import interpreter, requirements
from benchmarks.peers.results import Results, Sample
from benchmarks.processes import StartFailed, last_lines
from benchmarks.resnet_report import CONNECTIONS, HITS, LOADS, TITLES, Load, report

SCRIPT = Path(runtimes.__file__)
ELSEWHERE = ("onnxruntime", "openvino")
"""Those that have an environment of their own."""

NAME = "resnet18"
TARGET = f"/models/{NAME}/predict"
PICTURES, DECODE_SECONDS = 100, 0.2
"""Decoding is timed by itself, with so many pictures and for so long."""

DRAWN_PER_SECOND = 300
"""Pictures are drawn before the clock starts, so that the client leaves the cores to the service; when they run out, a
measurement ends early."""

Measure: TypeAlias = Callable[[int, float], tuple[float, float]]
"""How many images at once, and for how many seconds -> images per second, and the seconds that a call or answer took:
the median."""


def main() -> None:
    options = _arguments()
    if not wrk.installed():
        raise SystemExit("not run: wrk is not installed (Debian: wrk)")
    with TemporaryDirectory() as directory:
        results = take_turns(Path(directory), options.rounds, options.seconds)
    found = machine.facts()
    text = f"{report(results)}\n\n{machine.summary(found)}."
    print(f"\n{text}")
    settings = {"rounds": options.rounds, "seconds": options.seconds, "runtimes": requirements(SCRIPT)["dependencies"]}
    rows = {row: [asdict(sample) for sample in samples] for row, samples in results.samples.items() if samples}
    write_json(RESULTS / "resnet.json", {**found, **settings, "not_run": results.reasons, "rows": rows})
    if replace_block(TABLES, "bench-resnet", text):
        print("\nThe block <!-- bench-resnet --> in docs/performance.md is up to date.")


def take_turns(directory: Path, rounds: int, seconds: float) -> Results:
    """Under each load the service and every runtime, one right after the other, and in the next round backwards: the
    machine may be slower a minute later. Whatever cannot run is named with its reason."""
    results, chance = Results(), random.Random()
    models = prepare(directory, chance)
    # Without audits, which compute hits again: here each computation must be one of a request.
    start = partial(serving, models=models, settings={"device": "cpu", "audit_share": 0})
    with start(redis="embedded") as service, start(cores=SERVER_CORE) as pinned, ExitStack() as stack:
        measures: dict[str, Measure] = {"ours": partial(serve, service, chance), **_runtimes(directory, results, stack)}
        for number in tqdm(range(rounds)):
            for load in LOADS:
                rows = [(name, size) for name in measures for size in _sizes(name, load)]
                for name, size in rows if number % 2 else reversed(rows):
                    if name in results.reasons:  # it has failed since
                        continue
                    try:
                        speed, p50 = measures[name](size, seconds)
                    except StartFailed as error:
                        results.reasons[name] = str(error)
                        continue
                    results.samples[f"{name}-{size}"].append(Sample(number, speed, p50, 0))
            for title, (file, kind) in zip(HITS, hot_files(chance), strict=True):
                results.samples[title].append(hit(pinned, directory / "hot", file, kind, number, seconds))
            took = json.loads(_run(sys.executable, SCRIPT, "decode", directory, str(DECODE_SECONDS)))
            results.samples["decoding"].append(Sample(number, 1 / took, took, 0))
    return results


def prepare(directory: Path, chance: random.Random) -> Path:
    """Weights, inputs and pictures for the runtimes, and the models of the service, whose directory is returned."""
    _run(sys.executable, SCRIPT, "prepare", directory)
    (weights,) = directory.glob("*.pth")
    models = directory / "models"
    _run(sys.executable, "-m", "training.resnet", "--imagenet", "--weights", weights, "--out", models, "--name", NAME)
    for number in range(PICTURES):
        (directory / f"{number}.jpg").write_bytes(jpeg(chance))
    return models


def _sizes(name: str, load: Load) -> tuple[int, ...]:
    """How many images at once it is given under that load."""
    return (load.connections,) if name == "ours" else load.batches


def _runtimes(directory: Path, results: Results, stack: ExitStack) -> dict[str, Measure]:
    """Those that can run. Each stays in a process of its own until the stack is closed."""
    measures: dict[str, Measure] = {}
    for name, python in _pythons(directory, results).items():
        try:
            measures[name] = _runtime(name, python, directory, stack)
        except StartFailed as error:
            results.reasons[name] = str(error)
    return measures


def _runtime(name: str, python: str, directory: Path, stack: ExitStack) -> Measure:
    log = stack.enter_context((directory / f"{name}.log").open("w+b"))
    command = (python, str(SCRIPT), name, str(directory))
    process = stack.enter_context(subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=log, cwd=ROOT, text=True))
    assert process.stdin is not None and process.stdout is not None
    asked, answers = process.stdin, process.stdout
    if answers.readline() != "ready\n":
        raise StartFailed(last_lines(log))

    def measure(batch: int, seconds: float) -> tuple[float, float]:
        print(batch, seconds, file=asked, flush=True)
        if not (line := answers.readline()):
            raise StartFailed(last_lines(log))
        found = json.loads(line)
        return found["rate"], found["p50"]

    return measure


def _pythons(directory: Path, results: Results) -> dict[str, str]:
    """Runtime -> the interpreter that has it."""
    pythons = {name: sys.executable for name in TITLES if name not in ELSEWHERE}
    try:
        python = str(interpreter(SCRIPT))
        _run(python, SCRIPT, "export", directory)
    except StartFailed as error:
        results.reasons.update(dict.fromkeys(ELSEWHERE, str(error)))
        return pythons
    return pythons | dict.fromkeys(ELSEWHERE, python)


def _run(*command: str | Path) -> str:
    """What it printed; raises StartFailed with its last words."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise StartFailed(" ".join(done.stderr.split())[-200:])
    return done.stdout


def serve(service: Service, chance: random.Random, connections: int, seconds: float) -> tuple[float, float]:
    """Answers per second, and the median of the seconds that one took, after as much warming up as a runtime has;
    raises SystemExit unless every answer was computed for its request alone."""
    _ask(service, pictures(chance, int(seconds / 4 * DRAWN_PER_SECOND) + connections), connections, seconds / 4)
    requests = pictures(chance, int(seconds * DRAWN_PER_SECOND) + connections)
    before = service.computations()
    replies, took = _ask(service, requests, connections, seconds)
    computed = service.computations() - before
    if computed != len(replies):
        raise SystemExit(f"{len(replies)} answers, but {computed:.0f} computations")
    return len(replies) / took, median(reply.seconds for reply in replies)


def hot_files(chance: random.Random) -> list[tuple[bytes, str]]:
    """The files that HITS names, and their media types."""
    return [(jpeg(chance, 520, 90), "image/jpeg"), (small_png(chance), "image/png")]


def hit(service: Service, path: Path, file: bytes, kind: str, number: int, seconds: float) -> Sample:
    """One measurement of a file that is known; raises SystemExit if anything was computed meanwhile."""
    path.write_bytes(file)
    with Connection(service.address) as connection:
        for _ in range(5):
            connection.ask(post(TARGET, file, kind))
    before = service.computations()
    request = ["POST", TARGET, f"file:{path}", f"Content-Type: {kind}"]
    run = wrk.send(service.address, "nothing", request, CONNECTIONS, seconds)
    if run.failures or service.computations() != before:
        raise SystemExit(f"{run.failures} failures, {service.computations() - before:.0f} computations")
    return Sample(number, run.rate, run.p50, run.failures)


def _ask(service: Service, requests: list[bytes], connections: int, seconds: float) -> tuple[list[Reply], float]:
    """The replies, all of them misses that were stored, and the seconds in all."""
    replies: list[Reply] = []
    took = closed_loop(service.address, iter(requests), connections, seconds, replies.append)
    for reply in replies:
        status = reply.header("Cache-Status")
        if reply.status != 200 or "fwd=uri-miss" not in status or "stored" not in status:
            raise SystemExit(f"answered {reply.status}, Cache-Status: {status}: {reply.body[:200]!r}")
    return replies, took


def pictures(chance: random.Random, count: int) -> list[bytes]:
    """Requests with JPEGs of 224 × 224 coloured blurs, each its own."""
    return [post(TARGET, jpeg(chance), "image/jpeg") for _ in range(count)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resnet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4, help="length of each measurement")
    return parser.parse_args()


if __name__ == "__main__":
    main()
