"""Serve your own classifier: ``python -m training.register FILE --name N --features a:0:10,b --classes x,y``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.errors import ConfigurationError, ServiceError
from service.inference.artifact import library_versions
from service.inference.manifest import Class, Example, Feature, Manifest, Output, Weights, reason
from service.inference.tabular.dependencies import dependencies
from service.inference.tabular.estimator import OtherVersion, check_model, class_values, unpickle
from training import publish
from training.proof import prove

REMEDY = "write it again with joblib.dump"


def register(
    models_dir: Path,
    name: str,
    weights: bytes,
    features: Sequence[Feature],
    *,
    labels: Sequence[str] = (),
    outputs: Sequence[str] = (),
    example: Sequence[float] = (),
    accuracy: float | None = None,
    description: str = "",
    any_version: bool = False,
) -> Manifest:
    """Publish a joblib'd estimator; raises ConfigurationError.

    ``labels``: a name per class, in the estimator's order; default its own class values. ``outputs``: a name for each
    of several. ``example``: a row to warm up and measure with; default the middle of each feature's bounds.
    ``any_version``: also a file that another scikit-learn has written.
    """
    model, versions = _load(weights, f"The model {name}", any_version)
    values = [str(value) for value in class_values(model)]
    labels = labels or values
    if len(labels) != len(values):
        raise ConfigurationError(
            f"The model has {len(values)} classes ({', '.join(values)}), but {len(labels)} were named."
        )
    row = list(example) or [_middle(feature) for feature in features]
    if len(row) != len(features):
        raise ConfigurationError(f"The example has {len(row)} values for {len(features)} features.")
    try:
        draft = Manifest(
            name=name,
            kind="tabular",
            weights=Weights.of(weights, "joblib"),
            features=tuple(features),
            output=Output(kind="probabilities" if values else "numbers", names=tuple(outputs)),
            classes=tuple(Class(value=v, label=label) for v, label in zip(values, labels, strict=True)),
            cost_seconds=1.0,
            example=Example(
                inputs=dict(zip((f.name for f in features), row, strict=True)),
                golden=[0.0] * (len(values) or len(outputs) or 1),
            ),
            versions=versions,
            accuracy=accuracy,
            description=description,
        )
    except ValidationError as error:
        raise ConfigurationError(f"{name}: {reason(error)}.") from None
    check_model(model, draft, f"The model {name}")
    draft = prove(draft, weights, model)
    try:
        return publish(models_dir, draft, weights)
    except ServiceError as error:
        raise ConfigurationError(f"The example is refused: {error}") from None


def _load(weights: bytes, where: str, any_version: bool) -> tuple[Any, dict[str, str]]:
    """The estimator, and the versions of what it is made of and was written with."""
    try:
        model = unpickle(weights, where, any_version=False, remedy=REMEDY)
    except OtherVersion as other:
        if not any_version:
            raise
        model = unpickle(weights, where)
        return model, library_versions("joblib") | dependencies(model) | {"scikit-learn": other.version}
    return model, library_versions("joblib") | dependencies(model)


def parse_features(text: str) -> list[Feature]:
    """``name[:minimum:maximum]``, comma-separated; either bound may be empty. Raises ConfigurationError."""
    return [_parse_feature(part.strip()) for part in text.split(",")]


def _parse_feature(text: str) -> Feature:
    name, *bounds = text.split(":")
    try:
        if len(bounds) not in (0, 2):
            raise ValueError("write name or name:minimum:maximum")
        low, high = (float(bound) if bound else None for bound in bounds or ("", ""))
        return Feature(name=name, minimum=low, maximum=high)
    except ValidationError as error:
        raise ConfigurationError(f"--features {text}: {reason(error)}.") from None
    except ValueError as error:
        raise ConfigurationError(f"--features {text}: {error}.") from None


def _middle(feature: Feature) -> float:
    low, high = feature.minimum, feature.maximum
    if low is not None and high is not None:
        return low / 2 + high / 2
    return low if low is not None else high if high is not None else 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training.register", description="Serve your own classifier.")
    parser.add_argument("file", type=Path, help="a fitted classifier, written with joblib.dump or pickle")
    parser.add_argument("--name", required=True, help="what it is called in URLs")
    parser.add_argument(
        "--features", required=True, help="a:0:10,b: names in the order of the columns, with optional bounds"
    )
    parser.add_argument(
        "--classes", default="", help="x,y: a label per class, in the order of the estimator's classes_"
    )
    parser.add_argument("--example", default="", help="5.1,3.5: a row to warm up and measure with")
    parser.add_argument("--any-version", action="store_true", help="also a file that another scikit-learn has written")
    parser.add_argument("--out", type=Path, default=Path("models"), help="where model directories live")
    options = parser.parse_args(arguments)
    try:
        manifest = register(
            options.out,
            options.name,
            _read(options.file),
            parse_features(options.features),
            labels=[label.strip() for label in options.classes.split(",") if label.strip()],
            example=_numbers(options.example),
            any_version=options.any_version,
        )
    except ConfigurationError as error:
        sys.exit(str(error))
    cost = f"{manifest.cost_seconds * 1e6:,.0f} µs a prediction"
    print(f"{options.out / manifest.name}: {len(manifest.classes)} classes, {cost}")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}).") from None


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigurationError(f"--example {text}: write numbers with commas between them.") from None


if __name__ == "__main__":
    main()
