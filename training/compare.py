"""What the next version of a model will change: ``python -m training.compare NAME QUESTIONS``.

QUESTIONS is a CSV of requests, as they come and as often as they come, or a directory of image files. Both versions are
asked all of them. Nothing that runs is touched.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from service.config import names
from service.errors import ConfigurationError, ServiceError
from service.http.render import View, default_top_k, render
from service.inference.artifact import PREVIOUS
from service.inference.loading import LoadedModel, load_current
from service.inference.predictor import Options, Predictor, Question, compute, unpack
from service.lookup import Model
from training import MODELS_DIR
from training.flags import read_bytes
from training.rollback import require_previous

AT_ONCE = 64
SHOWN = 5
"""Of the changes that are alike, one is shown; of those that are not, so many."""
REFUSED = "refused"


class Asked(NamedTuple):
    """A question as a client sends it. ``name``: where it is from."""

    name: str
    params: dict[str, str]
    body: bytes = b""
    content_type: str | None = None


class Said(NamedTuple):
    """``prediction``: what a client reads, or REFUSED. ``numbers``: the whole answer. ``reason``: why it is refused."""

    prediction: Any
    numbers: NDArray[Any] | None = None
    reason: str = ""

    def differs(self, other: Said, tolerance: float) -> bool:
        """Whether a client is told something else. ``tolerance``: how far numbers may be apart."""
        if self.prediction == other.prediction or REFUSED in (self.prediction, other.prediction):
            return bool(self.prediction != other.prediction)
        distance = self.distance(other) if _is_numeric(self.prediction) and _is_numeric(other.prediction) else None
        return distance is None or not distance <= tolerance

    def distance(self, other: Said) -> float | None:
        """The largest difference between two of their numbers; None where they cannot be compared."""
        if self.numbers is None or other.numbers is None or self.numbers.shape != other.numbers.shape:
            return None
        return float(np.abs(self.numbers - other.numbers).max(initial=0))


@dataclass(slots=True)
class Report:
    """Of so many questions ``asked``: the changes with an example of each, and how far numbers are apart."""

    asked: int = 0
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    distances: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """By both versions: the new one's reasons."""

    @property
    def share(self) -> float:
        """The share of the questions whose prediction changes."""
        return self.changes.total() / self.asked

    def add(self, asked: Asked, old: Said, new: Said, tolerance: float) -> None:
        self.asked += 1
        if (distance := old.distance(new)) is not None:
            self.distances.append(distance)
        if old.prediction == new.prediction == REFUSED:
            self.refused.append(new.reason)
        elif old.differs(new, tolerance):
            change = (_text(old), _text(new))
            self.changes[change] += 1
            self.examples.setdefault(change, f"{asked.name}{_reason(old, new)}")

    def lines(self) -> Iterator[str]:
        """In words. Raises ConfigurationError if both versions refuse all there is, or if nothing was asked."""
        if len(self.refused) == self.asked:
            raise ConfigurationError(self.refused[0] if self.refused else "There are no questions.")
        yield f"{self.changes.total():,} of {self.asked:,} predictions change ({self.share:.2%})."
        for (old, new), count in self.changes.most_common(SHOWN):
            yield f"  {old} → {new}: {count:,}, first {self.examples[old, new]}"
        if len(self.changes) > SHOWN:
            yield f"  and {len(self.changes) - SHOWN:,} other changes"
        if self.distances:
            largest, middle = max(self.distances), median(self.distances)
            yield f"The numbers of an answer differ by {largest:.3g} at most, and by {middle:.3g} in the median."
        if self.refused:
            yield f"Both versions refuse {len(self.refused):,}: {self.refused[0]}"


def compare(old: LoadedModel, new: LoadedModel, questions: Iterator[Asked], tolerance: float = 0) -> Report:
    """Ask both versions every question."""
    report = Report()
    while some := list(islice(questions, AT_ONCE)):
        for asked, before, after in zip(some, _ask(old, some), _ask(new, some), strict=True):
            report.add(asked, before, after, tolerance)
    return report


