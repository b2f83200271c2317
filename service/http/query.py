"""Strict query strings: a parameter that could mean two things is an error."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from service.errors import InvalidInput

MAX_PARAMETERS = 1000


def parse_query(query: bytes) -> dict[str, str]:
    """An ``application/x-www-form-urlencoded`` query; raises InvalidInput on repeated or nameless parameters."""
    params: dict[str, str] = {}
    if not query:
        return params
    text = query.decode("latin-1")  # a character per byte
    coded = not text.isascii() or "%" in text or "+" in text
    pairs = text.split("&", MAX_PARAMETERS)
    if len(pairs) > MAX_PARAMETERS:
        raise InvalidInput(f"More than {MAX_PARAMETERS} parameters.")
    for pair in pairs:
        name, _, value = pair.partition("=")
        if coded:
            name, value = _decode(name), _decode(value)
        if not name:
            raise InvalidInput("A parameter without a name.")
        if name in params:
            raise InvalidInput(f"Parameter {name!r:.80} is repeated.", parameter=name)
        params[name] = value
    return params


def _decode(text: str) -> str:
    try:
        return unquote_to_bytes(text.replace("+", " ").encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise InvalidInput("A parameter is not UTF-8.") from None
