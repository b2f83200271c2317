"""What a model is to the rest of the service: a question in, a packed vector out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from service.errors import DeviceLost, PredictionFailed, ServiceError
from service.inference.manifest import Manifest

Prediction: TypeAlias = bytes
"""A packed vector, read as the manifest's ``output`` says: dtype, shape and little-endian values (see ``pack``)."""
Outcome: TypeAlias = "Prediction | Exception"
Predict: TypeAlias = "Callable[[Sequence[bytes]], Sequence[Outcome]]"
Compute: TypeAlias = "Callable[[Sequence[bytes]], list[Outcome]]"

EXAMPLE_TOLERANCE = 1e-3
"""How far an answer may be from the manifest's golden one, where a predictor's ``example_tolerance`` says no more."""

SUM_TOLERANCE = 0.01
"""How far the sum of an answer's probabilities may be from 1: some estimators round them."""

ROUNDING = 1e-6
"""How far a probability may be beyond 0 or 1, and how far from 1 their sum may be without a second look."""

_CODES = {"f4": b"f", "f8": b"d"}
_DTYPES: dict[bytes, np.dtype[Any]] = {b"f": np.dtype("<f4"), b"d": np.dtype("<f8")}


class HashedFile(bytes):
    """A file whose SHA-256 was made while it arrived. Nothing that takes only plain bytes, as orjson, may get one."""

    digest: bytes


def digest_of(file: bytes) -> bytes:
    """Its SHA-256."""
    return file.digest if isinstance(file, HashedFile) else sha256(file).digest()


class Question(NamedTuple):
    """One input to one model.

    ``identity`` names the answer: inputs with the same identity have the same answer to the last bit.
    ``payload`` is what the predictor computes from, or None when the client sent only a digest, so that the
    question can be answered from the cache alone. ``digest``: the hex sha256 by which the same question can be asked
    without its payload, where there is such a form.
    """

    identity: bytes
    payload: bytes | None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of a batch whose rows were one array: what each one's Question has, one after the other.

    ``size``: the bytes of a row, in both. ``mark``: what each identity begins with.
    """

    mark: bytes
    identities: bytes
    payloads: bytes
    size: int

    def __len__(self) -> int:
        return len(self.payloads) // self.size

    def payloads_of(self, rows: Sequence[int]) -> list[bytes]:
        found: list[bytes] = np.frombuffer(self.payloads, f"V{self.size}")[rows].tolist()
        return found

    def __getitem__(self, row: int) -> Question:
        place = slice(row * self.size, (row + 1) * self.size)
        return Question(self.mark + self.identities[place], self.payloads[place])


@dataclass(frozen=True, slots=True)
class Options:
    """What the deployment decides about every predictor: where and how it computes, and with how many threads.

    ``owns_device``: whether this process may use a GPU, as its only worker or because several may share it.
    ``trusted_types``: what a .skops file may hold, beside what skops knows.
    ``max_image_pixels``: of an image file that is sent.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 1
    max_batch_size: int = 64
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    owns_device: bool = True
    trusted_types: tuple[str, ...] = ()
    max_image_pixels: int = 50_000_000


class Predictor(Protocol):
    """A loaded model. Immutable once loaded, so that one reference serves both the key and the computation.

    A predictor may also have these attributes:
    ``slots``: how many batches are computed at a time, each in a thread of its own. Without it: one.
    ``chunk``: most inputs of a batch. Without it: as many as the settings say.
    ``rows_on_loop``: the event loop calls ``predict``, with so many rows at most, which take well under a millisecond.
    ``audit(payload)``: the answer by another way than ``predict``, for audits. Any thread may call it at any time.
    ``tolerance``: how far an image's answer may be from an earlier one. ``example_tolerance``: the same of the example.
    ``cells``, ``unchanged_within(question)``: where ``key_kind`` is ``cells``, their number and the question's box.
    """

    fingerprint: bytes
    """32 bytes: the digest of all that can change an answer."""

    key_kind: Literal["exact", "cells", "digest"]
    """How identities are made; shown at /models."""

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """Query parameter name -> JSON schema (with ``example``) of each way to ask."""

    def parse(self, params: Mapping[str, Any], body: bytes, content_type: str | None) -> Question:
        """Validate and canonicalise one input; raises InvalidInput.

        ``content_type`` None: ``params`` come from a query string, every value a str.
        "application/json": ``params`` are a decoded JSON object's members.
        Any other: ``body`` is a raw upload of that type and ``params`` come from the query string.
        The caller has already taken out ``model``, ``top_k`` and ``domain``, which belong to no predictor.
        """

    # A table's predictor may have ``parse_table``, which does the same for rows of numbers.

    def predict(self, batch: Sequence[bytes]) -> Sequence[Outcome]:
        """One prediction per payload, in order, or InvalidInput in the place of a payload that is at fault.

        A thread calls it, one batch at a time. An answer is packed as the manifest's ``output`` and ``dtype`` say.
        Raises DeviceLost when nothing can be computed any more until the process is replaced.
        """


