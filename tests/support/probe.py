"""The probe model: a classifier that keeps count, so that computations are counted without trusting the service.

It is an ordinary estimator to whoever serves it. Its features are ``x`` (any number: the question), ``act`` (one of
the constants below) and ``seconds`` (how long to sleep before acting, unless PLAIN or WAIT). A value of ``act`` that is
none of them, which an example input made by a training script may well be, is PLAIN.
"""

from __future__ import annotations

import hashlib
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from service.errors import DeviceLost

ROOT = Path(__file__).parents[2]
FEATURES = "x,act,seconds"
CLASSES = ("low", "middle", "high")

PLAIN, SLEEP, WAIT, RAISE, NAN, EXIT, SPIN, LOSE = range(8)
"""What a row makes the model do. WAIT: until the gate of its ``x`` opens. SPIN: keep the CPU busy for its seconds.
LOSE: say that the device is lost."""
SLEEPING = (SLEEP, RAISE, NAN, EXIT)
TOLD_TO_RAISE = "the probe was told to raise"


class Probe:
    """Appends one line per row to ``directory/log`` before anything else; then acts; then answers ``answer(x)``.

    A batch takes as long as its slowest row, as in a model that computes a batch at once. ``seconds`` is added to
    every call.
    """

    classes_ = np.array(CLASSES)
    n_features_in_ = 3
    rows_are_independent = True

    def __init__(self, directory: Path, seconds: float = 0.0, salt: int = 0):
        self.directory, self.seconds, self.salt = str(directory), seconds, salt

    def predict_proba(self, rows: Any) -> Any:
        table = np.asarray(rows, dtype=np.float64)
        self._write(table)
        time.sleep(self.seconds + max((row[2] for row in table if row[1] in SLEEPING), default=0.0))
        for row in table:
            self._act(row)
        return np.array([np.full(3, np.nan) if row[1] == NAN else answer(float(row[0]), self.salt) for row in table])

    def _write(self, table: Any) -> None:
        call = time.monotonic_ns()
        lines = "".join(f"{float(x)!r} {int(act)} {os.getpid()} {call}\n" for x, act, _ in table)
        log = os.open(os.path.join(self.directory, "log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(log, lines.encode())
        finally:
            os.close(log)

    def _act(self, row: Any) -> None:
        if row[1] == RAISE:
            raise RuntimeError(TOLD_TO_RAISE)
        if row[1] == LOSE:
            raise DeviceLost
        if row[1] == EXIT:
            os._exit(70)
        if row[1] == SPIN:
            end = time.monotonic() + row[2]
            while time.monotonic() < end:
                sum(range(1000))
        if row[1] == WAIT:
            gate = _gate(self.directory, float(row[0]))
            while not os.path.exists(gate):
                time.sleep(0.002)


class ChangingProbe(Probe):
    """A probe whose answers tell when they were computed: their salt is the number in ``directory/epoch``.

    Only for questions from 1 on: a model's example must keep its answer.
    """

    def predict_proba(self, rows: Any) -> Any:
        epoch = int(Path(self.directory, "epoch").read_text())
        computed = super().predict_proba(rows)
        for i, row in enumerate(rows):
            if row[0] >= 1:
                computed[i] = answer(float(row[0]), epoch)
        return computed


def answer(x: float, salt: int = 0) -> Any:
    """The probabilities that belong to ``x`` and to no other question: shape (3,), float64."""
    digest = hashlib.sha256(struct.pack("!dI", x + 0.0, salt)).digest()
    weights = np.frombuffer(digest[:12], "<u4").astype(np.float64) + 1.0
    return weights / weights.sum()


def expected(x: float, salt: int = 0) -> dict[str, float]:
    """The ``probabilities`` of a right response body."""
    return {name: float(p) for name, p in zip(CLASSES, answer(x, salt), strict=True)}


def _gate(directory: str, x: float) -> str:
    return os.path.join(directory, f"gate {x!r}")


@dataclass(frozen=True)
class Line:
    """One computed row. ``call`` is the same for all rows of one ``predict_proba`` in one process."""

    x: float
    act: int
    pid: int
    call: int


@dataclass(frozen=True)
class Book:
    """The test's side of a probe: what was computed, where, and the gates."""

    directory: Path

    def lines(self, *xs: float) -> list[Line]:
        """All rows computed so far, in order; only those of the given questions when there are any."""
        log = self.directory / "log"
        whole = log.read_text().rpartition("\n")[0] if log.exists() else ""  # without a line that is being written
        rows = [line.split() for line in whole.splitlines()]
        lines = [Line(float(x), int(act), int(pid), int(call)) for x, act, pid, call in rows]
        return [line for line in lines if line.x in xs] if xs else lines

    def count(self, *xs: float) -> int:
        """How many rows of these questions (of all, when none is given) have been computed."""
        return len(self.lines(*xs))

    def set_epoch(self, epoch: int) -> None:
        """Of a ChangingProbe; in one step, since it may be reading it."""
        new = self.directory / "epoch.new"
        new.write_text(str(epoch))
        new.replace(self.directory / "epoch")

    def open_gate(self, x: float) -> None:
        Path(_gate(str(self.directory), x)).touch()


def target(x: float, act: int = PLAIN, seconds: float = 0.0, model: str = "probe") -> str:
    """The request target that asks the probe about ``x``."""
    return f"/models/{model}/predict?x={x!r}&act={act}&seconds={seconds!r}"


def inputs(x: float, act: int = PLAIN, seconds: float = 0.0) -> dict[str, float]:
    """The same question as a JSON object."""
    return {"x": x, "act": act, "seconds": seconds}


def register(
    estimator: Any, models: Path, name: str, features: str = FEATURES, classes: str = ",".join(CLASSES)
) -> None:
    """Write ``models/name`` from any classifier, as the command line of training.register does."""
    import training.register  # not above: the served process imports this module, and no training

    models.mkdir(parents=True, exist_ok=True)
    file = models.parent / f"{name}.joblib"
    joblib.dump(estimator, file)
    training.register.main(
        [str(file), f"--name={name}", f"--features={features}", f"--classes={classes}", f"--out={models}"]
    )


def environment(settings: Mapping[str, object] | None = None) -> dict[str, str]:
    """This process's environment without its own settings, the project importable, and the given settings."""
    foreign = ("PREDICT_", "PYTHONDONTWRITEBYTECODE")  # the latter would have every start compile all libraries anew
    outside = {name: value for name, value in os.environ.items() if not name.upper().startswith(foreign)}
    own = {f"PREDICT_{name.upper()}": str(value) for name, value in (settings or {}).items()}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return outside | own | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
