"""The pieces of an OpenAPI document that its parts have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from service.http.predict import JSON

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def strict(properties: Schema, required: Sequence[str] = ()) -> Schema:
    """An object with no other members than these."""
    return record(properties, required) | {"additionalProperties": False}


def record(properties: Schema, required: Sequence[str] = ()) -> Schema:
    """An object that may have other members, too."""
    schema: Schema = {"type": "object", "properties": properties}
    return schema | {"required": list(required)} if required else schema


def nullable(schema: Schema) -> Schema:
    return schema | {"type": [schema["type"], "null"]}


def optional(properties: Schema) -> Schema:
    """A record that may be null, as may each of its members: null means absent."""
    return nullable(record({name: nullable(schema) for name, schema in properties.items()}))


def array(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": items} | bounds


def choice(values: Sequence[str]) -> Schema:
    return {"type": "string", "enum": list(values)}


def parameter(name: str, where: str, schema: Schema, required: bool = False) -> Schema:
    return {"name": name, "in": where, "required": required, "schema": schema}


def body(content: Mapping[str, Schema], required: bool = True) -> Schema:
    """``content``: media type -> media type object."""
    return {"required": required, "content": dict(content)}


def response(text: str, schema: Schema, media_types: Sequence[str] = (JSON,), headers: Schema | None = None) -> Schema:
    described: Schema = {"description": text, "content": {name: {"schema": schema} for name in media_types}}
    return described | {"headers": headers} if headers else described


def operation(
    summary: str,
    responses: Schema,
    *,
    parameters: Sequence[Schema] = (),
    request_body: Schema | None = None,
) -> Schema:
    described: Schema = {"summary": summary, "parameters": list(parameters), "responses": responses}
    return described | {"requestBody": request_body} if request_body else described
