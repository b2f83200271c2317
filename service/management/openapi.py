"""The OpenAPI description. FastAPI makes it from the path operations and from routes that describe the hot ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from service import __version__
from service.http.openapi import predict_routes, query_parameters
from service.http.schemas import Problem, Schema
from service.management import admin
from service.openinference.infer import CURRENT
from service.openinference.openapi import infer_routes
from service.openinference.schemas import V2Error
from service.runtime import Runtime

TITLE = "Cached prediction service"
OPENAPI = "3.2.0"
"""The first version that knows the method QUERY."""


def describe(routes: Sequence[BaseRoute], runtime: Runtime) -> dict[str, Any]:
    """Describe what this runtime serves now."""
    document = get_openapi(
        title=TITLE,
        version=__version__,
        description="Never computes the same answer twice.",
        openapi_version=OPENAPI,
        routes=[*_hot_routes(runtime), *routes],
    )
    paths = document["paths"]
    if admin.token(runtime.settings):
        paths["/admin/key"]["get"]["parameters"] = query_parameters(runtime, list(runtime.models.values()))
        purge = paths["/admin/purge"]["post"]["requestBody"]["content"]["application/json"]
        purge["example"] = {"model": next(iter(runtime.models), "")}
    else:
        document["paths"] = paths = {path: item for path, item in paths.items() if not path.startswith(admin.PREFIX)}
    for operation in (operation for item in paths.values() for operation in item.values()):
        _say_what_is_served(operation, runtime)
        if _NOT_OURS in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
    schemas = document["components"]["schemas"]
    schemas |= {model.__name__: model.model_json_schema() for model in (Problem, V2Error)}
    document["components"]["schemas"] = {name: schema for name, schema in schemas.items() if _NOT_OURS not in name}
    return document


_NOT_OURS = "ValidationError"
"""FastAPI adds an answer with this schema to each operation with parameters. Ours answer with problem documents."""


def _hot_routes(runtime: Runtime) -> Iterator[APIRoute]:
    if runtime.models:
        yield from predict_routes(runtime)
        yield from infer_routes(next(iter(runtime.models.values())))


def _say_what_is_served(operation: Schema, runtime: Runtime) -> None:
    """Add the served names or versions to each path parameter, the first one as its example."""
    versions = [CURRENT, *(model.version for model in runtime.models.values())]
    values = {"name": list(runtime.models), "version": versions}
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path" and (known := values.get(parameter["name"])):
            parameter["schema"] |= {"enum": known, "example": known[0]}
