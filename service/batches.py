"""The data path of a batch: its rows are looked up together, computed together, and each is cached on its own.

keys ─ L1 ─hits─────────────────────────────────────────────────────────────────────► answers
        └misses─ of a model on the event loop: a flight ─ L2 ─ model ─ L2 ──────────► answers
              └─ of others, and what is left: L2 ─ each row as a question of its own ► answers
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import compress, count
from typing import Any, TypeAlias, cast

import numpy as np

from service.cache.entry import Entry, new_entries
from service.cache.keys import cache_key, cache_keys
from service.cache.memory import Memo
from service.cache.redis.auto_pipeline import DeadlineBudget
from service.errors import DeadlineExceeded, ServiceError, StoreUnavailable
from service.inference.predictor import Question, Questions
from service.lookup import DEFAULT, Answer, BatchAnswer, BatchFlight, BatchLookup, CacheDirectives, Lookup, Model
from service.pipeline import Pipeline

ROWS_AT_ONCE = 256
"""Rows of a batch that are looked up, ask Redis, and wait for a model, at a time. A larger batch needs places in the
queue for so many."""

TURN_SECONDS = 0.001
"""After so long a batch lets others run. A turn of the loop takes 20 µs."""

MAX_KNOWN_KEYS = 16_384
MAX_KNOWN_MODELS = 8
"""Of as many models' arrays so many keys are remembered: 4 MB each."""

Ready: TypeAlias = Callable[[Sequence[Entry | None]], Sequence[bytes | None]]
Said: TypeAlias = bytes | Entry | ServiceError


