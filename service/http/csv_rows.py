"""``text/csv`` (RFC 4180): rows of features in, after a first line that names these in any order; answers out."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import InvalidInput, MalformedRequest
from service.inference.manifest import DECIMAL, MAX_DIGITS
from service.lookup import Model

CSV = "text/csv"
CLASS = "probability: "
"""Before a class's label, in the name of its column."""

_DECIMALS = frozenset(DECIMAL)


def read_csv(body: bytes, model: Model, most: int) -> list[dict[str, str]]:
    """Of each row, feature name -> text; raises MalformedRequest or InvalidInput."""
    try:
        names, *rows = (
            line for line in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if line
        )
    except (UnicodeDecodeError, csv.Error) as error:
        raise MalformedRequest(f"The body is not CSV in UTF-8: {error}.") from None
    except ValueError:
        raise InvalidInput("The first line of a CSV names the features.", parameter="inputs") from None
    if not 0 < len(rows) <= most:
        raise InvalidInput(f"A batch has 1 to {most} rows.", parameter="inputs")
    for name in names:
        if name not in model.predictor.parameters or names.count(name) > 1:
            raise InvalidInput(f"Column {name!r:.80} is unknown or given twice.", parameter=name)
    if any(len(row) != len(names) for row in rows):
        raise MalformedRequest("A row of the CSV has more or fewer fields than its first line.")
    return [dict(zip(names, row, strict=True)) for row in rows]


def decimals(rows: Sequence[dict[str, str]], names: Sequence[str]) -> NDArray[np.float64] | None:
    """As one array, a column for each name; None where not all texts are decimals."""
    if len(rows[0]) != len(names):
        return None
    fields = [row[name] for row in rows for name in names]
    if not _DECIMALS.issuperset(chain.from_iterable(fields)) or max(map(len, fields)) > MAX_DIGITS:
        return None
    try:
        return np.fromiter(map(float, fields), np.float64, len(fields)).reshape(-1, len(names))
    except ValueError:
        return None


def write_csv(model: Model, bodies: Sequence[bytes]) -> bytes:
    """A line for each rendering, and a column for each member that any of them has."""
    rows = [_flat(orjson.loads(body)) for body in bodies]
    said = dict.fromkeys(chain.from_iterable(rows))
    last = [*(CLASS + one.label for one in model.manifest.classes), "error"]
    columns = [*(name for name in said if name not in last), *(name for name in last if name in said)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _flat(document: dict[str, Any]) -> dict[str, Any]:
    if "error" in document:
        return {"error": document["error"]["detail"]}
    prediction = document["prediction"]
    if isinstance(prediction, list):
        prediction = " ".join(map(str, prediction))
    row = dict(prediction) if isinstance(prediction, dict) else {"prediction": prediction}
    if "label" in document:
        row["label"] = document["label"]
    return row | {CLASS + label: share for label, share in document.get("probabilities", {}).items()}
