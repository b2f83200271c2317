"""ResNets on a card: the loads, the report, and the whole program on a CPU in the card's place."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu, gpu_report
from benchmarks.client import Reply, get, open_loop
from benchmarks.load import ask, requests
from benchmarks.ours import ROOT
from tests.benchmarks.stand_in import Answer, answering

MISS = {"Cache-Status": "predict; fwd=uri-miss; stored; ttl=300"}


def test_no_file_is_sent_twice() -> None:
    bodies = [request.partition(b"\r\n\r\n")[2] for request in islice(requests("/", random.Random(0)), 200)]
    assert len(set(bodies)) == 200
    assert all(body.startswith(b"\xff\xd8\xff\xfe") for body in bodies)


def test_an_open_loop_does_not_wait_for_answers_and_counts_from_when_each_was_due() -> None:
    gate, inside = threading.Event(), threading.Semaphore(0)

    def answer(*_: object) -> Answer:
        inside.release()
        assert gate.wait(30)
        return 200, {}, b"{}"

    def open_when_all_are_in() -> None:
        for _ in range(10):
            assert inside.acquire(timeout=30)
        time.sleep(0.2)
        gate.set()

    replies: list[Reply] = []
    opener = threading.Thread(target=open_when_all_are_in)
    opener.start()
    with answering(answer) as address:
        open_loop(address, repeat(get("/")), 100, 0.1, replies.append)
    opener.join()
    assert len(replies) == 10
    assert min(reply.seconds for reply in replies) >= 0.2


@pytest.mark.parametrize("how", [{"connections": 3}, {"rate": 40.0}])
def test_several_clients_ask_together_and_hits_and_errors_are_failures(how: dict[str, Any]) -> None:
    asked: list[bytes] = []
    one_at_a_time = threading.Lock()

    def answer(_: str, body: bytes) -> Answer:
        with one_at_a_time:
            asked.append(body)
            return (200, MISS, b"{}") if len(asked) % 5 else (503, {}, b"full")

    with answering(answer) as address:
        found = ask(address, "/", 0.5, 2, **how)
    assert len(found.latencies) == len(asked) == len(set(asked))
    assert found.failures == len(asked) // 5
    assert found.percentile(0.5) <= found.percentile(0.99)


def rows() -> list[dict[str, Any]]:
    load = {"rate": 90.0, "p50": 0.01, "p99": 0.02, "mean": 0.012, "queue": 0.002, "model": 0.008, "batch": 7.5}
    loads = dict.fromkeys((*gpu_report.LOADS, "open"), load)
    slower = {name: {**load, "rate": 60.0 if name == "c32" else 90.0} for name in loads}
    services: dict[str, Any] = {"as it is": {"loads": loads}, "without CUDA graphs": {"loads": slower}}
    services |= {"one batch at a time": {"loads": loads}, "several workers": {"not_run": "no room"}}
    bare = {"batch": 256, "rates": {"eager": 50.0, "graph": 100.0}, "seconds": {"copy of one": 1e-5}}
    return [{"round": number, "bare": bare, "services": services} for number in range(2)]


def test_the_report_compares_with_the_fastest_bare_model_and_names_what_did_not_run() -> None:
    text = gpu_report.report(rows())
    assert re.search(r"c256 ÷ bare model, the best configuration +\| +≥ 0.8 \| +0.9 \| +met ", text)
    assert re.search(r"open, p99, the best configuration +\| +< 20 ms \| +20 ms \| +\*\*not met\*\* ", text)
    assert "several workers (not run: no room)" in text
    assert re.search(r"as it is, c1: queue 2 ms, batch of 7.5 images 8 ms, HTTP and the rest +\| +2 ms", text)
    assert "eager, graph" in text


def test_a_mechanism_that_brings_little_goes_and_what_the_time_did_not_suffice_for_is_named() -> None:
    measured = rows()
    measured[1]["services"] = {}  # the minutes were over
    text = gpu_report.report(measured)
    assert re.search(r"CUDA graphs .* c1 1 ×, c32 1.5 ×, c256 1 × \| +earns its place", text)
    assert re.search(r"two batches under way .*\*\*goes\*\*", text)
    del measured[0]["services"]["one batch at a time"]
    assert re.search(r"two batches under way .*not measured", gpu_report.report(measured))


def test_each_mechanism_can_be_switched_off_in_a_copy_of_the_service(tmp_path: Path) -> None:
    vision = Path("service", "inference", "vision")
    for name, configuration in gpu.CONFIGURATIONS.items():
        copy = gpu.copy_of_service(tmp_path / name, configuration, "cpu")
        for edit in (*configuration.edits, *gpu.CPU_FOR_CARD):
            assert (ROOT / vision / edit.file).read_text().count(edit.old) == 1
            assert edit.old not in (copy / vision / edit.file).read_text()


def test_without_a_card_nothing_is_measured_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "has_card", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert "There is no CUDA device here: nothing was measured" in capsys.readouterr().out


def test_it_ends_in_its_minutes_whatever_it_is_at() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--minutes", "0.02"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "not one configuration was measured in 0.02 minutes" in done.stderr


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_the_whole_program_runs_on_a_cpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not run" not in done.stdout
    for name in gpu.CONFIGURATIONS:
        assert re.search(rf"\| {name} +\| +[\d.,]+, [\d.,]+ ms", done.stdout)
    assert len(re.findall("earns its place|goes\\*", done.stdout)) == 2
