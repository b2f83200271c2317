"""Makes model directories of what was trained or registered, with the golden answer and the cost of each model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from service.errors import ConfigurationError, ServiceError
from service.inference.artifact import Artifact, write_artifact
from service.inference.loading import load_predictor, warm_up
from service.inference.manifest import Manifest, ModelName
from service.inference.predictor import Options, Predictor, unpack

MODELS_DIR = Path(os.environ.get("PREDICT_MODELS_DIR", "models"))
"""Where models are published, unless --out says otherwise: there the service looks for them."""

ENOUGH_SECONDS = 1.0
MOST_PREDICTIONS = 101


def __getattr__(name: str) -> Any:
    """``register_network`` is imported when it is used, because it imports torch."""
    if name == "register_network":
        return import_module("training.networks").register_network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def check_name(name: str) -> None:
    """Raises ConfigurationError for a name that no model may have. Call it before anything is executed or trained."""
    try:
        TypeAdapter(ModelName).validate_python(name)
    except ValidationError:
        raise ConfigurationError(
            f"{name!r:.80} is no name of a model: it has up to 64 small letters, digits, _, . and -, and begins with a "
            "letter or a digit."
        ) from None


@contextmanager
def sentences(what: str) -> Iterator[None]:
    """Ends a command with the sentence that says what is wrong. ``what`` cannot be done where a file is to blame."""
    try:
        yield
    except (ConfigurationError, ServiceError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{what} ({error.strerror}).")


def command(make: Callable[[], Manifest], models_dir: Path) -> Manifest:
    """Make a model for a command: prints what came of it, or exits with the sentence that says what is wrong."""
    with sentences(f"{models_dir} cannot be written to"):
        manifest = make()
    said: str = manifest.output.kind
    if manifest.classes:
        share = "not known" if manifest.accuracy is None else f"{manifest.accuracy:.3f}"
        said = f"{len(manifest.classes)} classes, accuracy {share}"
    print(f"{models_dir / manifest.name}: {said}, {manifest.cost_seconds * 1e6:,.0f} µs a prediction")
    return manifest


def publish(
    models_dir: Path, draft: Manifest, weights: bytes, *parts: bytes, trusted_types: Sequence[str] = ()
) -> Manifest:
    """Write ``models_dir/<name>`` and return its manifest; raises ConfigurationError when the model cannot be served.

    The draft's golden answer and cost are replaced by what the served model says to its example, and how fast.
    """
    artifact = Artifact(draft, weights, parts)
    predictor = load_predictor(artifact, Options(trusted_types=tuple(trusted_types)))
    payload = predictor.parse(draft.example.inputs, b"", "application/json").payload
    if payload is None:
        raise ConfigurationError(f"The example of {draft.name} is a digest; give the input itself.")
    golden, cost = _measure(predictor, payload)
    example = draft.example.model_copy(update={"golden": golden})
    manifest = draft.model_copy(update={"example": example, "cost_seconds": cost})
    artifact = Artifact(manifest, weights, parts)
    warm_up(predictor, artifact)  # as the service will, which would refuse the model
    write_artifact(models_dir / draft.name, artifact)
    return manifest


def _measure(predictor: Predictor, payload: bytes) -> tuple[list[float], float]:
    """The answer, and the fewest of the seconds that it took alone: a busy machine only adds to them."""
    durations: list[float] = []
    while len(durations) < MOST_PREDICTIONS and sum(durations) < ENOUGH_SECONDS:
        started = time.perf_counter()
        try:
            (answer,) = predictor.predict([payload])
        except Exception as error:
            raise _failure(error) from error
        durations.append(time.perf_counter() - started)
        if isinstance(answer, Exception):
            raise _failure(answer)
        golden: list[float] = unpack(answer).tolist()
    return golden, min(durations)


def _failure(error: Exception) -> ConfigurationError:
    return ConfigurationError(f"The model fails on its example ({error!r}): give it another one.")
