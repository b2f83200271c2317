"""What registration finds out about a table model, and proves: how it answers, and that one question has one answer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from service.errors import ConfigurationError, InvalidInput
from service.inference.artifact import Artifact
from service.inference.manifest import Feature, Manifest, Output
from service.inference.predictor import unpack
from service.inference.tabular.estimator import (
    ROWS_PER_BLOCK,
    as_table,
    class_values,
    has_independent_rows,
    is_of_libraries,
)
from service.inference.tabular.features import RowReader
from service.inference.tabular.forest import trees_of
from service.inference.tabular.predictor import TabularPredictor
from service.inference.tabular.splits import class_name

ROWS = 100
OWN_ROWS = 25
"""How many of these rows are compared with what the estimator says to each alone."""
TOLERANCE = 1e-12
"""How far a row's answer in a batch may be from its answer alone: relative, and absolute below 1."""


def prove(draft: Manifest, weights: bytes, model: Any, inputs: Sequence[Mapping[str, Any]] = ()) -> Manifest:
    """The draft with its output and the rows of each call; raises ConfigurationError for what cannot be served.

    ``inputs``: rows like those that will be asked; default some drawn around the example and within the bounds.
    """
    payloads = list(_payloads(draft, [draft.example.inputs, *(inputs[:ROWS] or draw(draft))]))
    table = RowReader(draft).rows.table(payloads[:1])
    for output in ways_to_ask(model, table, draft.output.names):
        with_output = _with_output(draft, output)
        if _is_consistent(with_output, weights, model, payloads):
            return with_output
    raise ConfigurationError(
        f"This {type(model).__name__} gives one question different answers, so that none can be kept: "
        "fit it so that it leaves nothing to chance."
    )


def draw(draft: Manifest) -> list[dict[str, Any]]:
    """Rows around the example and within the bounds; the same ones each time."""
    chance = np.random.default_rng(0)
    example = draft.example.inputs
    row = example.get("input")
    values = {f.name: row[i] if row else example.get(f.name) for i, f in enumerate(draft.features)}
    return [{f.name: _drawn(f, values[f.name], chance) for f in draft.features} for _ in range(ROWS - 1)]


def _drawn(feature: Feature, example: Any, chance: np.random.Generator) -> Any:
    kind = feature.type
    if feature.missing and chance.random() < 0.1:
        return None
    if kind == "category":
        return feature.values[int(chance.integers(len(feature.values)))]
    if kind == "boolean":
        return bool(chance.integers(2))
    if kind == "text" or not isinstance(example, int | float):
        return example
    low, high = feature.minimum, feature.maximum
    if low is not None and high is not None:
        value = float(low + (high - low) * chance.random())
    else:
        value = float(np.clip(example + chance.normal(0, abs(example) + 1), low, high))
    return round(value) if kind == "integer" else value


