"""Large JSON, parsed piece by piece: to parse it at once would stop every other thread.

Large arrays and strings are parsed when they are read. An array knows its length before that. NumPy, which lets other
threads run, finds the brackets and commas outside strings; orjson parses and checks every piece.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import chain, pairwise
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import MalformedRequest

PIECE_BYTES = 256 * 2**10
"""orjson parses so much in a millisecond or two."""
MAX_STRING_BYTES = 16 * 2**20
"""The longest useful string is an image of 10 MiB in base64."""
MAX_MEMBERS = 10_000
MAX_DEPTH = 64
MAX_CONTAINERS = 500_000
MAX_VALUES = 5_000_000
"""More than any useful batch has. Eleven million empty arrays are 32 MB to send and a gigabyte to hold."""

_BLOCK = 2**18
_LONGEST_ESCAPE = len(r"\ud83d\ude00")
_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
_IS_MARK = _STEP != 0
_IS_MARK[_COMMA] = True
_NAME = re.compile(rb'[ \t\r\n]{0,1000}+("(?:[^"\\]|\\.){0,1000}+")[ \t\r\n]{0,1000}+:', re.S)


class LargeArray:
    """A JSON array whose elements are parsed as they are read. Its length is known from the start."""

    def __init__(self, document: _Document, bounds: NDArray[np.intp]) -> None:
        """``bounds``: the marks around the elements: the opening bracket, the commas and the closing bracket."""
        self._document, self._bounds = document, bounds

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.groups())

    def groups(self) -> Iterator[list[Any]]:
        """The elements in order, in groups that are parsed together. A large element is a group of its own."""
        document, bounds = self._document, self._bounds
        places = document.marks[bounds]
        start = 0
        while start < len(self):
            _let_others_run()
            end = max(start + 1, int(np.searchsorted(places, places[start] + PIECE_BYTES)) - 1)
            if end == start + 1:
                yield [
                    document.value(int(places[start]) + 1, int(places[end]), int(bounds[start]) + 1, int(bounds[end]))
                ]
            else:
                yield _loads(b"[%b]" % document.text[places[start] + 1 : places[end]])
            start = end


class LargeString:
    """A long JSON string, parsed as it is read: a file in base64, or a text of many escapes."""

    def __init__(self, text: memoryview) -> None:
        self._text = text

    def pieces(self) -> Iterator[str]:
        start = 0
        while start < len(self._text):
            end = self._end_of_piece(start + PIECE_BYTES)
            yield _loads(b'"%b"' % bytes(self._text[start:end]))
            start = end

    def text(self, most: int) -> str | None:
        """All at once; None for one that has more than ``most`` characters however they are written."""
        return None if len(self._text) > most * _LONGEST_ESCAPE else _loads(b'"%b"' % bytes(self._text))

    def _end_of_piece(self, wanted: int) -> int:
        """A place near ``wanted`` that cuts no character and no escape in two."""
        for end in range(wanted, wanted + 1000):
            if end >= len(self._text):
                return len(self._text)
            if self._text[end] & 0xC0 != 0x80 and _BACKSLASH not in self._text[end - _LONGEST_ESCAPE : end]:
                return end
        raise MalformedRequest("The body has a long string that is no file in base64.")


ARRAY = (list, LargeArray)
"""What an array may be."""


def load_large(text: bytes) -> Any:
    """The value, in which large arrays and strings are LargeArray and LargeString; raises MalformedRequest.

    Errors inside these are raised when they are read.
    """
    document = _Document(text)
    return document.value(0, len(text), 0, len(document.marks))


class _Document:
    """``marks``: the places of brackets and commas outside strings. ``_depth``: the open brackets behind each."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._bytes = np.frombuffer(text, np.uint8)
        found = list(_marks(self._bytes))
        self.marks = np.concatenate([marks for marks, _ in found])
        self._depth = np.concatenate([depth for _, depth in found])
        if self._depth[:-1].min(initial=1) < 1 or self._depth[-1:].any():
            raise _broken()

    def value(self, start: int, end: int, first: int, last: int) -> Any:
        """The value in ``text[start:end]``, which has the marks from ``first`` to ``last``."""
        if end - start <= PIECE_BYTES:
            return _loads(self.text[start:end])
        if first == last:
            return self._string(start, end)
        opening, closing = int(self.marks[first]), int(self.marks[last - 1])
        brackets = self.text[opening : opening + 1] + self.text[closing : closing + 1]
        if brackets not in (b"[]", b"{}") or not self._is_blank(start, opening) or not self._is_blank(closing + 1, end):
            raise _broken()
        if last - first == 2 and self._is_blank(opening + 1, closing):
            return _loads(brackets)
        bounds = self._bounds(first, last - 1)
        return LargeArray(self, bounds) if brackets == b"[]" else self._object(bounds)

    def _string(self, start: int, end: int) -> LargeString:
        opening, closing = self.text.find(b'"', start, end), self.text.rfind(b'"', start, end)
        if opening == closing or not self._is_blank(start, opening) or not self._is_blank(closing + 1, end):
            raise _broken()
        if closing - opening > MAX_STRING_BYTES:
            raise MalformedRequest(f"The body has a string of more than {MAX_STRING_BYTES:,} bytes.")
        return LargeString(memoryview(self.text)[opening + 1 : closing])

    def _is_blank(self, start: int, end: int) -> bool:
        """Whether there are only blanks. More blanks than a piece has bytes come only from an attacker: False."""
        return end - start <= PIECE_BYTES and not self.text[start:end].strip(b" \t\r\n")

    def _bounds(self, opening: int, closing: int) -> NDArray[np.intp]:
        """The marks around the elements of a container."""
        inside, level = self._depth[opening + 1 : closing], self._depth[opening]
        if closing == opening or inside.min(initial=level) < level:
            raise _broken()
        own = opening + 1 + np.flatnonzero(inside == level)
        return np.concatenate([[opening], own[self._bytes[self.marks[own]] == _COMMA], [closing]])

    def _object(self, bounds: NDArray[np.intp]) -> dict[str, Any]:
        if len(bounds) - 1 > MAX_MEMBERS:
            raise MalformedRequest(f"The body has an object of more than {MAX_MEMBERS:,} members.")
        members: dict[str, Any] = {}
        for before, after in pairwise(bounds.tolist()):
            start, end = int(self.marks[before]) + 1, int(self.marks[after])
            name = _NAME.match(self.text, start, end)
            if name is None:
                raise _broken()
            members[_loads(name[1])] = self.value(name.end(), end, before + 1, after)
        return members


