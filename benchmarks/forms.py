"""``make bench-forms``: each form of a question, and beside it what a user would otherwise pick for that form.

All servers share one core and are asked in turns; every question but those that say so is a hit. Reports, never fails.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from benchmarks import machine, wrk
from benchmarks.client import Address, Connection, get
from benchmarks.figures import markdown, milliseconds, rate, replace_block, write_json
from benchmarks.inputs import HOT_IRIS, IRIS, iris_rows, iris_target
from benchmarks.machine import CLIENT_CORE, SERVER_CORE, pin
from benchmarks.ours import MODELS, RESULTS, ROOT, serving
from benchmarks.peers import nginx
from benchmarks.peers.contestant import Contestant, Model, alone, script
from benchmarks.processes import StartFailed
from benchmarks.stored import STORED, stored_rates
from benchmarks.wrk import Shape

INFER = "/v2/models/iris/infer"
PAGE = ROOT / "docs" / "performance.md"
ROWS, MANY_ROWS = 256, 10_000
LOOP = """
import joblib, sys, time, numpy as np
model = joblib.load(sys.argv[1]); model.n_jobs = 1
rows = np.array(eval(sys.stdin.read()))
model.predict_proba(rows)
began, count = time.perf_counter(), 0
while time.perf_counter() - began < float(sys.argv[2]):
    model.predict_proba(rows); count += len(rows)
print(count / (time.perf_counter() - began))
"""


@dataclass(frozen=True, slots=True)
class Form:
    """``rows``: questions in one request."""

    method: str
    target: str
    headers: tuple[str, ...] = ()
    body: bytes = b""
    rows: int = 1

    def request(self) -> bytes:
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: localhost", *self.headers]
        length = [f"Content-Length: {len(self.body)}"] if self.body else []
        return "\r\n".join([*lines, *length, "", ""]).encode() + self.body

    def for_wrk(self) -> list[str]:
        body = f"hex:{self.body.hex()}" if self.body else ""
        return [self.method, self.target, body, *self.headers]


def tensor(name: str, rows: Sequence[tuple[float, ...]], binary: bool) -> tuple[tuple[str, ...], bytes]:
    """Headers and body of an ``infer`` request, as Triton's own client makes them."""
    given: dict[str, object] = {"name": name, "shape": [len(rows), len(IRIS)], "datatype": "FP64"}
    flat = [value for row in rows for value in row]
    if not binary:
        return (), json.dumps({"inputs": [given | {"data": flat}]}).encode()
    given |= {"parameters": {"binary_data_size": 8 * len(flat)}}
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [given], "outputs": outputs}).encode()
    return (f"Inference-Header-Content-Length: {len(head)}",), head + struct.pack(f"<{len(flat)}d", *flat)


def our_forms(tag: str, chance: random.Random) -> dict[str, Form]:
    rows = [HOT_IRIS, *islice(iris_rows(chance), ROWS - 1)]
    as_json, target = ("Content-Type: application/json",), iris_target(HOT_IRIS)
    one = json.dumps(dict(zip(IRIS, HOT_IRIS, strict=True))).encode()
    batch = json.dumps({"inputs": rows}).encode()
    no_store = ("Cache-Control: no-store",)
    return {
        "GET": Form("GET", target),
        "HEAD": Form("HEAD", target),
        "GET, If-None-Match": Form("GET", target, (f"If-None-Match: {tag}",)),
        "POST, JSON": Form("POST", "/predict", as_json, one),
        "QUERY, JSON": Form("QUERY", "/predict", as_json, one),
        "/v2, JSON": Form("POST", INFER, *tensor("input", [HOT_IRIS], False)),
        "/v2, binary": Form("POST", INFER, *tensor("input", [HOT_IRIS], True)),
        "/predict_batch": Form("POST", "/predict_batch", as_json, batch, ROWS),
        "/predict_batch, computed": Form("POST", "/predict_batch", as_json + no_store, batch, ROWS),
        "/v2, JSON, 256 rows": Form("POST", INFER, *tensor("input", rows, False), ROWS),
        "/v2, binary, 256 rows": Form("POST", INFER, *tensor("input", rows, True), ROWS),
    }


BESIDE = {
    "GET": "nginx, GET",
    "HEAD": "GET",
    "GET, If-None-Match": "GET",
    "POST, JSON": "GET",
    "QUERY, JSON": "GET",
    "/v2, JSON": "Triton, JSON",
    "/v2, binary": "Triton, binary",
    **dict.fromkeys(("/predict_batch", "/predict_batch, computed", *STORED), "predict_proba"),
    **dict.fromkeys(("/v2, JSON, 256 rows", "/v2, binary, 256 rows"), "predict_proba"),
}
"""Form -> what it is compared with."""

