"""Query strings, strictly: what a prediction is asked for must not be guessed."""

from __future__ import annotations

from urllib.parse import unquote_to_bytes

from service.errors import InvalidInput

MAX_PARAMETERS = 1000


def parse_query(query: bytes) -> dict[str, str]:
    """An ``application/x-www-form-urlencoded`` query; raises InvalidInput on repeated or nameless parameters."""
    params: dict[str, str] = {}
    if not query:
        return params
    pairs = query.split(b"&", MAX_PARAMETERS)
    if len(pairs) > MAX_PARAMETERS:
        raise InvalidInput(f"More than {MAX_PARAMETERS} parameters.")
    for pair in pairs:
        name_bytes, _, value_bytes = pair.partition(b"=")
        name = _decode(name_bytes)
        if not name:
            raise InvalidInput("A parameter without a name.")
        if name in params:
            raise InvalidInput(f"Parameter {name!r:.80} is repeated.", parameter=name)
        params[name] = _decode(value_bytes)
    return params


def _decode(text: bytes) -> str:
    if b"%" in text or b"+" in text:
        text = unquote_to_bytes(text.replace(b"+", b" "))
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise InvalidInput("A parameter is not UTF-8.") from None
