"""The Open Inference Protocol's objects, as its clients read them and as OpenAPI describes them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from service.http.schemas import Exact, problems
from service.openinference.tensors import MAX_DIMENSIONS, MAX_TENSORS

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


class IndexRequest(BaseModel):
    ready: bool | None = None


class IndexedModel(BaseModel):
    name: str
    version: str
    state: Literal["READY"] = "READY"
    reason: str = ""


class InputParameters(BaseModel):
    binary_data_size: Count | None = None


class InputTensor(TensorMetadata):
    data: list[Any] | None = None
    parameters: InputParameters | None = None


class OutputParameters(BaseModel):
    binary_data: bool | None = None
    classification: Count | None = None


class RequestedOutput(BaseModel):
    name: str
    parameters: OutputParameters | None = None


class RequestParameters(BaseModel):
    binary_data_output: bool | None = None


class InferRequest(BaseModel):
    id: str | None = None
    inputs: Annotated[list[InputTensor], Field(min_length=1, max_length=MAX_TENSORS)]
    outputs: Annotated[list[RequestedOutput], Field(max_length=MAX_TENSORS)] | None = None
    parameters: RequestParameters | None = None


class OutputTensor(TensorMetadata):
    data: list[Any]


class InferResponse(BaseModel):
    model_name: str
    model_version: str
    id: str = ""
    outputs: Annotated[list[OutputTensor], Field(min_length=1)]


errors = partial(problems, schema=V2Error.__name__, media_type="application/json")