class BatchPipeline(Pipeline):
    """The pipeline of one question, and of many at a time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keys = BatchKeys()

    async def answer_many(
        self,
        model: Model,
        asked: Questions | Sequence[Question | ServiceError],
        directives: CacheDirectives = DEFAULT,
        ready: Ready = lambda entries: [None] * len(entries),
    ) -> BatchAnswer:
        """An answer, or the row's own error, for each row in order. Equal rows are computed once.

        Of a hit in L1 just the bytes that ``ready`` finds with its entry, if any. The queue admits all rows that must
        be computed, or none: raises Overloaded.
        """
        generation, l2 = self._key_space(model)
        rows = asked if isinstance(asked, Questions) else _with_payloads(asked)
        deadline = self._clock() + self.settings.deadline_seconds
        answer = await self._answer_rows(BatchLookup(model, rows, directives, generation, l2, deadline), ready)
        if isinstance(asked, Questions) or len(rows) == len(asked):
            return answer
        said = iter(answer.rows)
        return answer._replace(rows=[one if isinstance(one, ServiceError) else next(said) for one in asked])

    async def _answer_rows(self, batch: BatchLookup, ready: Ready) -> BatchAnswer:
        """Some at a time, so that nobody else waits for a large batch."""
        all_keys: list[str] = []
        said: list[Said | None] = []
        left: dict[str, int] = {}
        found, turn = batch.found, self._clock()
        for start in range(0, len(batch.rows), ROWS_AT_ONCE):
            turn = await self._let_others_run(turn)
            keys = self._keys.of(batch, start)
            all_keys += keys
            local = self._in_l1_many(batch, keys, start, ready)
            said += local
            if all(local):  # which compares nothing, as `None not in` would
                continue
            places = zip(count(start), keys, local, strict=False)
            missing = {key: row for row, key, one in places if one is None and key not in found}
            if batch.is_computed_here:
                await self._fly_many(batch, missing)
            left |= missing
        if left := {key: row for key, row in left.items() if key not in found}:
            await self._one_by_one(batch, left)
        if not found:
            return BatchAnswer(cast("list[Said]", said), len(said), 0)
        waited = [key for key, one in zip(all_keys, said, strict=True) if one is None]
        hits = len(said) - len(waited) + (sum(map(batch.hits.__contains__, waited)) if batch.hits else 0)
        entries = map(found.__getitem__, waited)
        return BatchAnswer([next(entries) if one is None else one for one in said], hits, batch.computed)

    async def _let_others_run(self, turn: float) -> float:
        """If this turn of the loop, which began at ``turn``, has been long enough; when the one under way now began."""
        if self._clock() - turn <= TURN_SECONDS:
            return turn
        await asyncio.sleep(0)
        return self._clock()

    def _in_l1_many(self, batch: BatchLookup, keys: Sequence[str], start: int, ready: Ready) -> Sequence[Said | None]:
        """Of each key what is ready with its entry, or the entry itself. ``start``: the first one's row."""
        if not batch.directives.reads:
            return [None] * len(keys)
        started = self._clock()
        entries = self.l1.get_many(keys)
        if batch.directives is not DEFAULT:
            accepts = batch.directives.accepts
            entries = [entry if entry and accepts(entry, started) else None for entry in entries]
        if not any(entries):
            return [None] * len(keys)

        def find(key: str) -> tuple[bytes | None, bytes]:
            place = keys.index(key)
            return batch.payload(start + place), cast("Entry", entries[place]).value

        self.observer.many(batch.model, "l1", list(compress(keys, entries)), self._clock() - started, find)
        said = ready(entries)
        return said if all(said) else [one or entry for one, entry in zip(said, entries, strict=True)]

    async def _fly_many(self, batch: BatchLookup, rows: Mapping[str, int]) -> None:
        """Find these rows (key -> row), but none where another flight is under way, the computation fails, or the
        deadline passes.

        Between the look into L1 and the flight there is no await, so no other flight for these keys can end meanwhile.
        """
        if (seconds := batch.deadline - self._clock()) <= 0:
            return
        if not batch.directives.store:
            self._land_many(batch, rows, await self._compute_many(batch, rows))
            return
        under_way = self._flights.under_way
        free = {key: row for key, row in rows.items() if key not in under_way}
        if free:
            try:
                flown = await self._flights.do_many(free, self._lead_many(batch, free), BatchFlight.answer, seconds)
                self._land_many(batch, free, flown)
            except DeadlineExceeded:
                pass  # each row is late, and counted so, on its own
            except asyncio.CancelledError:
                self.observer.left(batch.model, len(free))
                raise

    def _land_many(self, batch: BatchLookup, rows: Mapping[str, int], flown: BatchFlight) -> None:
        """Counted by who has waited: what lands for a batch that is late, or has left, is no answer to it."""
        model, stored, seconds = batch.model, flown.stored, flown.look_seconds
        self.observer.many(
            model, "l2", list(stored), seconds, lambda key: (batch.payload(rows[key]), stored[key].value)
        )
        self.observer.computed(model, flown.computed, flown.seconds)
        batch.add(flown)

    async def _lead_many(self, batch: BatchLookup, rows: Mapping[str, int]) -> BatchFlight:
        """One read from Redis, and one store of what is computed."""
        model, budget = batch.model, DeadlineBudget(batch.deadline - self._clock())
        stored = await self._in_l2_many(batch, rows, budget)
        look_seconds = budget.spent
        missing = {key: row for key, row in rows.items() if key not in stored} if stored else rows
        flown = await self._compute_many(batch, missing)
        flown.stored, flown.look_seconds = stored, look_seconds
        await self._store_many(batch, flown, budget)
        self.observer.waited(model, budget.spent)
        return flown

    async def _compute_many(self, batch: BatchLookup, rows: Mapping[str, int]) -> BatchFlight:
        """As many in each call as the event loop may compute."""
        model, entries, keys = batch.model, dict[str, Entry](), list(rows)
        ttl, started = model.ttl(self.settings), self._clock()
        turn = started
        for start in range(0, len(keys), step := min(ROWS_AT_ONCE, model.batcher.rows_on_loop)):
            turn = await self._let_others_run(turn)
            part = keys[start : start + step]
            outcomes = model.batcher.compute_at_once(batch.payloads(rows, part))
            distinct = set(outcomes)
            sound = {value for value in distinct if isinstance(value, bytes) and model.is_answer(value)}
            if len(sound) < len(distinct):
                part = [key for key, value in zip(part, outcomes, strict=True) if value in sound]
                outcomes = [value for value in outcomes if value in sound]
            values = cast("list[bytes]", outcomes)
            entries |= zip(part, new_entries(values, ttl, self._clock(), self._random), strict=True)
        return BatchFlight({}, entries, self._clock() - started)

    async def _store_many(self, batch: BatchLookup, flown: BatchFlight, budget: DeadlineBudget) -> None:
        """As ``_store`` of each."""
        entries = flown.computed
        if entries and batch.l2 is not None:
            with suppress(StoreUnavailable):
                flown.kept = stored = await batch.l2.put_many(entries, budget=budget, accepts=batch.model.is_answer)
                entries |= stored
        if not flown.kept:
            flown.kept = self._keep_here_many(entries, batch.l2, flown.seconds)
            flown.l2_down = self._is_l2_down

    async def _in_l2_many(self, batch: BatchLookup, keys: Iterable[str], budget: DeadlineBudget) -> dict[str, Entry]:
        """As ``_in_l2`` of each: those that there are."""
        entries: dict[str, Entry] = {}
        if batch.l2 is not None:
            with suppress(StoreUnavailable):
                entries = await batch.l2.get_many(list(keys), budget, batch.model.is_answer)
        self.l1.put_many(entries, self.settings.l1_max_seconds)
        return entries

    async def _one_by_one(self, batch: BatchLookup, rows: Mapping[str, int]) -> None:
        """One read from Redis for each ROWS_AT_ONCE rows. Then each is answered like a question of its own."""
        model, directives, found = batch.model, batch.directives, dict[str, Entry]()
        places, parts, missing, turn = list(rows.items()), list[list[Lookup]](), list[Lookup](), self._clock()
        for start in range(0, len(places), ROWS_AT_ONCE):
            turn = await self._let_others_run(turn)
            some, budget = places[start : start + ROWS_AT_ONCE], DeadlineBudget(batch.deadline - self._clock())
            if directives.reads and budget.left > 0:
                found |= await self._in_l2_many(batch, [key for key, _ in some], budget)
                self.observer.waited(model, budget.spent)
            parts.append(
                [
                    Lookup(model, batch.rows[row], key, batch.l2, batch.deadline, DeadlineBudget(budget.left))
                    for key, row in some
                ]
            )
            missing += self._to_compute(parts[-1], directives, found)
        if self._clock() >= batch.deadline:
            missing = []
        with model.batcher.reserve(min(ROWS_AT_ONCE, len(missing))) as reservation:
            for row in missing:
                row.reservation = reservation
            for part in parts:
                reservation.places = sum(1 for row in part if row.reservation)
                answering = (self._observed(row, self._row(row, directives, found.get(row.key))) for row in part)
                outcomes = await asyncio.gather(*answering, return_exceptions=True)
                self.observer.waited(model, max(row.budget.spent for row in part))  # they share round trips
                for row, outcome in zip(part, outcomes, strict=True):
                    batch.add_row(row.key, outcome)

    def _to_compute(
        self, lookups: Sequence[Lookup], directives: CacheDirectives, found: dict[str, Entry]
    ) -> list[Lookup]:
        """Those that need a place in the queue: no cache has an answer that suits, and no flight brings one."""
        rows = [row for row in lookups if row.may_be_computed(directives)]
        if not directives.reads:
            return rows
        unknown = [row.key for row in rows if row.key not in found]
        # Others may have had it computed meanwhile.
        known = {key: entry for key, entry in zip(unknown, self.l1.get_many(unknown), strict=True) if entry}
        known |= {row.key: found[row.key] for row in rows if row.key in found}
        flying, accepts, now = self._flights.under_way, directives.accepts, self._clock()
        return [row for row in rows if not (accepts(known[row.key], now) if row.key in known else row.key in flying)]

    async def _row(self, lookup: Lookup, directives: CacheDirectives, found: Entry | None) -> Answer:
        if found is not None and self._suits(answer := Answer(lookup.key, found, "l2"), directives):
            return answer
        if self._clock() >= lookup.deadline:
            raise DeadlineExceeded
        if found is None and lookup.may_be_computed(directives):
            # Asks L1 again: while Redis was asked, another request may have had the answer computed.
            return await self._answer(lookup, directives)
        return await self._recompute(lookup, directives)


