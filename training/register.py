"""Serve your own model: ``python -m training.register FILE --data train.csv --target COLUMN``.

From Python: ``from training import register``, then ``register(model, X, y, name="churn")``.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Unpack

import joblib

from service.config import names
from service.errors import ConfigurationError, ServiceError
from service.inference.manifest import Manifest
from service.inference.tabular.files import MODULE, OtherVersion, load_estimator
from training import MODELS_DIR, check_name, columns, command, publish
from training.draft import Details, Source, draft
from training.flags import parse_features, read_bytes, read_data, read_lines

NETWORK_FILES = (".onnx", ".pt", ".pth", ".safetensors")


def register(
    model: Any,
    X: Any = None,
    y: Any = None,
    *,
    name: str,
    models_dir: Path | str = MODELS_DIR,
    **details: Unpack[Details],
) -> Manifest:
    """Publish a fitted estimator, or a file of one, as ``models_dir/name``; raises ConfigurationError.

    ``X``, ``y``: data like those it was fitted on, which say types, values and ranges of the features, and an example.
    """
    if unknown := details.keys() - Details.__annotations__.keys():
        raise TypeError(f"register() has no argument {min(unknown)!r}; there are {', '.join(Details.__annotations__)}.")
    check_name(name)
    trusted, any_version = tuple(details.get("trusted_types", ())), details.get("any_version", False)
    is_file = isinstance(model, str | Path)
    source = _read(Path(model), name, trusted, any_version) if is_file else _dumped(model, name)
    made, scored = draft(name, source, X, y, details)
    details.get("show", print)(_shown(made, scored))
    try:
        return publish(Path(models_dir), made, source.weights, trusted_types=trusted)
    except ServiceError as error:
        raise ConfigurationError(f"The example is refused: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{models_dir} cannot be written to ({error.strerror}).") from None


def _read(file: Path, name: str, trusted: Sequence[str], any_version: bool) -> Source:
    weights, extension = read_bytes(file), "skops" if file.suffix == ".skops" else "joblib"
    load = partial(load_estimator, weights, extension, trusted, f"The model {name}")
    try:
        return Source(load(any_version=False), weights, extension)
    except OtherVersion as other:
        if not any_version:
            raise
        return Source(load(), weights, extension, other.version)


def _dumped(model: Any, name: str) -> Source:
    """A copy: to serve a model changes it a little (``n_jobs``), and its owner goes on using it."""
    file = io.BytesIO()
    try:
        joblib.dump(model, file)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigurationError(f"This {type(model).__name__} cannot be pickled ({reason:.200}): {MODULE}.") from None
    return Source(load_estimator(file.getvalue(), "joblib", (), f"The model {name}"), file.getvalue())


def _shown(draft: Manifest, rows: int) -> str:
    lines = columns.aligned(columns.printed(draft.features, draft.example.inputs))
    lines.append(_answer(draft))
    if rows:
        held_out = "held-out, if the model was not fitted on them"
        lines.append(f"accuracy: {draft.accuracy:.3f} on this data ({rows:,} rows; {held_out})")
    return "\n".join(lines)


def _answer(manifest: Manifest) -> str:
    """What the model says, in a few words."""
    named = (c.value if c.value == c.label else f"{c.value} = {c.label}" for c in manifest.classes)
    if manifest.classes:
        return f"classes: {', '.join(named)}"
    return f"answer: {manifest.output.kind}{' ' if manifest.output.names else ''}{', '.join(manifest.output.names)}"


def main(arguments: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else list(arguments)
    if any(word.startswith("--architecture") or word.lower().endswith(NETWORK_FILES) for word in words):
        from training import networks  # not above: it imports torch

        networks.main(words)
        return
    options = _parser().parse_args(words)
    command(partial(_run, options), options.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.register", description="Serve your own model.")
    add = parser.add_argument
    add(
        "file",
        type=Path,
        help="a fitted estimator: from joblib.dump or pickle, or NAME.skops from skops",
    )
    add("--name", help="what it is called in URLs; default: the file's name")
    add("--data", type=Path, help="CSV or Parquet like that it was fitted on: types, values, ranges and an example")
    add("--target", help="the column of --data that the model predicts")
    add("--features", default="", help="in the order of the columns: a:0:10,b:integer,c:category:x|y,d:text?,e:?")
    add("--classes", default="", help="x,y: a label per class, in the order of the estimator's classes_")
    add("--outputs", default="", help="x,y: a name for each of several outputs")
    add("--any-version", action="store_true", help="also a file that another scikit-learn has written")
    add("--example", default="", help="5.1,3.5: a row to warm up and measure with")
    add("--enforce-bounds", action="store_true", help="refuse numbers beyond those that --data has")
    add("--ttl-seconds", type=float, help="lifetime of its answers; default: the setting")
    add("--max-batch-size", type=int, help="most inputs in one call of it; default: the setting")
    add("--lease", choices=("auto", "always", "never"), help="compute once in the cluster; default: the setting")
    add("--requirements", type=Path, help="a requirements.txt: without what it names, the model is not loaded")
    trusted = os.environ.get("PREDICT_TRUSTED_TYPES", "")
    add(
        "--trust",
        default=trusted,
        help="types that a .skops file may hold; default: PREDICT_TRUSTED_TYPES",
    )
    add("--out", type=Path, default=MODELS_DIR, help="where model directories live; default: PREDICT_MODELS_DIR")
    return parser


def _run(options: argparse.Namespace) -> Manifest:
    """The name is checked before the file is executed."""
    name = options.name or options.file.stem
    check_name(name)
    features = parse_features(options.features)
    X = None if options.data is None else read_data(options.data)
    y = None
    if options.target is not None:
        if X is None or options.target not in X:
            raise ConfigurationError(f"--target {options.target}: --data has no such column.")
        y = X.pop(options.target)
    return register(
        options.file,
        X,
        y,
        name=name,
        models_dir=options.out,
        features=features,
        labels=names(options.classes),
        outputs=names(options.outputs),
        any_version=options.any_version,
        example=options.example,
        enforce_bounds=options.enforce_bounds,
        ttl_seconds=options.ttl_seconds,
        max_batch_size=options.max_batch_size,
        lease=options.lease,
        requirements=read_lines(options.requirements) if options.requirements else (),
        trusted_types=names(options.trust),
    )


class _Callable(ModuleType):
    """Makes this module callable, since ``from training import register`` gives the module."""

    def __call__(self, *arguments: Any, **details: Any) -> Manifest:
        return register(*arguments, **details)


sys.modules[__name__].__class__ = _Callable

if __name__ == "__main__":
    main()