def _payloads(draft: Manifest, inputs: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """The payloads of the rows that the reader accepts. The example comes first, and must be accepted."""
    reader = RowReader(draft)
    for number, row in enumerate(inputs):
        try:
            yield reader.rows.pack(reader.read(row, "application/json"))
        except InvalidInput as error:
            if number == 0:
                raise ConfigurationError(f"The example is refused: {error}") from None


def ways_to_ask(model: Any, table: Any, names: Sequence[str] = ()) -> Iterator[Output]:
    """The ways to ask the model, the fastest first."""
    kind, count = _kind(model, table)
    if count > 1 and len(names) != count:
        if names:
            raise ConfigurationError(f"The model has {count} outputs, but {len(names)} were named.")
        names = [f"output_{number}" for number in range(1, count + 1)]
    output = Output(kind=kind, names=tuple(names) if count > 1 else ())
    if has_independent_rows(model):
        yield output
    elif is_of_libraries(model):
        yield output.model_copy(update={"rows_per_call": ROWS_PER_BLOCK})
    yield _by_rows(output)


def check_predicts(model: Any) -> None:
    """Raises ConfigurationError."""
    if not hasattr(model, "predict") and not (hasattr(model, "predict_proba") and class_values(model)):
        raise ConfigurationError(
            f"A {type(model).__name__} has no predict method, so there is nothing that it can be asked: save the "
            "fitted estimator itself."
        )


def _kind(model: Any, table: Any) -> tuple[Any, int]:
    """The kind of output, and how many numbers ``predict`` says; raises ConfigurationError."""
    name = type(model).__name__
    if not hasattr(model, "predict"):
        return "probabilities", 1
    said = _said(model, "predict", table)
    said = np.asarray(said.toarray() if hasattr(said, "toarray") else said)
    if said.shape[:1] != (len(table),):
        raise ConfigurationError(
            f"This {name} says {said.tolist()!r:.80} to {len(table)} row: its predict must return an array with an "
            "entry for each row."
        )
    classes = getattr(model, "classes_", ())
    if len(classes) and said.ndim == 2 and said.shape[1] > 1:
        if isinstance(classes, list) and any(not set(np.ravel(one).tolist()) <= {0, 1} for one in classes):
            raise ConfigurationError(
                f"This {name} has several outputs with classes of their own: register one model for each of them."
            )
        return "labels", said.shape[1]
    if class_values(model):
        if not _has_probabilities(model, table):
            return "class", 1
        return ("probabilities" if _predicts_highest(model) else "class_and_probabilities"), 1
    if said.dtype.kind not in "biuf":
        raise ConfigurationError(
            f"This {name} says {said.ravel().tolist()[0]!r:.80}, which is no number: "
            "give it a classes_ with all values that it says."
        )
    return ("numbers" if said.dtype.kind == "f" else "integers"), as_table(said).shape[1]


def _predicts_highest(model: Any) -> bool:
    """Whether ``predict`` is by definition the first class of the highest of ``predict_proba``."""
    inner = _innermost(model)
    if class_name(inner) == "sklearn.VotingClassifier":
        return bool(inner.voting == "soft")
    return trees_of(inner) is not None or class_name(inner) in (
        "sklearn.BaggingClassifier",
        "sklearn.CalibratedClassifierCV",
    )


def _innermost(model: Any) -> Any:
    """The estimator that decides, behind a search for parameters and the steps of a pipeline."""
    module = type(model).__module__
    if module == "sklearn.pipeline" and hasattr(model, "steps"):
        return _innermost(model.steps[-1][1])
    if module.startswith("sklearn.model_selection.") and hasattr(model, "best_estimator_"):
        return _innermost(model.best_estimator_)
    return model


def _has_probabilities(model: Any, table: Any) -> bool:
    return hasattr(model, "predict_proba") and np.shape(_said(model, "predict_proba", table)) == (
        len(table),
        len(class_values(model)),
    )


def _said(model: Any, method: str, table: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="X does not have valid feature names")
            return getattr(model, method)(table)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"The model fails on its example ({type(error).__name__}: {reason}): fit it first, give another example, "
            "or say with data (--data) what its columns hold."
        ) from error


def _with_output(draft: Manifest, output: Output) -> Manifest:
    classes = draft.classes if output.has_classes else ()
    changed = draft.model_copy(update={"output": output, "classes": classes})
    example = draft.example.model_copy(update={"golden": [0.0] * changed.width})
    return Manifest.model_validate(changed.model_copy(update={"example": example}).model_dump())


def _is_consistent(draft: Manifest, weights: bytes, model: Any, payloads: Sequence[bytes]) -> bool:
    """Whether each row is answered alike alone, in company, elsewhere in it, and by the estimator by itself."""
    predictor = TabularPredictor(model, Artifact(draft, weights))
    alone = [_answers(predictor, [payload])[0] for payload in payloads]
    if draft.output.kind == "integers" and any((unpack(one) % 1).any() for one in alone if one is not None):
        raise ConfigurationError(f"This {type(model).__name__} says whole numbers to some rows only: make them floats.")
    order = np.random.default_rng(1).permutation(len(payloads)).tolist()
    shuffled = dict(zip(order, _answers(predictor, [payloads[index] for index in order]), strict=True))
    if alone != _answers(predictor, payloads) or alone != [shuffled[index] for index in range(len(payloads))]:
        return False
    bare = TabularPredictor(model, Artifact(_with_output(draft, _by_rows(draft.output)), weights))
    few = zip(alone[:OWN_ROWS], payloads[:OWN_ROWS], strict=True)
    return all(_is_near(answer, _own(bare, payload), draft) for answer, payload in few)


def _by_rows(output: Output) -> Output:
    return output.model_copy(update={"rows_per_call": 1})


def _answers(predictor: TabularPredictor, payloads: Sequence[bytes]) -> list[bytes | None]:
    """None for a row that the estimator refuses. If a whole call fails, each row is asked alone, as in the service."""
    try:
        answers = predictor.predict(payloads)
    except Exception:
        if len(payloads) == 1:
            return [None]
        return [_answers(predictor, [payload])[0] for payload in payloads]
    return [answer if isinstance(answer, bytes) else None for answer in answers]


def _own(predictor: TabularPredictor, payload: bytes) -> bytes | None:
    try:
        answer = predictor.audit(payload)
    except Exception:
        return None
    return answer if isinstance(answer, bytes) else None


def _is_near(answer: bytes | None, alone: bytes | None, draft: Manifest) -> bool:
    """Whether an answer is the one of the row alone, but for the last bits of its numbers."""
    if answer is None or alone is None:
        return answer is alone
    one, other = unpack(answer), unpack(alone)
    if draft.output.has_classes and draft.best_class(one.tolist()) != draft.best_class(other.tolist()):
        return False
    exact = draft.output.kind in ("class", "integers", "labels") or draft.output.rows_per_call is None
    return answer == alone if exact else np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE)
