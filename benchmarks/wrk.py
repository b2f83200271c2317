"""wrk, the load generator, with requests as wrk.lua makes them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.client import Address
from benchmarks.inputs import HOT_IRIS
from benchmarks.machine import CLIENT_CORE, pin

SCRIPT = Path(__file__).with_name("wrk.lua")
Vary = Literal["nothing", "features", "request-id"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a server wants to be asked: a POST when there is a body. ``$1`` … ``$4`` stand for the four features."""

    target: str
    body: str = ""
    headers: tuple[str, ...] = ()

    def filled(self, row: Sequence[float]) -> Shape:
        """The request for one row of features."""
        target, body = self.target, self.body
        for number, value in enumerate(row, 1):
            target, body = target.replace(f"${number}", repr(value)), body.replace(f"${number}", repr(value))
        return Shape(target, body, self.headers)

    def request(self, row: Sequence[float]) -> bytes:
        """Its bytes."""
        shape = self.filled(row)
        lines = [f"{shape.method} {shape.target} HTTP/1.1", "Host: localhost", *self.all_headers]
        if shape.body:
            lines.append(f"Content-Length: {len(shape.body)}")
        return "\r\n".join([*lines, "", shape.body]).encode()

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"

    @property
    def all_headers(self) -> tuple[str, ...]:
        return (*self.headers, "Content-Type: application/json") if self.body else self.headers


@dataclass(frozen=True, slots=True)
class Run:
    """``rate``: answers per second. ``p50``, ``p99``: seconds. ``failures``: errors above 399, lost connections."""

    answers: int
    rate: float
    p50: float
    p99: float
    failures: int


def installed() -> bool:
    return shutil.which("wrk") is not None


def run(address: Address, shape: Shape, vary: Vary, connections: int, seconds: float) -> Run:
    """One thread of wrk on the client's core."""
    if vary != "features":
        shape = shape.filled(HOT_IRIS)
    return send(address, vary, [shape.method, shape.target, shape.body, *shape.all_headers], connections, seconds)


def send(address: Address, vary: Vary, request: Sequence[str], connections: int, seconds: float) -> Run:
    """``request``: method, target, body and headers, as wrk.lua takes them."""
    script_arguments = [vary, str(random.randrange(2**31)), *request]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}", "-s", str(SCRIPT), "--timeout", "10s"]
    finished = subprocess.run(
        [*command, f"http://{address[0]}:{address[1]}", "--", *script_arguments],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=lambda: pin(CLIENT_CORE),
    )
    lines = [line for line in finished.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise OSError(f"wrk: {(finished.stderr or finished.stdout).strip()[-300:]}")
    found = json.loads(lines[-1])
    rate = found["requests"] / found["seconds"]
    return Run(found["requests"], rate, found["p50"] / 1e6, found["p99"] / 1e6, found["failures"])
