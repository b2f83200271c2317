"""``make bench-gpu``: a ResNet on a card, never-seen JPEGs by HTTP against the bare model in the same run.

What each mechanism brings shows when it is switched off, in a copy of the service's source. It ends in ``--minutes``:
what was measured until then is reported.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from benchmarks import machine
from benchmarks.figures import replace_block, write_json
from benchmarks.gpu_report import AS_IT_IS, LOADS, MECHANISMS, report
from benchmarks.load import ask
from benchmarks.machine import ALL_CORES
from benchmarks.ours import RESULTS, ROOT, TABLES, Service, serving
from benchmarks.processes import StartFailed


@dataclass(frozen=True, slots=True)
class Edit:
    """``old``, which ``file`` of the image models has once, becomes ``new`` in a copy of the service."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Configuration:
    """``shared``: among ``--workers``."""

    edits: tuple[Edit, ...] = ()
    shared: bool = False


GRAPHS, SLOTS = MECHANISMS
CONFIGURATIONS = {
    AS_IT_IS: Configuration(),
    GRAPHS: Configuration((Edit("gpu.py", 'self._device.type != "cuda"', "True"),)),
    SLOTS: Configuration((Edit("gpu.py", "slots = 2", "slots = 1"),)),
    "several workers": Configuration(shared=True),
}
CPU_FOR_CARD = (
    Edit("predictor.py", 'find_spec("torch") is not None and import_module("torch").cuda.is_available()', "True"),
    Edit("predictor.py", 'options, "cuda")', 'options, "cpu")'),
)
"""With these, the code for GPUs runs on a CPU."""
SUMS = ("queue_seconds", "model_seconds", "batch_size")


class OutOfTime(Exception):
    """The minutes are over."""


def main() -> None:
    options = _arguments()
    if options.device == "cuda" and not has_card():
        print("There is no CUDA device here: nothing was measured. (--device cpu --quick tries this program itself.)")
        return
    # Whoever stops this program early stops the service that it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(round(options.minutes * 60))
    found, keep = machine.facts(), options.device == "cuda" and not options.quick
    rows: list[dict[str, Any]] = []
    with suppress(OutOfTime):
        for rows in take_turns(options):
            if keep:  # each time: a run that is killed keeps what it measured
                write_json(RESULTS / "gpu.json", {**found, **vars(options), "rows": rows})
    signal.alarm(0)
    if not rows:
        raise SystemExit(f"not one configuration was measured in {options.minutes} minutes")
    text = f"{report(rows)}\n\n{machine.summary(found)}; {rows[0]['bare']['device']}."
    print(f"\n{text}")
    if keep and replace_block(TABLES, "bench-gpu", text):
        print("\nThe block <!-- bench-gpu --> in docs/performance.md is up to date.")


def _ring(*_: object) -> None:
    raise OutOfTime


def has_card() -> bool:
    with suppress(ImportError):
        import torch

        return torch.cuda.is_available()
    return False


