"""ResNets on a card: the loads, the report, and the whole program on a CPU in the card's place."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import threading
import time
from itertools import islice, repeat
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
    return [
        {
            "model": model,
            "round": number,
            "bare": {"batch": 256, "rates": {"eager": 50.0, "graph": 100.0}, "seconds": {"copy of one": 1e-5}},
            "services": {
                "Pillow": {"loads": dict.fromkeys((*gpu_report.LOADS, "open"), load)},
                "nvJPEG": {"not_run": "no nvJPEG here"},
            },
        }
        for model in ("resnet18", "resnet50")
        for number in range(2)
    ]


def test_the_report_compares_with_the_fastest_bare_model_and_names_what_did_not_run() -> None:
    text = gpu_report.report(rows())
    assert re.search(r"resnet18, c256 ÷ bare model +\| +≥ 0.8 \| +0.9 ", text)
    assert re.search(r"resnet18, open loop, p99 +\| +< 20 ms \| +20 ms ", text)
    assert "nvJPEG (not run: no nvJPEG here)" in text
    assert re.search(r"Pillow, c1: queue 2 ms, batch of 7.5 images 8 ms, HTTP and the rest +\| +2 ms", text)
    assert "resnet50:" in text and "eager, graph" in text


def test_without_a_card_nothing_is_measured_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "has_card", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    gpu.main()
    assert "There is no CUDA device here: nothing was measured" in capsys.readouterr().out


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_the_whole_program_runs_on_a_cpu() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| Pillow +\| +[\d.,]+, [\d.,]+ ms", done.stdout)
    assert "c256 ÷ bare" in done.stdout
