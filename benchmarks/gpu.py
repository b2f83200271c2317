"""``make bench-gpu``: ResNets on a card, never-seen JPEGs by HTTP against the bare model in the same run."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from benchmarks import machine
from benchmarks.figures import replace_block, write_json
from benchmarks.gpu_report import LOADS, report
from benchmarks.load import ask
from benchmarks.machine import ALL_CORES
from benchmarks.ours import RESULTS, ROOT, TABLES, Service, serving
from benchmarks.processes import StartFailed

CONFIGURATIONS: dict[str, dict[str, object]] = {
    "Pillow": {},
    "nvJPEG": {"decode": "gpu"},
    "Pillow, 4 workers": {"workers": 4, "share_device": True},
    "nvJPEG, 4 workers": {"workers": 4, "share_device": True, "decode": "gpu"},
}
RATE = 1000.0
"""Requests per second of the open loop."""
SUMS = ("queue_seconds", "model_seconds", "batch_size")


def main() -> None:
    options = _arguments()
    if options.device == "cuda" and not has_card():
        print("There is no CUDA device here: nothing was measured. (--device cpu --quick tries this program itself.)")
        return
    # Whoever stops this program early, as a lent machine's time limit does, stops the service that it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    found, keep = machine.facts(), options.device == "cuda" and not options.quick
    settings = {"rounds": options.rounds, "seconds": options.seconds, "precision": options.precision}
    rows: list[dict[str, Any]] = []
    for row in take_turns(options):
        rows.append(row)
        if keep:  # after each row: a run that is cut short keeps what it measured
            write_json(RESULTS / "gpu.json", {**found, **settings, "rows": rows})
    text = f"{report(rows)}\n\n{machine.summary(found)}; {rows[0]['bare']['device']}."
    print(f"\n{text}")
    if keep and replace_block(TABLES, "bench-gpu", text):
        print("\nThe block <!-- bench-gpu --> in docs/performance.md is up to date.")


def has_card() -> bool:
    with suppress(ImportError):
        import torch

        return torch.cuda.is_available()
    return False


def take_turns(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each model and round: the bare model, then every configuration of the service."""
    wanted = {name: CONFIGURATIONS[name] for name in (["Pillow"] if options.device == "cpu" else CONFIGURATIONS)}
    with TemporaryDirectory() as place, tqdm(total=len(options.models) * options.rounds * (1 + len(wanted))) as bar:
        for model in options.models:
            directory = Path(place) / model
            directory.mkdir()
            weights = _run("-m", "benchmarks.bare", "weights", model, directory).strip()
            named = ("--weights", weights, "--architecture", model, "--name", model, "--out", directory / "models")
            _run("-m", "training.resnet", "--imagenet", *named)
            for number in range(options.rounds):
                bar.set_description(f"round {number + 1}, {model}, bare")
                how = (model, options.device, options.precision, options.batch, min(2.0, options.seconds))
                row: dict[str, Any] = {"model": model, "round": number, "services": {}}
                row["bare"] = json.loads(_run("-m", "benchmarks.bare", "measure", *how))
                bar.update()
                for name, settings in wanted.items():
                    bar.set_description(f"round {number + 1}, {model}, {name}")
                    row["services"][name] = measure(model, directory / "models", settings, options)
                    bar.update()
                yield row


def measure(model: str, models: Path, settings: dict[str, object], options: argparse.Namespace) -> dict[str, Any]:
    """Every load on one configuration of the service, or why it does not start."""
    chosen = {
        "device": options.device,
        "precision": options.precision,
        "max_batch_size": options.batch,
        "default_image_model": model,
        **settings,
    }
    try:
        with serving(models=models, settings=chosen) as service:
            target = f"/models/{model}/predict"
            ask(service.address, target, options.seconds, options.clients, connections=options.batch)
            loads = {
                name: load(service, target, options, connections=min(count, options.most))
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
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5, help="length of each measurement")
    parser.add_argument("--batch", type=int, default=256, help="the bare model's, and the service's largest")
    parser.add_argument("--rate", type=float, default=RATE, help="requests per second of the open loop")
    parser.add_argument("--clients", type=int, default=max(1, len(ALL_CORES) // 4), help="processes that ask")
    parser.add_argument("--quick", action="store_true", help="one short round with ResNet-18; writes no results")
    parser.set_defaults(most=max(LOADS.values()))
    options = parser.parse_args()
    if options.quick:
        quick = {"models": ["resnet18"], "rounds": 1, "seconds": 0.3, "batch": 4, "rate": 5.0, "most": 4}
        vars(options).update(quick)
    return options


if __name__ == "__main__":
    main()
