"""``/predict_batch``: many rows in, a rendering or an error of each out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import itemgetter
from time import monotonic
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.batches import TURN_SECONDS
from service.cache.entry import Entry
from service.errors import InvalidInput, ServiceError
from service.http.csv_rows import CSV, decimals, read_csv, write_csv
from service.http.endpoint import Reply, Request, load_object
from service.http.multipart import FILE, FORM, read_files
from service.http.predict import IMAGE_PARAMETERS, JSON, parse_query
from service.http.render import View, batch_status, rendering, take_model, take_view
from service.inference.manifest import MAX_EXACT
from service.inference.predictor import Question, Questions, parse_table
from service.large_json import ARRAY, LargeArray, LargeString
from service.lookup import BatchAnswer, Model, are_bytes
from service.runtime import Runtime

MAX_BATCH_BYTES = 32 * 2**20

BYTES_PER_ROW = 256
"""To read a row by itself takes as long as so many bytes of a large body, mostly to say what is wrong with it."""

Asked = Questions | Sequence[Question | ServiceError]
"""Each row's question, or its own error."""


@dataclass(slots=True)
class Batch:
    """``asked``: None until ``read_each`` has read its ``count`` rows one by one, where they are no array."""

    model: Model
    view: View
    asked: Asked | None
    count: int
    read_each: Callable[[], Asked]

    def ready(self, entries: Sequence[Entry | None]) -> list[bytes | None]:
        """The renderings that L1 keeps with entries."""
        view = self.view
        return [None if entry is None else entry.renderings.get(view) for entry in entries]

    def question(self, row: int) -> Question:
        assert self.asked is not None
        asked = self.asked[row]
        assert isinstance(asked, Question)
        return asked


async def batch(request: Request) -> Reply:
    """Every row is looked up and cached on its own, equal rows are computed once, and a bad row fails in its place."""
    content_type = request.media_type((JSON, CSV, FORM))
    body = await request.content(MAX_BATCH_BYTES)
    rows = await request.work(partial(READ[content_type], request, body), len(body))
    if rows.asked is None:
        size = max(len(body), rows.count * BYTES_PER_ROW)
        rows.asked = await request.work(rows.read_each, size)
    assert rows.asked is not None
    answer = await request.runtime.pipeline.answer_many(rows.model, rows.asked, request.directives, rows.ready)
    bodies = await _bodies(request, rows, answer)
    headers = [(b"cache-status", batch_status(answer))]
    if request.accepts(CSV):
        text = await request.work(partial(write_csv, rows.model, bodies), sum(map(len, bodies)))
        return Reply(text, content_type=b"text/csv; charset=utf-8", headers=headers)
    return Reply(b'{"results":[%s]}' % b",".join(bodies), headers=headers)


async def _bodies(request: Request, batch: Batch, answer: BatchAnswer) -> list[bytes]:
    if are_bytes(answer.rows):
        return answer.rows
    runtime, model, view = request.runtime, batch.model, batch.view
    bodies, began = [], monotonic()
    remembered, add = runtime.rendered.get, runtime.pipeline.l1.add_rendering
    for row, said in enumerate(answer.rows):
        if isinstance(said, bytes):
            body = said
        elif isinstance(said, ServiceError):
            request.refused(said)
            body = orjson.dumps({"error": said.describe()})
        elif found := remembered((model.label, view, said.value)):
            body = found
            if answer.hits:  # what nobody asks for again needs no rendering
                add(said, view, body)
        else:
            body = rendering(runtime, said, model, view, partial(batch.question, row))
        bodies.append(body)
        if monotonic() - began > TURN_SECONDS:  # a row of a thousand classes takes a third of a millisecond
            await asyncio.sleep(0)
            began = monotonic()
    return bodies


def _read_form(request: Request, body: bytes) -> Batch:
    """A file for each row."""
    most = request.runtime.settings.max_batch_rows
    members, files = read_files(body, request.header(b"content-type") or b"", most)
    model, view = _take_model_and_view(request.runtime, members, image=True)
    return Batch(model, view, None, len(files), lambda: [_question(model, {}, file, FILE) for file in files])


