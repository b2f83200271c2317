"""What the prediction routes answer with, and errors, as OpenAPI describes them. Answers are rendered by render.py."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from service import errors

Schema = dict[str, Any]
Responses = dict[int | str, Schema]
"""Status -> what OpenAPI says of it, as FastAPI takes ``responses``."""

Share = Annotated[float, Field(ge=0, le=1)]
Interval = Annotated[list[float | None], Field(min_length=2, max_length=2)]
"""Of a tuple FastAPI would make what OpenAPI 3.1 and later do not allow."""

PREDICTION = "A class's value, a number, an object of several outputs, or a list of 0 and 1 per label."


class Exact(BaseModel, extra="forbid"):
    """An object with no other members than these."""


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    parameter: str = ""


class Prediction(Exact):
    model: str
    version: Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
    prediction: Annotated[str | float | dict[str, float] | list[int], Field(description=PREDICTION)]
    label: str = ""
    probabilities: dict[str, Share] = {}
    unchanged_within: dict[str, Interval | None] = {}


class FailedRow(Exact):
    error: Problem


class Results(Exact):
    results: Annotated[list[Prediction | FailedRow], Field(min_length=1)]


def problems(*statuses: int, schema: str = Problem.__name__, media_type: str = "application/problem+json") -> Responses:
    """Errors of an operation. FastAPI would give each the media type of the answer."""
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    titles: dict[int, list[str]] = {status: [] for status in statuses}
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.ServiceError) and error.status in titles:
            titles[error.status].append(error.title)
    return {status: {"description": "; ".join(said), "content": content} for status, said in titles.items()}
