"""What travels along the data path: the question on its way, and the answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeGuard, cast

from service.cache.entry import Entry
from service.cache.memory import Memo
from service.cache.redis.auto_pipeline import DeadlineBudget
from service.cache.redis.l2 import RedisCache
from service.config import Settings
from service.errors import Overloaded, ServiceError
from service.inference.batcher import Batcher, Reservation
from service.inference.manifest import Manifest
from service.inference.predictor import Predictor, Question, Questions, answer_check

MAX_CHECKED = 4096
MAX_CHECKED_BYTES = 256
"""Of as many values up to this size a model remembers whether they are answers."""


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. A request takes it once and uses it for both the key and the computation."""

    name: str
    manifest: Manifest
    predictor: Predictor
    batcher: Batcher
    leased: bool
    is_answer: Callable[[bytes], bool] = field(init=False, repr=False)
    """Whether a value could be one of the model's answers. Values from Redis and from the model are both checked."""
    label: str = field(init=False, repr=False)
    """Its name and version, as in its cache keys."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_answer", _remembering(answer_check(self.manifest)))
        object.__setattr__(self, "label", f"{self.name}:{self.version}")

    @property
    def version(self) -> str:
        return self.predictor.fingerprint.hex()[:12]

    def ttl(self, settings: Settings) -> float:
        """The lifetime of its answers, in seconds."""
        return self.manifest.ttl_seconds or settings.ttl_seconds


def _remembering(check: Callable[[bytes], bool]) -> Callable[[bytes], bool]:
    """A check that remembers short values: a forest has few, and to look one up takes a tenth of checking it."""
    known: Memo[bytes, bool] = Memo(MAX_CHECKED)

    def is_answer(value: bytes) -> bool:
        found = known.get(value) if len(value) <= MAX_CHECKED_BYTES else None
        if found is None:
            found = check(value)
            if len(value) <= MAX_CHECKED_BYTES:
                known.keep(value, found)
        return found

    return is_answer


@dataclass(frozen=True, slots=True)
class CacheDirectives:
    """What one request asks of the caches. ``max_age`` and ``min_fresh`` in seconds."""

    fresh: bool = False
    store: bool = True
    compute: bool = True
    max_age: float | None = None
    min_fresh: float | None = None

    @property
    def reads(self) -> bool:
        return self.store and not self.fresh

    def accepts(self, entry: Entry, now: float) -> bool:
        return (self.max_age is None or entry.age(now) <= self.max_age) and (
            self.min_fresh is None or entry.left(now) >= self.min_fresh
        )


DEFAULT = CacheDirectives()


@dataclass(slots=True)
class Answer:
    """An entry and the way it came.

    ``stored``: a cache keeps it. ``fresh``: the request wanted no stored answer. ``l2_down``: a Redis is configured,
    but it did not take part. ``hit``: no model was called. Times in seconds.
    """

    key: str
    entry: Entry
    source: Literal["l1", "l2", "computed", "collapsed"]
    stored: bool = False
    fresh: bool = False
    l2_down: bool = False
    cache_seconds: float = 0.0
    queue_seconds: float = 0.0
    model_seconds: float = 0.0
    hit: bool = field(init=False)  # an attribute, since one answer reads it seven times

    def __post_init__(self) -> None:
        self.hit = self.source in ("l1", "l2")


@dataclass(slots=True)
class Lookup:
    """One question on its way along the data path.

    ``l2``: the cache that all workers share, if there is one and its key is everybody's. ``budget``: the time that
    Redis may still cost this question.
    """

    model: Model
    question: Question
    key: str
    l2: RedisCache | None
    deadline: float
    budget: DeadlineBudget
    reservation: Reservation | None = None

    def may_be_computed(self, directives: CacheDirectives) -> bool:
        return directives.compute and self.question.payload is not None


@dataclass(slots=True)
class BatchLookup:
    """A batch on its way. ``generation``: as in its keys. ``l2``: as a Lookup's. ``deadline``: a reading of the clock.

    ``found``: key -> entry or error, of those that were not in L1. ``hits``: the keys of hits among them.
    ``computed``: how many a model computed.
    """

    model: Model
    rows: Questions | list[Question]
    directives: CacheDirectives
    generation: bytes
    l2: RedisCache | None
    deadline: float
    found: dict[str, Entry | ServiceError] = field(default_factory=dict)
    hits: set[str] = field(default_factory=set)
    computed: int = 0

    def add(self, flown: BatchFlight) -> None:
        """What a flight of many has brought."""
        self.found |= flown.computed
        self.found |= flown.stored
        self.hits.update(flown.stored)
        self.computed += len(flown.computed)

    def add_row(self, key: str, outcome: Answer | BaseException) -> None:
        """A row's answer, or its own error. Any other error is raised for the whole request."""
        if isinstance(outcome, Answer):
            self.found[key] = outcome.entry
            self.computed += outcome.source == "computed"
            if outcome.hit:
                self.hits.add(key)
        elif isinstance(outcome, Overloaded) or not isinstance(outcome, ServiceError):
            raise outcome
        else:
            self.found[key] = outcome

    @property
    def is_computed_here(self) -> bool:
        """Whether the event loop itself computes what is missing, many rows in a call."""
        model, directives = self.model, self.directives
        usual = directives is DEFAULT or (directives.compute and not directives.store)
        return usual and model.batcher.rows_on_loop > 0 and not (model.leased and self.l2 is not None)

    def payload(self, row: int) -> bytes | None:
        """Of one row; None for a digest alone."""
        return self.rows[row].payload

    def payloads(self, rows: Mapping[str, int], keys: Iterable[str]) -> list[bytes]:
        """Of those rows (key -> row) that have these keys, all of which have payloads."""
        wanted = [rows[key] for key in keys]
        if isinstance(self.rows, Questions):
            return self.rows.payloads_of(wanted)
        return [cast("bytes", self.rows[row].payload) for row in wanted]


@dataclass(slots=True)
class BatchFlight:
    """The outcome of one flight of many keys.

    ``stored``: what Redis had, after ``look_seconds``. ``computed``: what the model said. ``seconds``: of the
    computation, with others' turns. ``kept``: the keys of computed entries that a cache keeps. ``l2_down``: as an
    Answer's.
    """

    stored: Mapping[str, Entry]
    computed: dict[str, Entry]
    seconds: float = 0.0
    look_seconds: float = 0.0
    kept: Collection[str] = ()
    l2_down: bool = False

    def answer(self, key: str) -> Answer | None:
        """For somebody who asked for this key alone meanwhile."""
        if (entry := self.stored.get(key)) is not None:
            return Answer(key, entry, "l2")
        if (entry := self.computed.get(key)) is None:
            return None
        kept, down = key in self.kept, self.l2_down
        return Answer(key, entry, "computed", stored=kept, l2_down=down, model_seconds=self.seconds)


class BatchAnswer(NamedTuple):
    """``rows``: of each row in order the bytes that were ready, or its entry, or its own error. ``hits``: how many rows
    were hits. ``computed``: how many distinct ones a model has computed for this batch."""

    rows: list[bytes | Entry | ServiceError]
    hits: int
    computed: int


def are_bytes(rows: Sequence[object]) -> TypeGuard[list[bytes]]:
    """Whether all rows were hits whose bytes were ready."""
    return set(map(type, rows)) == {bytes}
