"""The questions that training.compare and training.warm ask: a CSV of requests, or a directory of image files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from service.errors import ConfigurationError, NotCached, ServiceError, UnsupportedContent
from service.inference.predictor import Predictor, Question
from service.inference.vision.images import check_signature
from training.flags import read_bytes

AT_ONCE = 64


class Asked(NamedTuple):
    """A question as a client sends it. ``name``: where it is from."""

    name: str
    params: dict[str, str]
    body: bytes = b""
    content_type: str | None = None


def read_questions(source: Path) -> Iterator[Asked]:
    """Raises ConfigurationError."""
    if source.is_dir():
        yield from _read_images(source)
        return
    try:
        reader = csv.reader(io.StringIO(read_bytes(source).decode("utf-8-sig"), newline=""), strict=True)
        lines = (line for line in reader if line)
        columns = next(lines, [])
        if len(set(columns)) < len(columns):
            raise csv.Error("the first line names a column twice")
        for line in lines:
            if len(line) != len(columns):
                raise csv.Error(f"line {reader.line_num} has more or fewer fields than the first one")
            yield Asked(f"line {reader.line_num}", dict(zip(columns, line, strict=True)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{source} is not CSV in UTF-8: {error}.") from None


def _read_images(source: Path) -> Iterator[Asked]:
    """Prints how many files are passed by."""
    passed_by = 0
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source)
        try:
            if any(part.startswith(".") for part in name.parts):
                raise UnsupportedContent
            check_signature(file := read_bytes(path))
            yield Asked(str(name), {}, file, "image/png")  # whatever image it is
        except UnsupportedContent:
            passed_by += 1
    if passed_by:
        print(f"{passed_by:,} files are passed by: they are hidden, or no images.")


def parsed(predictor: Predictor, asked: Asked) -> Question | ServiceError:
    """The question, or why it is refused."""
    try:
        question = predictor.parse(asked.params, asked.body, asked.content_type)
    except ServiceError as error:
        return error
    if question.payload is None:
        return NotCached("Nothing can be computed from a digest alone: give the image itself.")
    return question
