"""A pipeline on a DataFrame and a classifier of texts, registered from a CSV file: asked in every way, they say what
they say themselves."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import httpx
import orjson
import pandas as pd
import pytest

from tests.support import own_models
from tests.support.server import running_server

TITANIC, PASSENGERS = own_models.titanic()
MOOD, _ = own_models.mood()
FEATURES = ["class", "sex", "age (years)", "länge", "embarked", "alone"]
ROW = {"class": 1, "sex": "female", "age (years)": 30.5, "länge": 1.75, "embarked": "C", "alone": True}
GAPS = {"class": 3, "sex": "male", "age (years)": None, "länge": None, "embarked": None, "alone": False}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("own")
    own_models.register_all(directory)
    with (
        running_server(directory, models_dir=directory / "models") as server,
        httpx.Client(base_url=server.url, timeout=30) as client,
    ):
        yield client


def own(row: dict[str, Any]) -> list[float]:
    """The file's own answer: the names, which it passes over, are there."""
    fitted = PASSENGERS.drop(columns="survived")
    table = pd.DataFrame([{"name": "anybody"} | row])[fitted.columns].astype(fitted.dtypes)
    probabilities: list[float] = TITANIC.predict_proba(table)[0].tolist()
    return probabilities


def probabilities(answer: Any) -> list[float]:
    return [answer["probabilities"][label] for label in ("0", "1")]


def texts(row: dict[str, Any]) -> dict[str, str]:
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in row.items()
        if value is not None
    }


def tensors(row: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = dict(zip(FEATURES, ["INT64", "BYTES", "FP64", "FP64", "BYTES", "BOOL"], strict=True))
    return [
        {"name": name, "datatype": kinds[name], "shape": [1, 1], "data": [value]}
        for name, value in row.items()
        if value is not None
    ]


@pytest.mark.parametrize("row", [ROW, GAPS], ids=["whole", "with gaps"])
def test_a_row_has_one_answer_whichever_way_it_comes_and_it_is_the_files_own(
    client: httpx.Client, row: dict[str, Any]
) -> None:
    first = client.get(f"/predict?model=titanic&{urlencode(texts(row))}")
    assert first.status_code == 200, first.text
    assert probabilities(first.json()) == pytest.approx(own(row), rel=0, abs=1e-12)
    for again in (
        client.get("/models/titanic/predict?" + urlencode({name: texts(row).get(name, "") for name in FEATURES})),
        client.post("/predict", json={"model": "titanic", **row}),
        client.post("/predict", json={"model": "titanic", "input": list(row.values())}),
    ):
        assert again.json() == first.json()
        assert "hit" in again.headers["cache-status"]
    batch = client.post("/predict_batch", json={"model": "titanic", "inputs": [row, list(row.values())]})
    assert batch.json()["results"] == [first.json()] * 2
    inferred = client.post("/v2/models/titanic/infer", content=orjson.dumps({"inputs": tensors(row)}))
    assert inferred.json()["outputs"][0]["data"] == probabilities(first.json())
    assert "hit" in inferred.headers["cache-status"]


@pytest.mark.parametrize("text", ["a good film", "", "null", "très\nmauvais & <b>", "日本語" * 1000])
def test_a_text_is_asked_as_it_is(client: httpx.Client, text: str) -> None:
    first = client.get("/predict", params={"model": "mood", "comment": text})
    assert first.status_code == 200, first.text
    expected = dict(zip(MOOD.classes_, MOOD.predict_proba([text])[0], strict=True))
    assert first.json()["probabilities"] == pytest.approx(expected, rel=0, abs=1e-12)
    raw = text.encode()
    document = {
        "inputs": [
            {"name": "comment", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 4 + len(raw)}}
        ]
    }
    head = orjson.dumps(document)
    binary = client.post(
        "/v2/models/mood/infer",
        content=head + struct.pack("<I", len(raw)) + raw,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert binary.json()["outputs"][1]["data"] == [first.json()["label"]]
    assert "hit" in binary.headers["cache-status"]
    assert client.post("/predict", json={"model": "mood", "comment": text}).json() == first.json()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sex": "femal"}, "Parameter sex must be one of female, male; did you mean female?"),
        ({"class": 4}, "Parameter class must be one of 1, 2, 3."),
        ({"sex": None}, "must be one of"),
        ({"alone": "maybe"}, "true or false"),
        ({"name": "Passenger 1"}, "Unknown parameter 'name'"),
    ],
)
def test_what_the_model_does_not_know_is_the_clients_error_and_named(
    client: httpx.Client, change: dict[str, Any], said: str
) -> None:
    refused = client.post("/predict", json={"model": "titanic"} | ROW | change)
    assert refused.status_code == 422
    assert said in refused.json()["detail"]
    assert refused.json()["parameter"] == next(iter(change))


def test_a_value_that_an_encoder_passes_over_is_no_error(client: httpx.Client) -> None:
    row = ROW | {"embarked": "Hamburg"}
    assert probabilities(client.post("/predict", json={"model": "titanic"} | row).json()) == pytest.approx(
        own(row), rel=0, abs=1e-12
    )


def test_models_and_openapi_say_types_values_what_was_seen_and_what_may_be_missing(client: httpx.Client) -> None:
    described = client.get("/models/titanic").json()
    schemas = described["parameters"]
    assert list(schemas) == FEATURES
    assert schemas["sex"] == {"type": "string", "enum": ["female", "male"], "example": described["example"]["sex"]}
    assert schemas["class"]["enum"] == [1, 2, 3]
    assert schemas["alone"]["type"] == "boolean"
    assert schemas["embarked"]["type"] == ["string", "null"]
    assert schemas["age (years)"]["type"] == ["number", "null"]
    assert schemas["länge"]["x-seen"] == [PASSENGERS["länge"].min(), PASSENGERS["länge"].max()]
    assert "minimum" not in schemas["länge"]
    assert client.get("/predict", params={"model": "titanic", **texts(ROW), "länge": 9}).status_code == 200
    document = client.get("/openapi.json").json()
    parameters = {p["name"]: p for p in document["paths"]["/models/titanic/predict"]["get"]["parameters"]}
    assert parameters["class"]["required"] is True
    assert parameters["embarked"]["required"] is False


def test_v2_describes_a_tensor_for_each_feature(client: httpx.Client) -> None:
    described = client.get("/v2/models/titanic").json()["inputs"]
    assert {tensor["name"]: tensor["datatype"] for tensor in described} == {
        t["name"]: t["datatype"] for t in tensors(ROW)
    }
    refused = client.post("/v2/models/titanic/infer", content=orjson.dumps({"inputs": tensors(ROW)[1:]}))
    assert refused.status_code == 400
    assert "'class'" in refused.json()["error"]
