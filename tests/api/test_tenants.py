"""PREDICT_TENANT_HEADER: what one tenant has asked is neither found nor seen by another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from httpx import Response

from service.app import create_app
from service.config import Settings
from tests.support.server import ADMIN_TOKEN

ASKED = "/predict?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2"
ROW = [5.1, 3.5, 1.4, 0.2]
TENSOR = {"name": "input", "datatype": "FP64", "shape": [1, 4], "data": ROW}
TENANTS = ({"X-Tenant": "a"}, {"X-Tenant": "b"}, {})


@pytest.fixture
def client(iris_models: Path) -> Iterator[TestClient]:
    given = {"models_dir": iris_models, "tenant_header": "X-Tenant", "admin_token": ADMIN_TOKEN, "audit_share": 0}
    with TestClient(create_app(Settings.model_validate(given))) as client:
        yield client


def ask_in_each_form(client: TestClient, tenant: dict[str, str]) -> list[Response]:
    return [
        client.get(ASKED, headers=tenant),
        client.post("/predict_batch", json={"inputs": [ROW]}, headers=tenant),
        client.post("/v2/models/iris/infer", json={"inputs": [TENSOR]}, headers=tenant),
    ]


def test_each_tenant_has_its_own_answers_and_entity_tags_and_one_purge_reaches_all(client: TestClient) -> None:
    for _ in range(2):
        firsts = [ask_in_each_form(client, tenant) for tenant in TENANTS]
        for first, *others in firsts:
            assert "fwd=uri-miss" in first.headers["cache-status"]
            assert all("hit" in other.headers["cache-status"] for other in others)
        assert {first.headers["cache-control"].partition(",")[0] for first, *_ in firsts} == {"private"}
        tags = [first.headers["etag"] for first, *_ in firsts]
        assert len(set(tags)) == len(TENANTS)
        seen = [
            [client.get(ASKED, headers={**one, "If-None-Match": tag}).status_code for one in TENANTS] for tag in tags
        ]
        assert seen == [[304 if tag == own else 200 for own in tags] for tag in tags]
        operator = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        assert client.post("/admin/purge", json={"model": "iris"}, headers=operator).status_code == 200


def test_a_batch_alone_is_kept_apart_as_well(client: TestClient) -> None:
    told = [
        client.post("/predict_batch", json={"inputs": [ROW]}, headers=tenant).headers["cache-status"]
        for tenant in (*TENANTS, *TENANTS)
    ]
    assert ["computed=1" in one for one in told] == [True] * 3 + [False] * 3