def _marks(text: NDArray[np.uint8]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int8]]]:
    """Block by block: the places of brackets and commas outside strings, and the depth behind each."""
    within, backslashes, depth, containers, values = False, 0, 0, 0, 0
    for start in range(0, len(text), _BLOCK):
        block = text[start : start + _BLOCK]
        quotes = block == _QUOTE
        is_backslash = block == _BACKSLASH
        if backslashes or is_backslash.any():
            run = _run_lengths(is_backslash, backslashes)
            quotes &= np.concatenate([[backslashes], run[:-1]]) % 2 == 0
            backslashes = int(run[-1])
        inside = np.logical_xor.accumulate(quotes) ^ within
        within = bool(inside[-1])
        marks = np.flatnonzero(_IS_MARK[block] & ~inside)
        steps = _STEP[block[marks]]
        depths = depth + np.cumsum(steps, dtype=np.int32)
        depth = int(depths[-1]) if depths.size else depth
        containers += int(np.count_nonzero(steps == 1))
        values += int(np.count_nonzero(steps == 0))
        if containers > MAX_CONTAINERS or values > MAX_VALUES:
            raise MalformedRequest("The body has too many JSON values.")
        if depths.max(initial=0) > MAX_DEPTH or depths.min(initial=0) < 0:
            raise MalformedRequest("The body is nested too deeply, or not JSON.")
        yield (start + marks).astype(np.int32), depths.astype(np.int8)
        _let_others_run()
    if within:
        raise _broken()


def _run_lengths(are: NDArray[np.bool_], before: int) -> NDArray[np.intp]:
    """For each place, how many true values in a row end there. ``before``: how many end before the first place."""
    places = np.arange(len(are))
    return places - np.maximum.accumulate(np.where(are, -1 - before, places))


def _let_others_run() -> None:
    """Let a waiting thread take Python's lock. NumPy releases it, and takes it back before another thread wakes up.
    Without this sleep the event loop stood still for 50 ms."""
    time.sleep(0.0001)


def _loads(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise _broken() from None


def _broken() -> MalformedRequest:
    return MalformedRequest("The body is not JSON.")
