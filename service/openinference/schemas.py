"""The Open Inference Protocol's objects, as its clients read them and as OpenAPI describes them."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PositiveInt, SkipValidation, model_validator

from service.errors import NotSupported
from service.http.schemas import Exact, problems
from service.large_json import LargeArray

MAX_TENSORS = 1024
MAX_DIMENSIONS = 8

Count = Annotated[int, Field(ge=0)]
Shape = Annotated[list[int], Field(min_length=1, max_length=MAX_DIMENSIONS)]


class V2Error(Exact):
    error: str


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class Health(BaseModel):
    live: bool
    ready: bool


class ModelReadiness(BaseModel):
    name: str
    ready: bool


class TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: Shape


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: Annotated[list[TensorMetadata], Field(min_length=1)]
    outputs: Annotated[list[TensorMetadata], Field(min_length=1)]
    properties: dict[str, str]


class Duration(BaseModel):
    count: Count
    ns: Count


class ModelStatistics(BaseModel):
    name: str
    version: str
    last_inference: Count
    inference_count: Count
    execution_count: Count
    inference_stats: dict[str, Duration]
    batch_stats: list[Any]


class Statistics(BaseModel):
    model_stats: list[ModelStatistics]


class IndexedModel(BaseModel):
    name: str
    version: str
    state: Literal["READY"] = "READY"
    reason: str = ""


class IndexRequest(BaseModel, strict=True):
    ready: bool | None = None


class Parameters(BaseModel, strict=True):
    """Of an input, of an output or of the request. Unknown ones, and those of another place, are passed over."""

    @model_validator(mode="before")
    @classmethod
    def _check(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("shared_memory_region") is not None:
            raise NotSupported("Shared memory is not supported: send the tensor in the body.")
        return given


class InputParameters(Parameters):
    binary_data_size: Count | None = None


class OutputParameters(Parameters):
    """``classification``: so many of the most probable classes."""

    binary_data: bool | None = None
    classification: Count | None = None


class RequestParameters(Parameters):
    binary_data_output: bool | None = None


def _as_list(items: Any) -> Any:
    """As many as are needed to see that there are too many."""
    return list(islice(items, MAX_TENSORS + 1)) if isinstance(items, LargeArray) else items


AS_LIST = BeforeValidator(_as_list)


class InputTensor(TensorMetadata, strict=True):
    shape: Annotated[list[PositiveInt], Field(min_length=1, max_length=MAX_DIMENSIONS, fail_fast=True)]
    data: SkipValidation[list[Any] | None] = None  # tensors.py checks them, since they may be a LargeArray
    parameters: InputParameters | None = None


class RequestedOutput(BaseModel, strict=True):
    name: str
    parameters: OutputParameters | None = None


class InferRequest(BaseModel, strict=True):
    id: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MAX_TENSORS, fail_fast=True), AS_LIST]
    outputs: Annotated[list[RequestedOutput], Field(max_length=MAX_TENSORS, fail_fast=True), AS_LIST] | None = None
    parameters: RequestParameters | None = None


class OutputTensor(TensorMetadata):
    data: list[Any]


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str = ""
    outputs: Annotated[list[OutputTensor], Field(min_length=1)]


errors = partial(problems, schema=V2Error.__name__, media_type="application/json")
