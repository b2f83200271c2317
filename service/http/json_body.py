"""JSON bodies: objects only, and none that takes far more memory than it has bytes."""

from __future__ import annotations

from typing import Any

import orjson
from typing_extensions import TypeIs

from service.errors import MalformedRequest
from service.large_json import PIECE_BYTES, LargeArray, load_large


def load_object(body: bytes) -> dict[str, Any]:
    """The members of a JSON object; raises MalformedRequest. Arrays of a large body may be LargeArray."""
    try:
        document = orjson.loads(body) if len(body) <= PIECE_BYTES else load_large(body)
    except orjson.JSONDecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from None
    if not isinstance(document, dict):
        raise MalformedRequest("The body must be a JSON object.")
    return document


def is_array(value: object) -> TypeIs[list[Any] | LargeArray]:
    return isinstance(value, list | LargeArray)
