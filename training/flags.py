"""Reads the flags of training.register: features, an example, files. All functions raise ConfigurationError."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from service.errors import ConfigurationError
from service.inference.manifest import Feature
from service.inference.tabular.features import BOOLEANS

TYPES = ("number", "integer", "boolean", "category", "text")
WHOLE = re.compile("-?(0|[1-9][0-9]*)")
"""Values that are numbers: 007 is none, since it would be written as 7."""
HOW = "write name, name:minimum:maximum, name:type or name:category:a|b; a ? behind the type: it may be missing"


def parse_features(text: str) -> list[dict[str, Any]]:
    """Comma-separated; of each feature the members of manifest.Feature that are set."""
    return [_parse_feature(part.strip()) for part in text.split(",")] if text else []


def _parse_feature(text: str) -> dict[str, Any]:
    name, *parts = text.split(":")
    feature: dict[str, Any] = {"name": name}
    if (parts and parts[0].removesuffix("?") in TYPES) or parts == ["?"]:
        kind = parts.pop(0)
        feature |= {"missing": True} if kind.endswith("?") else {}
        feature |= {"type": kind.removesuffix("?")} if kind != "?" else {}
    if feature.get("type") == "category" and parts:
        values = parts.pop(0).split("|")
        feature["values"] = [int(v) for v in values] if all(map(WHOLE.fullmatch, values)) else values
    try:
        if len(parts) not in (0, 2):
            raise ValueError(HOW)
        return feature | {key: float(part) for key, part in zip(("minimum", "maximum"), parts, strict=False) if part}
    except ValueError as error:
        raise ConfigurationError(f"--features {text}: {error}.") from None


def parse_example(text: str, features: Sequence[Feature]) -> list[Any]:
    """A line of CSV."""
    values = next(csv.reader([text])) if text else []
    if len(values) != len(features):
        raise ConfigurationError(f"The example has {len(values)} values for {len(features)} features.")
    return [_value(feature, value.strip()) for feature, value in zip(features, values, strict=True)]


def _value(feature: Feature, text: str) -> Any:
    if feature.missing and not text:
        return None
    try:
        if feature.values:
            return {str(value): value for value in feature.values}.get(text, text)
        return {"number": float, "integer": int, "boolean": BOOLEANS.__getitem__}.get(feature.type, str)(text)  # type: ignore[operator]
    except (ValueError, KeyError):
        raise ConfigurationError(f"--example {text}: {feature.name} is of the type {feature.type}.") from None


def parse_requirements(lines: Iterable[str]) -> tuple[str, ...]:
    """Without comments, hashes and pip's options."""
    texts = (line.partition(" #")[0].partition(" --")[0].strip().removesuffix("\\").strip() for line in lines)
    found = tuple(text for text in texts if text and not text.startswith(("#", "-")))
    for text in found:
        try:
            Requirement(text)
        except InvalidRequirement as error:
            why = str(error).splitlines()[0]
            raise ConfigurationError(f"{text!r:.80} is no requirement ({why}).") from None
    return found


def read_lines(file: Path) -> list[str]:
    try:
        return read_bytes(file).decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} is no text in UTF-8.") from None


def read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}).") from None


def read_data(file: Path) -> Any:
    """A DataFrame, from CSV or, by its name, Parquet."""
    try:
        import pandas as pd

        return pd.read_parquet(file) if file.suffix in (".parquet", ".pq") else pd.read_csv(file)
    except ImportError as error:
        raise ConfigurationError(f"To read {file}, install {error.name or 'pandas and pyarrow'} here.") from None
    except Exception as error:
        raise ConfigurationError(f"--data {file} cannot be read ({error!s:.200}).") from None
