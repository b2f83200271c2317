"""``/admin``: not there without a token, closed without the right one, and then it does what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.server import ADMIN_TOKEN, Server, running_server

ASK = {"sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}
OPERATOR = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture(scope="module")
def server(iris_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("admin"), models_dir=iris_models, redis_url="embedded") as server:
        yield server


def status_of_cache(client: httpx.Client) -> str:
    return client.get("/predict", params=ASK).headers["cache-status"]


def test_without_a_configured_token_there_is_no_admin(iris_models: Path, tmp_path: Path) -> None:
    with (
        running_server(tmp_path, models_dir=iris_models, admin_token="") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        nothing = client.get("/admin/nothing", headers=OPERATOR)
        for path in ("/admin/purge", "/admin/key", "/admin/cache/stats", "/admin/cache/iris:0123456789ab:" + "k" * 43):
            for method in ("GET", "POST", "DELETE", "OPTIONS", "HEAD"):
                answer = client.request(method, path, headers=OPERATOR)
                assert (answer.status_code, "allow" in answer.headers) == (404, False), (method, path)
                assert answer.content == (b"" if method == "HEAD" else nothing.content)


def test_the_name_of_the_scheme_has_no_case(server: Server) -> None:
    with httpx.Client(base_url=server.url, headers={"Authorization": f"bearer {ADMIN_TOKEN}"}) as client:
        assert client.get("/admin/cache/stats").status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": ADMIN_TOKEN}])
def test_without_the_token_nothing_is_told_or_done(server: Server, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=server.url, headers=headers) as client:
        refused = client.get("/admin/cache/stats")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert client.post("/admin/purge", json={"model": "iris"}).status_code == 401


def test_a_purged_model_is_computed_anew_even_where_a_worker_had_it_ready(server: Server) -> None:
    with httpx.Client(base_url=server.url, headers={}) as client:
        for _ in range(4):
            last = status_of_cache(client)
        assert "detail=L1" in last
        purged = client.post("/admin/purge", json={"model": "iris"}, headers=OPERATOR)
        told = purged.json()
        within = told.pop("complete_within_seconds")
        assert told == {"purged": "iris", "workers": 1, "acknowledged": 1}
        assert purged.status_code == (202 if within else 200)
        assert "fwd=uri-miss" in status_of_cache(client)


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"model": null}', '{"model": "iris", "all": true}'])
def test_a_purge_names_one_model(server: Server, body: str) -> None:
    refused = httpx.post(f"{server.url}/admin/purge", content=body, headers=OPERATOR)
    assert 400 <= refused.status_code < 500


def test_one_answer_can_be_shown_and_forgotten(server: Server) -> None:
    with httpx.Client(base_url=server.url) as client:
        status_of_cache(client)
        key = client.get("/admin/key", params=ASK, headers=OPERATOR).json()["key"]
        shown = client.get(f"/admin/cache/{key}", headers=OPERATOR).json()
        assert shown["key"] == key
        assert key.startswith(f"iris:{client.get('/models/iris').json()['version']}:")
        assert 0 <= shown["age"] <= shown["ttl"] <= 300
        assert client.delete(f"/admin/cache/{key}", headers=OPERATOR).status_code == 204
        assert client.get(f"/admin/cache/{key}", headers=OPERATOR).status_code == 404
        assert "fwd=uri-miss" in status_of_cache(client)


def test_what_is_no_key_is_refused(server: Server) -> None:
    assert httpx.get(f"{server.url}/admin/cache/p1:g:iris", headers=OPERATOR).status_code == 422