class BatchKeys:
    """The cache keys of batches. Those of arrays are remembered, since a hash is half of what a hit costs here."""

    def __init__(self) -> None:
        self._known: Memo[tuple[str, bytes, bytes], Memo[bytes, str]] = Memo(MAX_KNOWN_MODELS)

    def of(self, batch: BatchLookup, start: int) -> list[str]:
        """Of ROWS_AT_ONCE rows from ``start`` on."""
        model, rows, generation = batch.model, batch.rows, batch.generation
        fingerprint = model.predictor.fingerprint
        if isinstance(rows, list):
            identities = [question.identity for question in rows[start : start + ROWS_AT_ONCE]]
            made = {one: cache_key(model.label, fingerprint, generation, one) for one in set(identities)}
            return [made[one] for one in identities]
        if (named := (model.name, fingerprint, generation)) not in self._known:
            self._known.keep(named, Memo(MAX_KNOWN_KEYS))
        known, size = self._known[named], rows.size
        raw = rows.identities[start * size : (start + ROWS_AT_ONCE) * size]
        identities = np.frombuffer(raw, f"V{size}").tolist()
        keys = list(map(known.get, identities))
        if all(keys):
            return cast("list[str]", keys)
        new = list({identity for identity, key in zip(identities, keys, strict=True) if key is None})
        names = cache_keys(model.label, fingerprint, generation, rows.mark, b"".join(new), size)
        found = dict(zip(new, names, strict=True))
        known.keep_many(found)
        return [key or found[identity] for identity, key in zip(identities, keys, strict=True)]


def _with_payloads(asked: Sequence[Question | ServiceError]) -> list[Question]:
    """The questions. One that is a digest alone is replaced by an equal one that has its payload, if there is one."""
    questions = [one for one in asked if isinstance(one, Question)]
    payloads = {one.identity: one for one in questions if one.payload is not None}
    return [payloads.get(one.identity, one) for one in questions]
