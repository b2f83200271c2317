"""What the next version of a model will change: ``python -m training.compare NAME QUESTIONS``.

QUESTIONS is a CSV of requests, as they come and as often as they come, or a directory of image files. Both versions are
asked all of them. Nothing that runs is touched.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
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
from service.inference.manifest import Manifest
from service.inference.predictor import Options, Question, compute, unpack
from service.lookup import Model
from training import MODELS_DIR, check_name, sentences
from training.questions import AT_ONCE, Asked, parsed, read_questions
from training.rollback import require_previous

SHOWN = 5
"""So many kinds of change are shown, each with its first question."""
REFUSED = object()


class Said(NamedTuple):
    """``prediction``: what a client reads, or REFUSED. ``numbers``: one for each name. ``reason``: of a refusal."""

    prediction: Any
    names: Sequence[str] = ()
    numbers: NDArray[Any] | None = None
    reason: str = ""

    def differs(self, other: Said, tolerance: float) -> bool:
        """Whether a client is told something else. ``tolerance``: how far numbers may be apart."""
        if self.prediction == other.prediction or not (_is_numeric(self) and _is_numeric(other)):
            return bool(self.prediction != other.prediction)
        distance = self.distance(other)
        return distance is None or not distance <= tolerance

    def distance(self, other: Said) -> float | None:
        """The largest difference between two of their numbers; None where these do not mean the same."""
        if self.numbers is None or other.numbers is None or not self.names or self.names != other.names:
            return None
        return float(np.abs(self.numbers - other.numbers).max())


@dataclass(slots=True)
class Report:
    """Of the questions that a version answers: the changes with an example of each, and how far numbers are apart."""

    asked: int = 0
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], str] = field(default_factory=dict)
    distances: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """By both versions: the new one's reasons."""

    @property
    def count(self) -> str:
        """How many of the questions have another prediction."""
        return f"{self.changes.total():,} of {self.asked:,} predictions change"

    def add(self, asked: Asked, old: Said, new: Said, tolerance: float) -> None:
        if old.prediction is new.prediction is REFUSED:
            self.refused.append(new.reason)
            return
        self.asked += 1
        if (distance := old.distance(new)) is not None:
            self.distances.append(distance)
        if old.differs(new, tolerance):
            change = (_text(old), _text(new))
            self.changes[change] += 1
            self.examples.setdefault(change, f"{asked.name}{_reason(old, new)}")

    def lines(self) -> Iterator[str]:
        """In words. Raises ConfigurationError if both versions refuse all there is, or if nothing was asked."""
        if not self.asked:
            raise ConfigurationError(self.refused[0] if self.refused else "There are no questions.")
        yield f"{self.count} ({self.changes.total() / self.asked:.2%})."
        for (old, new), count in self.changes.most_common(SHOWN):
            yield f"  {old} → {new}: {count:,}, first {self.examples[old, new]}"
        if len(self.changes) > SHOWN:
            yield f"  and {len(self.changes) - SHOWN:,} other changes"
        if self.distances:
            largest, middle = max(self.distances), median(self.distances)
            yield f"The numbers of an answer differ by {largest:.3g} at most, and by {middle:.3g} in the median."
        if self.refused:
            yield f"{len(self.refused):,} more are refused by both: {self.refused[0]}"


def compare(old: LoadedModel, new: LoadedModel, questions: Iterator[Asked], tolerance: float = 0) -> Report:
    """Ask both versions every question."""
    report = Report()
    while some := list(islice(questions, AT_ONCE)):
        for asked, before, after in zip(some, _ask(old, some), _ask(new, some), strict=True):
            report.add(asked, before, after, tolerance)
    return report


