"""*Try it out* in /docs works as it is prefilled, on every operation; and the operations there are those served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from service.app import HOT, app
from service.openinference.routes import UNSUPPORTED
from tests.support.server import ADMIN_TOKEN, Server, running_server

Prefilled = tuple[str, str, dict[str, Any], Any]
"""Method, path, query, JSON body or None."""

NOT_DESCRIBED = {"/", "/v2/", "/docs/assets/{name}", "/page/{name}", *(f"/v2{path}" for path in UNSUPPORTED)}
"""Other names of what is described, what pages load, and what is answered with 501."""

NEEDS_A_KEY = "/admin/cache/{key}"
"""The one path with a parameter that only a user can fill in: /admin/key tells it."""


def as_prefilled(document: dict[str, Any]) -> Iterator[Prefilled]:
    """Each operation's request as Swagger UI fills it in: parameters and bodies that have an example or a default."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path != NEEDS_A_KEY:
                yield prefilled(method.upper(), path, operation)


def prefilled(method: str, path: str, operation: dict[str, Any]) -> Prefilled:
    query = {}
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        values = [parameter.get("example"), schema.get("example"), schema.get("default")]
        value = next((value for value in values if value is not None), None)
        assert value is not None or not parameter["required"], (method, path, parameter["name"])
        assert value is not None or "contentEncoding" not in schema, "Swagger UI cannot make one up in base64url"
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", value)
        elif value is not None:
            query[parameter["name"]] = value
    content = operation.get("requestBody", {}).get("content", {"": {}})
    first = next(iter(content))
    assert first in ("", "application/json"), "Swagger UI chooses the first"
    return method, path, query, content[first].get("example")


def all_are_answered(server: Server) -> set[str]:
    sent = set()
    operator = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    with httpx.Client(base_url=server.url, timeout=60, headers=operator) as client:
        for method, path, query, body in as_prefilled(client.get("/openapi.json").json()):
            answer = client.request(method, path, params=query, json=body)
            assert answer.status_code in (200, 202), (method, path, query, answer.text)
            sent.add(f"{method} {path}")
    return sent


def test_every_operation_works_as_prefilled(tables: Server) -> None:
    sent = all_are_answered(tables)
    assert {"GET /predict", "POST /predict_batch", "QUERY /models/iris/predict", "POST /v2/models/iris/infer"} <= sent
    assert {"GET /models/iris/predict", "POST /admin/purge", "GET /metrics", "GET /v2/models/iris/versions/1"} <= sent


@pytest.mark.contract
def test_every_operation_works_as_prefilled_beside_an_image_model(images: Server) -> None:
    assert {"GET /predict", "GET /models/digits/predict", "POST /models/digits/predict"} <= all_are_answered(images)


@pytest.mark.contract
def test_every_operation_works_as_prefilled_for_features_of_all_types(typed: Server) -> None:
    assert {"GET /predict", "GET /models/mood/predict", "POST /v2/models/mood/infer"} <= all_are_answered(typed)


def test_what_is_described_is_what_is_served(tables: Server) -> None:
    operator = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    paths = httpx.get(f"{tables.url}/openapi.json", headers=operator).json()["paths"]
    described = {
        (method.upper(), path.replace("/models/iris/predict", "/models/{name}/predict"))
        for path, operations in paths.items()
        for method in operations
    }
    operations = [route for route in iter_route_contexts(app.routes) if route.methods]
    served = {(method, route.path) for route in operations for method in route.methods or ()}
    hot = {(method, endpoint.route) for endpoint in HOT for method in endpoint.handlers if method != "HEAD"}
    assert described <= served | hot
    assert {path for _, path in (served | hot) - described} == NOT_DESCRIBED


def test_without_a_token_no_description_tells_of_admin(iris_models: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, models_dir=iris_models, admin_token="") as server:
        assert "/admin" not in httpx.get(f"{server.url}/openapi.json").text
