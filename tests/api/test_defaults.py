"""Which model is asked when none is named, and what a manifest may say instead of the settings."""

from __future__ import annotations

from pathlib import Path

import httpx
from sklearn.naive_bayes import GaussianNB

from tests.inference.estimators import IRIS_X, IRIS_Y
from tests.support.server import running_server
from training import register

MODEL = GaussianNB().fit(IRIS_X[:, :1], IRIS_Y)


def test_the_only_model_is_the_default_one_with_its_own_lifetime_batches_and_lease(tmp_path: Path) -> None:
    details = {"ttl_seconds": 40, "max_batch_size": 7, "lease": "always"}
    register(MODEL, name="own", models_dir=tmp_path, features=[{"name": "x"}], **details)
    with running_server(tmp_path / "server", models_dir=tmp_path, lease="never") as server:
        answer = httpx.get(server.url + "/predict?x=1")
        assert answer.json()["model"] == "own"
        assert 36 <= int(answer.headers["cache-control"].partition("max-age=")[2]) <= 40
        assert httpx.get(server.url + "/models/own").json()["lease"] is True
        config = httpx.get(server.url + "/v2/models/own/config").json()
        assert config["dynamic_batching"] == {"preferred_batch_size": [7]}


def test_of_several_models_one_is_named_by_the_request_or_by_the_operator(tmp_path: Path) -> None:
    for name in ("one", "other"):
        register(MODEL, name=name, models_dir=tmp_path, features=[{"name": "x"}])
    with running_server(tmp_path / "server", models_dir=tmp_path) as server:
        refused = httpx.get(server.url + "/predict?x=1")
        assert refused.status_code == 404
        assert "Name a model" in refused.json()["detail"]
        assert httpx.get(server.url + "/predict?x=1&model=one").json()["model"] == "one"
    with running_server(tmp_path / "server", models_dir=tmp_path, default_model="other") as server:
        assert httpx.get(server.url + "/predict?x=1").json()["model"] == "other"
