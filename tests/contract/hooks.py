"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): what an image is, which a schema cannot say, it is told here."""

from __future__ import annotations

import base64
from typing import Any

import schemathesis
from hypothesis import strategies as st

LARGEST_ARRAY = 100


@schemathesis.hook
def before_load_schema(context: Any, raw_schema: dict[str, Any]) -> None:
    """Images are those of the examples; of a GET's forms there is one; arrays of thousands are left out."""
    for path in raw_schema["paths"].values():
        for operation in path.values():
            parameters = {parameter["name"]: parameter for parameter in operation.get("parameters", ())}
            if "image" in parameters and "model" not in parameters:
                operation["parameters"].remove(parameters["sha256"])
                parameters["image"]["required"] = True
                _take_example(parameters["image"]["schema"])
            content = operation.get("requestBody", {}).get("content", {})
            content.pop("multipart/form-data", None)  # whose files would be random texts
            for media in content.values():
                _restrict_forms(media["schema"])


def _restrict_forms(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [form for form in schema.get("anyOf", ()) if not _is_large(form["properties"].get("input", {}))]
    for form in schema["anyOf"]:
        if "image" in form["properties"]:
            _take_example(form["properties"]["image"])
    if not schema["anyOf"]:
        del schema["anyOf"]


def _take_example(schema: dict[str, Any]) -> None:
    schema["enum"] = [schema["example"]]
    file = st.just(base64.urlsafe_b64decode(schema["example"] + "=="))
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff"):
        schemathesis.openapi.media_type(f"image/{kind}", file)


def _is_large(schema: dict[str, Any]) -> bool:
    size = 1
    while schema.get("type") == "array" and "items" in schema:
        size *= schema.get("maxItems", 1)
        schema = schema["items"]
    return size > LARGEST_ARRAY