OTHERS = {
    "nginx, GET": "nginx `return 200`, GET",
    "nginx, POST": "nginx `return 200`, the same POST",
    "Triton, JSON": "Triton, `local` cache, the same `infer` in JSON",
    "Triton, binary": "Triton, `local` cache, the same `infer` in binary",
    "MLServer": "MLServer, its cache on, the same `infer` in JSON",
    "predict_proba": "scikit-learn's `predict_proba` of 256 rows in a loop",
}
NOT_WRK = frozenset(("HEAD", "QUERY"))
"""Methods that wrk does not know. Our own client asks by them; its GET is measured in the same way for the ratio."""


def _peer(name: str, **environment: str) -> Contestant:
    body = tensor("features", [HOT_IRIS], False)[1].decode()
    return Contestant(Shape(INFER, body), (), script, script=name, environment=environment)


@contextmanager
def _all_started(model: Model, reasons: dict[str, str]) -> Iterator[dict[str, Address]]:
    """Those that can be started here; the others are in ``reasons``."""
    ways: dict[str, Callable[[], AbstractContextManager[Address]]] = {
        "nginx": lambda: nginx.nginx("", nginx.FIXED, SERVER_CORE),
        "Triton": lambda: script(_peer("triton"), model, SERVER_CORE),
        "MLServer": lambda: script(_peer("mlserver", CACHED="1"), model, SERVER_CORE),
    }
    with ExitStack() as stack:
        models = stack.enter_context(alone(model))
        found = {"ours": stack.enter_context(serving(models=models, cores=SERVER_CORE)).address}
        for name, start in ways.items():
            try:
                found[name] = stack.enter_context(start())
            except (StartFailed, OSError) as error:
                reasons[name] = " ".join(str(error).split())[:60]
        yield found


def measure(model: Model, rounds: int, seconds: float, reasons: dict[str, str]) -> dict[str, list[float]]:
    """Form, or what is beside it -> questions a second in each round."""
    rates: dict[str, list[float]] = {}
    with _all_started(model, reasons) as addresses:
        with Connection(addresses["ours"]) as connection:
            tag = connection.ask(get(iris_target(HOT_IRIS))).header("ETag")
        asked = {name: ("ours", form) for name, form in our_forms(tag, random.Random(0)).items()}
        post = asked["POST, JSON"][1]
        asked |= {"nginx, GET": ("nginx", asked["GET"][1]), "nginx, POST": ("nginx", post)}
        for name, server in (("Triton, JSON", "Triton"), ("Triton, binary", "Triton"), ("MLServer", "MLServer")):
            asked[name] = (server, Form("POST", INFER, *tensor("features", [HOT_IRIS], name == "Triton, binary")))
        asked["GET, own client"] = ("ours", asked["GET"][1])
        turns = [(name, *asked[name]) for _ in range(rounds) for name in asked if asked[name][0] in addresses]
        for name, server, form in tqdm(turns, unit=" turns"):
            with suppress(OSError):
                rates.setdefault(name, []).append(_rate(addresses[server], name, form, seconds))
        rates |= stored_rates(model.directory.parent, ROWS, seconds, rounds)
        rates["predict_proba"] = [_loop(model, seconds) for _ in range(rounds)]
        rates["p99 beside large batches"] = [_beside_batches(addresses["ours"], seconds) for _ in range(rounds)]
    return rates


def _rate(address: Address, name: str, form: Form, seconds: float) -> float:
    with Connection(address) as connection:
        for _ in range(5):
            connection.send(form.request())
            # Answers without a body have no length that would be true, and the parts of a long one come by themselves.
            if (answer := connection.socket.recv(65536))[9:10] not in (b"2", b"3"):
                raise OSError(f"{name}: {answer[:40]!r}")
            time.sleep(0.05)
            connection.socket.setblocking(False)
            with suppress(BlockingIOError):
                while connection.socket.recv(65536):
                    pass
            connection.socket.setblocking(True)
    if form.method in NOT_WRK or name == "GET, own client":
        return _by_processor(address, form, seconds)
    run = wrk.send(address, "nothing", form.for_wrk(), 32 if form.rows == 1 else 2, seconds)
    if run.failures:
        raise OSError(f"{name}: {run.failures} failures")
    return run.rate * form.rows


