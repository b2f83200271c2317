"""Every example in /openapi.json is sent, and answered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from tests.support.server import Server

Example = tuple[str, str, Any]
"""Method, target, JSON body or None."""


def every_example(document: dict[str, Any]) -> Iterator[Example]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for target in targets(path, operation.get("parameters", [])):
                if "requestBody" not in operation or "example" in content:
                    yield method.upper(), target, content.get("example")


def targets(path: str, parameters: list[dict[str, Any]]) -> Iterator[str]:
    """The path with the first value of each of its parameters, and a query of all examples; of images, each alone."""
    query: dict[str, Any] = {}
    for parameter in parameters:
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", parameter["schema"]["enum"][0])
        elif "example" in parameter["schema"]:
            query[parameter["name"]] = parameter["schema"]["example"]
    images = [name for name in ("image", "sha256") if name in query]
    features = {name: value for name, value in query.items() if name not in images}
    if features or not images:
        yield f"{path}?{urlencode(features)}" if features else path
    for name in images:
        yield f"{path}?{urlencode({name: query[name]})}"


def all_are_answered(server: Server) -> set[str]:
    sent = set()
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for method, target, body in every_example(client.get("/openapi.json").json()):
            answer = client.request(method, target, json=body)
            assert answer.status_code == 200, (method, target, answer.text)
            sent.add(f"{method} {target.partition('?')[0]}")
    return sent


def test_every_example_is_answered(tables: Server) -> None:
    sent = all_are_answered(tables)
    assert {"GET /predict", "POST /predict_batch", "QUERY /models/iris/predict", "POST /v2/models/iris/infer"} <= sent


@pytest.mark.contract
def test_every_example_of_an_image_model_is_answered(images: Server) -> None:
    assert {"GET /models/digits/predict", "POST /models/digits/predict"} <= all_are_answered(images)
