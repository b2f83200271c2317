"""JSON bodies: objects only, and none that costs far more to hold than to send."""

from __future__ import annotations

from typing import Any

import orjson

from service.errors import MalformedRequest

MAX_CONTAINERS = 500_000
MAX_VALUES = 5_000_000
"""More than any batch that has a use. Eleven million empty arrays are 32 MB to send and a gigabyte to hold."""


def load_object(body: bytes) -> dict[str, Any]:
    """The members of a JSON object; raises MalformedRequest."""
    if len(body) > MAX_CONTAINERS and (
        body.count(b"[") + body.count(b"{") > MAX_CONTAINERS or body.count(b",") > MAX_VALUES
    ):
        raise MalformedRequest("The body has too many JSON values.")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return document