def _by_processor(address: Address, form: Form, seconds: float) -> float:
    """Requests in each second of the server's processor time: this client cannot keep it busy."""
    command = [sys.executable, "-m", "benchmarks.forms", "--ask", f"{address[0]}:{address[1]}", form.request().hex()]
    before = machine.cpu_seconds(servers := machine.descendants(os.getpid()))
    done = subprocess.run([*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True, cwd=ROOT)
    return int(done.stdout) / (machine.cpu_seconds(servers) - before)


def ask(address: Address, request: bytes, seconds: float) -> int:
    """How many answers come on 32 connections, each with one request at a time. Answers fit into one read."""
    pin(CLIENT_CORE)
    with ExitStack() as stack:
        sockets = [stack.enter_context(Connection(address)).socket for _ in range(32)]
        for each in sockets:
            each.sendall(request)
        end, answers = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for each in sockets:
                each.recv(65536)
                each.sendall(request)
            answers += len(sockets)
        return answers


def _loop(model: Model, seconds: float) -> float:
    rows = [HOT_IRIS, *islice(iris_rows(random.Random(0)), ROWS - 1)]
    command = [sys.executable, "-c", LOOP, str(model.weights), str(seconds)]
    done = subprocess.run(
        command, input=repr(rows), capture_output=True, text=True, check=True, preexec_fn=lambda: pin(SERVER_CORE)
    )
    return float(done.stdout)


def _beside_batches(address: Address, seconds: float) -> float:
    """The 99th percentile of hits by GET while another client sends batches of 10,000 rows, in seconds."""
    batch = json.dumps({"inputs": list(islice(iris_rows(random.Random(1)), MANY_ROWS))}).encode()
    request = Form("POST", "/predict_batch", ("Content-Type: application/json",), batch).request()
    stop = threading.Event()

    def send_batches() -> None:
        with Connection(address) as connection:
            while not stop.is_set():
                connection.ask(request)

    sender = threading.Thread(target=send_batches)
    sender.start()
    try:
        return wrk.send(address, "nothing", Form("GET", iris_target(HOT_IRIS)).for_wrk(), 4, seconds).p99
    finally:
        stop.set()
        sender.join()


def table(rates: Mapping[str, list[float]], reasons: Mapping[str, str]) -> str:
    medians = {name: statistics.median(found) for name, found in rates.items() if found}
    lines = []
    for name in (*BESIDE, *OTHERS):
        beside = "GET, own client" if name.partition(",")[0] in NOT_WRK else BESIDE.get(name, "")
        ratio = f"{medians[name] / medians[beside]:.2f}" if name in medians and beside in medians else "–"
        reason = reasons.get(name.partition(",")[0], "it failed")
        shown = rate(medians[name]) if name in medians else f"not run: {reason}"
        title = OTHERS.get(name) or f"**ours, {name}**"
        lines.append([title, shown, OTHERS.get(beside, BESIDE.get(name, "–")), ratio])
    p99 = medians.get("p99 beside large batches")
    text = markdown(["", "questions/s", "beside it", "ratio"], lines)
    note = "HEAD and QUERY, which wrk does not know: by the server's processor time, and so is the GET beside them."
    if p99 is not None:
        note += (
            f"\n99 of 100 GETs come within {milliseconds(p99)} beside a client that sends {MANY_ROWS:,} rows at a time."
        )
    return f"{text}\n\n{note}"


def main() -> None:
    options = _arguments()
    if options.ask:
        host, _, port = options.ask[0].partition(":")
        print(ask((host, int(port)), bytes.fromhex(options.ask[1]), options.seconds))
        return
    if not wrk.installed():
        print("not run: wrk is not installed (Debian: wrk)")
        return
    reasons: dict[str, str] = {}
    rates = measure(Model(options.models / "iris"), options.rounds, options.seconds, reasons)
    found = machine.facts()
    text = f"{table(rates, reasons)}\n\n{machine.summary(found)}. Medians of {options.rounds} rounds."
    print(f"\n{text}")
    replace_block(PAGE, "bench-forms", text)
    write_json(RESULTS / "forms.json", {**found, "rounds": options.rounds, "rates": rates, "not run": reasons})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="length of each measurement")
    parser.add_argument("--models", type=Path, default=MODELS, help="directory with the iris model")
    parser.add_argument("--ask", nargs=2, metavar=("ADDRESS", "REQUEST"), help="be the client: used by this program")
    return parser.parse_args()


if __name__ == "__main__":
    main()