def _ask(loaded: LoadedModel, some: Sequence[Asked]) -> list[Said]:
    """What clients would be told."""
    questions = [parsed(loaded.predictor, asked) for asked in some]
    payloads = [cast("bytes", one.payload) for one in questions if isinstance(one, Question)]
    outcomes = iter(compute(loaded.predictor.predict, payloads))
    # Nothing of it computes: the batcher of a served model is not needed to show an answer.
    model = Model(loaded.manifest.name, loaded.manifest, loaded.predictor, cast("Any", None), leased=False)
    view = View(default_top_k(model), domain=False)
    measured = _measured(loaded.manifest)
    names, places = list(measured), list(measured.values())

    def said(one: Question | ServiceError) -> Said:
        outcome = next(outcomes) if isinstance(one, Question) else one
        if not isinstance(outcome, bytes):
            return Said(REFUSED, reason=str(outcome))
        shown = orjson.loads(render(outcome, model, view, cast("Question", one)))
        prediction, label = shown["prediction"], shown.get("label")
        said_as = prediction if label in (None, prediction) else f"{prediction} ({label})"
        return Said(said_as, names, unpack(outcome)[places])

    return [said(one) for one in questions]


def _measured(manifest: Manifest) -> dict[str, int]:
    """The numbers of an answer that have a distance: name and place of each. Indices and 0/1 labels have none."""
    output, start = manifest.output, manifest.output.probabilities_from
    if start is not None:
        found = {f"{one.value} ({one.label})": place for place, one in enumerate(manifest.classes, start)}
    else:
        found = {name: place for place, name in enumerate(output.names or [""]) if output.kind == "numbers"}
    return dict(sorted(found.items()))


def _is_numeric(said: Said) -> bool:
    values = said.prediction.values() if isinstance(said.prediction, dict) else (said.prediction,)
    return all(isinstance(value, float) for value in values)


def _text(said: Said) -> str:
    return "refused" if said.prediction is REFUSED else "a number" if _is_numeric(said) else str(said.prediction)


def _reason(old: Said, new: Said) -> str:
    if reason := new.reason or old.reason:
        return f" ({reason:.200})"
    return f" ({old.prediction} → {new.prediction})" if _is_numeric(new) else ""


def _share(text: str) -> Fraction:
    """``2%`` or ``0.02``, exactly."""
    found = re.fullmatch(r"(\d+|\d*\.\d+)(\s*%)?", text.strip(), re.ASCII)
    share = Fraction(found[1]) / (100 if found[2] else 1) if found else 2
    if share > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: write 2% or 0.02")
    return Fraction(share)


def _distance(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (distance := float(text)) < math.inf:
            return distance
    raise argparse.ArgumentTypeError(f"{text!r} is no distance: write a number from 0 on")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what changes; exits with a sentence if that is more than ``--limit``, or if nothing can be compared."""
    parser = argparse.ArgumentParser(prog="python -m training.compare", description="What the next version changes.")
    add = parser.add_argument
    add("name", help="of the model that is published and not loaded yet: at SIGHUP the service loads it")
    add("questions", type=Path, help="a CSV as /predict_batch takes it, or a directory of images")
    add("--models", type=Path, default=MODELS_DIR, help="where model directories live; default: PREDICT_MODELS_DIR")
    add("--with", dest="other", type=Path, help="a model's directory to compare with; default: the previous version")
    add(
        "--limit",
        type=_share,
        default=Fraction(1),
        help="the largest share of predictions that may change, such as 2%%",
    )
    add("--tolerance", type=_distance, default=0.0, help="how far a number may move without counting as changed")
    add("--trust", default=os.environ.get("PREDICT_TRUSTED_TYPES", ""), help="as of training.register")
    options = parser.parse_args(arguments)
    how = Options(trusted_types=names(options.trust), threads=os.cpu_count() or 1)
    directory, other = options.models / options.name, options.other
    with sentences(f"{options.questions} or {directory} cannot be read"):
        check_name(options.name)
        new = load_current(directory, how)
        if other is None:
            require_previous(directory)
        old = load_current(directory, how, PREVIOUS) if other is None else load_current(other, how)
        versions = [loaded.predictor.fingerprint.hex()[:12] for loaded in (old, new)]
        print(f"{options.name}: {' → '.join(versions)}")
        report = compare(old, new, read_questions(options.questions), options.tolerance)
        print(*report.lines(), sep="\n")
    if report.changes.total() > options.limit * report.asked:
        sys.exit(f"{report.count}, more than {float(options.limit * 100):.12g}%.")


if __name__ == "__main__":
    main()