def parse_table(predictor: Predictor, table: NDArray[np.float64]) -> Questions | None:
    """The questions of rows of numbers in the order of the features; None where ``parse`` must see each row."""
    parse: Callable[[NDArray[np.float64]], Questions | None] = getattr(predictor, "parse_table", lambda table: None)
    return parse(table)


def compute(
    predict: Predict, payloads: Sequence[bytes], told: Callable[[BaseException], None] = lambda error: None
) -> list[Outcome]:
    """One outcome per payload; never raises. ``told``: of a call's error where no payload fails alone."""
    try:
        outcomes = predict(payloads)
    except BaseException as error:  # also SystemExit, because a model must not end its thread
        if len(payloads) == 1 or isinstance(error, DeviceLost):
            return [_failed(error)] * len(payloads)
        # One by one, so that only the row at fault fails.
        alone = [compute(predict, [payload])[0] for payload in payloads]
        if all(isinstance(outcome, bytes) for outcome in alone):
            told(error)
        return alone
    if len(outcomes) != len(payloads):
        return [_failed(ValueError(f"{len(outcomes)} predictions for {len(payloads)} inputs"))] * len(payloads)
    return [outcome if isinstance(outcome, bytes) else _failed(outcome) for outcome in outcomes]


def _failed(error: BaseException) -> Exception:
    """An error for clients stays. Any other becomes the cause of PredictionFailed, for the log."""
    if isinstance(error, ServiceError) and not isinstance(error, PredictionFailed):
        return error
    failed = PredictionFailed()
    failed.__cause__ = error
    return failed


def pack(vector: NDArray[Any]) -> Prediction:
    """``code | ndim u8 | shape u32… | little-endian values`` of a float32 or float64 array."""
    code = _CODES[vector.dtype.str[1:]]
    shape = vector.shape
    head = code + struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return head + vector.astype(_DTYPES[code], copy=False).tobytes()


def unpack(prediction: bytes) -> NDArray[Any]:
    """The array that ``pack`` was given, as a read-only view; raises ValueError when the bytes are not one."""
    try:
        dtype, ndim = _DTYPES[prediction[:1]], prediction[1]
        shape = struct.unpack_from(f"<{ndim}I", prediction, 2)
    except (KeyError, IndexError, struct.error):
        raise ValueError("not a packed prediction") from None
    values: NDArray[Any] = np.frombuffer(prediction, dtype, offset=2 + 4 * ndim).reshape(shape)
    return values


def answer_check(manifest: Manifest) -> Callable[[bytes], bool]:
    """Whether a value is an answer like the example's: packed, as long and of the same dtype, finite, in the range that
    ``output`` says, and with probabilities if the example has such. Each hit in Redis is checked, in 1.5 µs."""
    example, start, dtype = np.array(manifest.example.golden), manifest.output.probabilities_from, manifest.dtype
    head = pack(np.zeros(len(example), dtype))[: -np.dtype(dtype).itemsize * len(example)]
    ones, itemsize = np.ones(len(example), dtype), np.dtype(dtype).itemsize
    size, signs = len(head) + ones.nbytes, slice(len(head) + itemsize - 1, None, itemsize)  # the bytes that hold them
    is_said = _said_check(manifest)
    # Some estimators give an outlier no probability at all. So beside a class, the sum is not checked.
    are_alike = _are_probabilities if start == 0 else _are_shares
    rest = are_alike if start is not None and are_alike(example[start:]) else _are_finite

    def is_answer(value: bytes) -> bool:
        if len(value) != size or not value.startswith(head):
            return False
        vector = np.frombuffer(value, dtype, offset=len(head))
        # If no number is negative, none is larger than their sum. NaN and infinity would show in the sum.
        if start == 0 and abs(vector.dot(ones) - 1) <= ROUNDING and value[signs].isascii():
            return True
        return is_said(vector[:start]) and (start is None or rest(vector[start:]))

    return is_answer


def _said_check(manifest: Manifest) -> Callable[[NDArray[np.float64]], bool]:
    """The check of what ``predict`` says, which stands before the probabilities."""
    output = manifest.output
    if output.kind in ("numbers", "probabilities"):
        return _are_finite
    if output.kind == "integers":
        lowest, highest = -np.inf, np.inf
    else:
        lowest, highest = 0, 1 if output.kind == "labels" else len(manifest.classes) - 1
    return lambda said: (
        _are_finite(said) and bool(((lowest <= said) & (said <= highest) & (said == np.trunc(said))).all())
    )


def _are_probabilities(vector: NDArray[Any]) -> bool:
    return _are_shares(vector) and bool(abs(vector.sum(dtype=np.float64) - 1) <= SUM_TOLERANCE)


def _are_shares(vector: NDArray[Any]) -> bool:
    return bool(vector.min() >= -ROUNDING and vector.max() <= 1 + ROUNDING)


def _are_finite(vector: NDArray[Any]) -> bool:
    return bool(np.isfinite(vector).all())
