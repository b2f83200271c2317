"""The data path of a batch: its rows are looked up together, computed together, and each is cached on its own."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Any, cast

import numpy as np

from service.cache.entry import new_entry
from service.cache.keys import cache_keys, of_tenant
from service.cache.memory import Memo
from service.errors import Overloaded, ServiceError
from service.inference.predictor import Question, Questions
from service.lookup import DEFAULT, Answer, CacheDirectives, Lookup, Model
from service.pipeline import NO_GENERATION, Pipeline

ROWS_AT_ONCE = 256
"""Rows of a batch that take the ordinary path at a time. A larger batch needs places in the queue for so many."""

ROWS_PER_TURN = 1024
"""Rows that are looked up as an array in one turn of the event loop: a millisecond or two."""

MAX_KNOWN_KEYS = 16_384
MAX_KNOWN_MODELS = 8
"""Of as many models' arrays so many keys are remembered: 4 MB each."""


class BatchPipeline(Pipeline):
    """The pipeline of one question, and of many at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._known_keys: Memo[tuple[str, bytes, bytes], Memo[bytes, str]] = Memo(MAX_KNOWN_MODELS)

    async def answer_many(
        self, model: Model, questions: Sequence[Question | ServiceError], directives: CacheDirectives = DEFAULT
    ) -> list[Answer | ServiceError]:
        """An answer, or the row's own error, for each question in order. Equal questions are looked up once.

        The queue admits all rows that must be computed, or none: raises Overloaded.
        """
        chosen: dict[bytes, Question] = {}
        for question in questions:
            # Of two equal questions the one that has a payload: the other may be a digest alone.
            if isinstance(question, Question) and (question.payload is not None or question.identity not in chosen):
                chosen[question.identity] = question
        asked, parts = list(chosen.values()), []
        found: dict[str, Answer] = {}
        for start in range(0, len(asked), ROWS_AT_ONCE):
            rows = [self._lookup(model, question) for question in asked[start : start + ROWS_AT_ONCE]]
            found |= await self._found(rows, directives)
            parts.append((rows, [row for row in rows if row.key not in found and row.may_be_computed(directives)]))
            if start:
                await asyncio.sleep(0)
        answered: list[Answer | BaseException] = []
        with model.batcher.reserve(min(ROWS_AT_ONCE, sum(len(missing) for _, missing in parts))) as reservation:
            for rows, missing in parts:
                reservation.places = len(missing)
                for row in missing:
                    row.reservation = reservation
                answering = (self._observed(row, self._row(row, directives, found.get(row.key))) for row in rows)
                answered += await asyncio.gather(*answering, return_exceptions=True)
        by_identity = dict(zip(chosen, answered, strict=True))
        return [row_error(by_identity[q.identity] if isinstance(q, Question) else q) for q in questions]

    async def answer_table(
        self, model: Model, questions: Questions, directives: CacheDirectives, view: Hashable | None
    ) -> list[bytes | Answer | ServiceError]:
        """As ``answer_many``, of rows that are one array. A hit in L1 is just its rendering in this view, where its
        entry has that, or without a view its value.

        It is looked up in turns of the loop, so that nobody else waits for a large batch.
        """
        rows: list[bytes | Answer | ServiceError | None] = []
        names: list[str] = []
        hits: dict[str, int] = {}
        started = self._clock()
        while len(rows) < len(questions) and directives is DEFAULT:
            if rows:
                await asyncio.sleep(0)
            keys = self._keys(model, questions, len(rows))
            said = [
                None if entry is None else entry.value if view is None else entry.renderings.get(view)
                for entry in self.l1.find_entries(keys)
            ]
            places = range(len(rows), len(rows) + len(said))
            if None in said:
                hits.update((key, row) for key, row, one in zip(keys, places, said, strict=True) if one is not None)
            else:
                hits.update(zip(keys, places, strict=True))
            rows += said
            names += keys
        if hits:
            self.observer.array_hits(model, questions, hits, self._clock() - started)
        if None not in rows and len(rows) == len(questions):
            return cast("list[bytes | Answer | ServiceError]", rows)
        rows += [None] * (len(questions) - len(rows))
        if names and self.l2.state == "off" and model.batcher.runs_on_loop:
            await self._compute_missing(model, questions, rows, names)
        missing = [row for row, one in enumerate(rows) if one is None]
        for start in range(0, len(missing), ROWS_AT_ONCE):
            part = missing[start : start + ROWS_AT_ONCE]
            answers = await self.answer_many(model, [questions.question(row) for row in part], directives)
            for row, answer in zip(part, answers, strict=True):
                rows[row] = answer
        return [row for row in rows if row is not None]

    async def _compute_missing(self, model: Model, questions: Questions, rows: list[Any], keys: Sequence[str]) -> None:
        """Answer what is not in L1, as many rows in a turn of the loop as one batch has. The loop itself computes them.

        There is no Redis that could have the answers. Between the look into L1 and the new entries there is no await,
        so no flight for these keys can begin. What a flight is computing, and what fails, is left to ``answer_many``.
        """
        missing = [row for row, said in enumerate(rows) if said is None]
        size, step = questions.size, model.batcher.max_batch_size
        computed: dict[str, Answer] = {}
        for start in range(0, len(missing), step):
            part, began = missing[start : start + step], self._clock()
            new = {keys[row]: row for row in part if keys[row] not in computed and self._is_free(keys[row])}
            payloads = [questions.payloads[row * size : (row + 1) * size] for row in new.values()]
            outcomes = model.batcher.compute_at_once(payloads)
            seconds = self._clock() - began
            for key, outcome in zip(new, outcomes, strict=True):
                if isinstance(outcome, bytes) and model.is_answer(outcome):
                    entry = new_entry(outcome, model.ttl(self.settings), self._clock(), self._random)
                    self.l1.put(key, entry)
                    computed[key] = Answer(key, entry, "computed", stored=True, model_seconds=seconds)
            for row in part:
                rows[row] = computed.get(keys[row])
            self.observer.array_computed(model, [key for key in new if key in computed], seconds)
            await asyncio.sleep(0)

    def _is_free(self, key: str) -> bool:
        return not self._flights.is_under_way(key) and self.l1.get(key) is None

    async def _found(self, lookups: list[Lookup], directives: CacheDirectives) -> dict[str, Answer]:
        """What the caches have of a batch. All reads start in one turn of the loop, so one round trip takes them."""
        if not directives.reads:
            return {}
        local = [self._in_l1(lookup) for lookup in lookups]
        shared = await asyncio.gather(*(self._in_l2(a) for a, hit in zip(lookups, local, strict=True) if hit is None))
        return {answer.key: answer for answer in (*local, *shared) if answer is not None}

    async def _row(self, lookup: Lookup, directives: CacheDirectives, found: Answer | None) -> Answer:
        if found is None:  # asks L1 again: while Redis was asked, another request may have had the answer computed
            return await self._answer(lookup, directives)
        return found if self._suits(found, directives) else await self._recompute(lookup, directives)

    def _keys(self, model: Model, questions: Questions, start: int) -> list[str]:
        """Of the rows of one turn. Those made before are remembered, since a hash is half of what a hit costs here."""
        fingerprint = model.predictor.fingerprint
        generation = of_tenant(self.l2.generation(model.name) or NO_GENERATION)
        if (named := (model.name, fingerprint, generation)) not in self._known_keys:
            self._known_keys.keep(named, Memo(MAX_KNOWN_KEYS))
        known, size = self._known_keys[named], questions.size
        part = questions.identities[start * size : (start + ROWS_PER_TURN) * size]
        identities: list[bytes] = np.frombuffer(part, f"V{size}").tolist()
        keys = list(map(known.get, identities))
        if None not in keys:
            return cast("list[str]", keys)
        new = list({identity for identity, key in zip(identities, keys, strict=True) if key is None})
        found = dict(
            zip(new, cache_keys(model.label, fingerprint, generation, questions.mark, b"".join(new), size), strict=True)
        )
        for identity, made in found.items():
            known.keep(identity, made)
        return [key or found[identity] for identity, key in zip(identities, keys, strict=True)]


def row_error(outcome: Answer | BaseException) -> Answer | ServiceError:
    """A row's own error stays in its row. Any other error is raised for the whole request."""
    if isinstance(outcome, Overloaded) or not isinstance(outcome, Answer | ServiceError):
        raise outcome
    return outcome