def take_turns(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows so far, one for each round: of the bare model, and of every configuration of the service."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as place, tqdm(total=options.rounds * (1 + len(CONFIGURATIONS))) as bar:
        bar.set_description("preparing")
        models = prepare(Path(place), options.model)
        for number in range(options.rounds):
            bar.set_description(f"round {number + 1}, bare")
            how = (options.model, options.device, options.precision, options.batch, min(2.0, options.seconds))
            bare = json.loads(_run("-m", "benchmarks.bare", "measure", *how))
            rows.append({"round": number, "bare": bare, "services": {}})
            bar.update()
            for name, configuration in CONFIGURATIONS.items():
                bar.set_description(f"round {number + 1}, {name}")
                source = copy_of_service(Path(place) / name, configuration, options.device)
                rows[-1]["services"][name] = measure(source, models, configuration, options)
                bar.update()
                yield rows


def prepare(place: Path, model: str) -> Path:
    """The directory of a model with random weights."""
    weights = _run("-m", "benchmarks.bare", "weights", model, place).strip()
    named = ("--weights", weights, "--architecture", model, "--name", model, "--out", place / "models")
    _run("-m", "training.resnet", "--imagenet", *named)
    return place / "models"


def copy_of_service(place: Path, configuration: Configuration, device: str) -> Path:
    """Where the service lies with the edits that this configuration, and a CPU in the card's place, need."""
    shutil.copytree(ROOT / "service", place / "service", dirs_exist_ok=True)
    for edit in (*configuration.edits, *(CPU_FOR_CARD if device == "cpu" else ())):
        path = place / "service" / "inference" / "vision" / edit.file
        path.write_text(path.read_text().replace(edit.old, edit.new))
    return place


def measure(source: Path, models: Path, configuration: Configuration, options: argparse.Namespace) -> dict[str, Any]:
    """Every load on one configuration of the service, or why it does not start."""
    chosen = {
        "device": "cuda",
        "precision": options.precision,
        "max_batch_size": options.batch,
        "default_image_model": options.model,
        "share_device": configuration.shared,
        "workers": options.workers if configuration.shared else 1,
    }
    try:
        with serving(models=models, settings=chosen, source=source) as service:
            target = f"/models/{options.model}/predict"
            ask(service.address, target, options.seconds, options.clients, connections=options.batch)
            loads = {
                name: load(service, target, options, connections=min(count, options.batch))
                for name, count in LOADS.items()
            }
            loads["open"] = load(service, target, options, rate=options.rate)
            return {"loads": loads}
    except StartFailed as error:
        return {"not_run": str(error)}


def load(service: Service, target: str, options: argparse.Namespace, **how: Any) -> dict[str, Any]:
    """One load, and what the service itself counted meanwhile. Raises SystemExit unless every answer was computed."""
    before = _sums(service)
    found = ask(service.address, target, options.seconds, options.clients, **how)
    counted = {name: value - before[name] for name, value in _sums(service).items()}
    if found.failures:
        raise SystemExit(f"{found.failures} of {len(found.latencies)} answers were errors or not computed")
    batches = counted["batch_size_count"] or 1
    return {
        "answers": len(found.latencies),
        "rate": found.rate,
        "p50": found.percentile(0.5),
        "p99": found.percentile(0.99),
        "mean": sum(found.latencies) / len(found.latencies),
        "queue": counted["queue_seconds_sum"] / (counted["queue_seconds_count"] or 1),
        "model": counted["model_seconds_sum"] / batches,
        "batch": counted["batch_size_sum"] / batches,
    }


def _sums(service: Service) -> dict[str, float]:
    """Sums and counts of the service's histograms so far, all workers together."""
    text = service.text("/metrics")
    names = [f"{name}_{part}" for name in SUMS for part in ("sum", "count")]
    return {
        name: sum(map(float, re.findall(rf"^predict_{name}(?:{{[^}}]*}})? (\S+)", text, re.MULTILINE)))
        for name in names
    }


def _run(*command: object) -> str:
    """What this Python printed; raises SystemExit with its last words."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(" ".join(done.stderr.split())[-300:])
    return done.stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--model", default="resnet18", help="a network of torchvision's")
    parser.add_argument("--minutes", type=float, default=7, help="the longest that all of it takes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="length of each measurement")
    parser.add_argument("--batch", type=int, default=256, help="the bare model's, and the service's largest")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests per second of the open loop")
    parser.add_argument("--clients", type=int, default=max(1, len(ALL_CORES) // 4), help="processes that ask")
    parser.add_argument("--workers", type=int, default=4, help="how many share the card in the last configuration")
    parser.add_argument("--quick", action="store_true", help="one short round; writes no results")
    options = parser.parse_args()
    if options.quick:
        vars(options).update({"rounds": 1, "seconds": 0.3, "batch": 4, "rate": 5.0, "workers": 2})
    return options


if __name__ == "__main__":
    main()