def read_questions(source: Path) -> Iterator[Asked]:
    """Raises ConfigurationError."""
    if source.is_dir():
        for path in sorted(path for path in source.rglob("[!.]*") if path.is_file()):
            yield Asked(str(path.relative_to(source)), {}, read_bytes(path), "image/png")  # whatever image it is
        return
    try:
        rows = csv.DictReader(io.StringIO(read_bytes(source).decode("utf-8-sig"), newline=""), strict=True)
        for row in rows:
            if None in row or None in row.values():
                raise csv.Error(f"line {rows.line_num} has more or fewer fields than the first one")
            yield Asked(f"line {rows.line_num}", row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{source} is not CSV in UTF-8: {error}.") from None


def _ask(loaded: LoadedModel, some: Sequence[Asked]) -> list[Said]:
    """What clients would be told."""
    questions = [parsed(loaded.predictor, asked) for asked in some]
    payloads = [cast("bytes", one.payload) for one in questions if isinstance(one, Question)]
    outcomes = iter(compute(loaded.predictor.predict, payloads))
    # Nothing of it computes: the batcher of a served model is not needed to show an answer.
    model = Model(loaded.manifest.name, loaded.manifest, loaded.predictor, cast("Any", None), leased=False)
    view = View(default_top_k(model), domain=False)

    def said(one: Question | ServiceError) -> Said:
        outcome = next(outcomes) if isinstance(one, Question) else one
        if not isinstance(outcome, bytes):
            return Said(REFUSED, reason=str(outcome))
        shown = orjson.loads(render(outcome, model, view, cast("Question", one)))
        prediction, label = shown["prediction"], shown.get("label")
        return Said(prediction if label in (None, prediction) else f"{prediction} ({label})", unpack(outcome))

    return [said(one) for one in questions]


def parsed(predictor: Predictor, asked: Asked) -> Question | ServiceError:
    """The question, or why it is refused."""
    try:
        return predictor.parse(asked.params, asked.body, asked.content_type)
    except ServiceError as error:
        return error


def _is_numeric(prediction: Any) -> bool:
    values = prediction.values() if isinstance(prediction, dict) else (prediction,)
    return all(isinstance(value, float | int) for value in values)


def _text(said: Said) -> str:
    return "a number" if _is_numeric(said.prediction) else str(said.prediction)


def _reason(old: Said, new: Said) -> str:
    if reason := new.reason or old.reason:
        return f" ({reason:.200})"
    return f" ({old.prediction} → {new.prediction})" if _is_numeric(new.prediction) else ""


def _share(text: str) -> float:
    """``2%`` or ``0.02``."""
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what changes; exits with a sentence if that is more than ``--limit``, or if nothing can be compared."""
    parser = argparse.ArgumentParser(prog="python -m training.compare", description="What the next version changes.")
    add = parser.add_argument
    add("name", help="of the model that is published and not loaded yet: at SIGHUP the service loads it")
    add("questions", type=Path, help="a CSV as /predict_batch takes it, or a directory of images")
    add("--models", type=Path, default=MODELS_DIR, help="where model directories live; default: PREDICT_MODELS_DIR")
    add("--with", dest="other", type=Path, help="a model's directory to compare with; default: the previous version")
    add("--limit", type=_share, default=1.0, help="the largest share of predictions that may change, such as 2%%")
    add("--tolerance", type=float, default=0.0, help="how far a number may move without counting as changed")
    add("--trust", default=os.environ.get("PREDICT_TRUSTED_TYPES", ""), help="as of training.register")
    options = parser.parse_args(arguments)
    how = Options(trusted_types=names(options.trust), threads=os.cpu_count() or 1)
    directory, other = options.models / options.name, options.other
    try:
        new = load_current(directory, how)
        if other is None:
            require_previous(directory)
        old = load_current(directory, how, PREVIOUS) if other is None else load_current(other, how)
        versions = [loaded.predictor.fingerprint.hex()[:12] for loaded in (old, new)]
        print(f"{options.name}: {' → '.join(versions)}")
        report = compare(old, new, read_questions(options.questions), options.tolerance)
        print(*report.lines(), sep="\n")
    except ConfigurationError as error:
        sys.exit(str(error))
    if report.share > options.limit:
        sys.exit(f"{report.share:.2%} of the predictions change, and the limit is {options.limit:.2%}.")


if __name__ == "__main__":
    main()