def _read_csv(request: Request, body: bytes) -> Batch:
    """A line for each row, behind one that names the features."""
    model, view = _take_model_and_view(request.runtime, dict(parse_query(request.query)), image=False)
    rows = read_csv(body, model, request.runtime.settings.max_batch_rows)
    table = decimals(rows, [feature.name for feature in model.manifest.features])
    asked = _questions(model, table)
    return Batch(model, view, asked, len(rows), lambda: [_question(model, row, b"", None) for row in rows])


def _read_json(request: Request, body: bytes) -> Batch:
    runtime, document = request.runtime, load_object(body)
    names = [name for name in ("inputs", "batch_inputs") if name in document]
    if len(names) != 1 or not isinstance(rows := document.pop(names[0]), ARRAY) or not rows:
        raise InvalidInput("A batch has one member `inputs`: an array of at least one row.", parameter="inputs")
    if len(rows) > (most := runtime.settings.max_batch_rows):
        raise InvalidInput(f"A batch has at most {most} rows.", parameter="inputs")
    image = names[0] == "batch_inputs" or _is_image(next(iter(rows)))
    model, view = _take_model_and_view(runtime, document, image)
    table = as_table(rows, [feature.name for feature in model.manifest.features])
    asked = _questions(model, table)
    return Batch(model, view, asked, len(rows), lambda: [_parse_row(model, row) for row in rows])


READ = {JSON: _read_json, CSV: _read_csv, FORM: _read_form}


def as_table(rows: list[Any] | LargeArray, names: Sequence[str]) -> NDArray[np.float64] | None:
    """Rows × columns; None unless all rows are arrays, or all are objects, of just so many numbers."""
    parts = []
    for group in rows.groups() if isinstance(rows, LargeArray) else (rows,):
        part = _numbers(group, names)
        if part is None:
            return None
        parts.append(part)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _numbers(group: list[Any], names: Sequence[str]) -> NDArray[np.float64] | None:
    kinds = set(map(type, group))
    if kinds not in ({list}, {dict}) or set(map(len, group)) != {len(names)} or not names:
        return None
    try:
        columns = [list(map(itemgetter(name), group)) for name in names] if kinds == {dict} else group
        values = list(chain.from_iterable(columns))
        types = set(map(type, values))
        if not types <= {int, float}:  # a bool is an int, but no number
            return None
        table = np.array(values, np.float64)
    except (KeyError, OverflowError):
        return None
    if int in types and np.abs(table).max() > MAX_EXACT:  # rounded before or after it is compared with a bound
        return None
    return table.reshape(len(names), -1).T if kinds == {dict} else table.reshape(-1, len(names))


def _take_model_and_view(runtime: Runtime, params: dict[str, Any], image: bool) -> tuple[Model, View]:
    """Out of the parameters, which have nothing else; raises InvalidInput."""
    model = runtime.model(take_model(params), image)
    view = take_view(params, model)
    for name in params:
        raise InvalidInput(f"Unknown member {name!r:.80}.", parameter=name)
    return model, view


def _questions(model: Model, table: NDArray[np.float64] | None) -> Questions | None:
    """Of all rows, where all are valid numbers."""
    return None if table is None else parse_table(model.predictor, table)


def _parse_row(model: Model, row: object) -> Question | ServiceError:
    params = row if isinstance(row, Mapping) else {"image" if isinstance(row, str | LargeString) else "input": row}
    return _question(model, params, b"", JSON)


def _question(
    model: Model, params: Mapping[str, Any], body: bytes, content_type: str | None
) -> Question | ServiceError:
    try:
        return model.predictor.parse(params, body, content_type)
    except InvalidInput as error:
        return error


def _is_image(row: object) -> bool:
    """Whether a row without a named model is for an image model: an image, or an array of several dimensions."""
    if isinstance(row, Mapping):
        return not IMAGE_PARAMETERS.isdisjoint(row)
    return isinstance(row, str | LargeString) or (isinstance(row, ARRAY) and isinstance(next(iter(row), None), ARRAY))
