"""What a model is decides the body: classes, numbers, several outputs, labels; and the box in which nothing changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression
from sklearn.svm import SVC

from service.inference.manifest import Feature
from tests.inference.estimators import IRIS_X, IRIS_Y, NAMES
from tests.support.client import Response, fetch
from tests.support.server import Server, running_server
from training.register import register

pytestmark = pytest.mark.anyio

ROW = [5.1, 3.5, 1.4, 0.2]
TWO = np.column_stack([IRIS_Y > 0, IRIS_Y > 1]).astype(int)
MODELS: dict[str, Any] = {
    "number": RandomForestRegressor(5, random_state=0).fit(IRIS_X, IRIS_X @ [1.0, 2.0, 3.0, 4.0]),
    "several": LinearRegression().fit(IRIS_X, IRIS_X[:, :2] + 1),
    "labels": RandomForestClassifier(5, random_state=0).fit(IRIS_X, TWO),
    "cluster": KMeans(3, n_init=1, random_state=0).fit(IRIS_X),
    "class": SVC().fit(IRIS_X, np.array(["x", "y", "z"])[IRIS_Y]),
    "forest": RandomForestClassifier(20, random_state=0).fit(IRIS_X, IRIS_Y),
}
FEATURES = [Feature(name=name, minimum=0, maximum=10) for name in NAMES]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("outputs")
    for name, model in MODELS.items():
        outputs = ("left", "right") if name == "several" else ()
        register(model, name=name, models_dir=directory / "models", features=FEATURES, outputs=outputs)
    with running_server(directory, models_dir=directory / "models") as server:
        yield server


async def ask(server: Server, model: str, row: list[float] = ROW, **views: str) -> Response:
    query = urlencode(dict(zip(NAMES, row, strict=True)) | views)
    return await fetch(server.address, f"/models/{model}/predict?{query}")


async def test_each_kind_of_model_says_what_its_own_predict_says(server: Server) -> None:
    said = {name: json.loads((await ask(server, name)).body) for name in MODELS}
    own = {name: model.predict([ROW])[0] for name, model in MODELS.items()}
    assert said["number"]["prediction"] == own["number"]
    assert said["several"]["prediction"] == dict(zip(("left", "right"), own["several"].tolist(), strict=True))
    assert said["labels"]["prediction"] == own["labels"].tolist()
    assert said["cluster"]["prediction"] == int(own["cluster"])
    assert (said["class"]["prediction"], said["class"]["label"]) == ("x", "x")
    for name in ("number", "several", "labels", "cluster"):
        assert said[name].keys() == {"model", "version", "prediction"}
    assert "probabilities" not in said["class"]
    assert said["forest"]["probabilities"] == {"0": 1.0, "1": 0.0, "2": 0.0}


async def test_a_hit_a_batch_and_v2_say_the_same(server: Server) -> None:
    for name in MODELS:
        first = await ask(server, name)
        assert (await ask(server, name)).body == first.body
        batch = json.dumps({"model": name, "inputs": [dict(zip(NAMES, ROW, strict=True))] * 2}).encode()
        many = await fetch(server.address, "/predict_batch", "POST", {"Content-Type": "application/json"}, batch)
        assert json.loads(many.body)["results"] == [json.loads(first.body)] * 2
    kinds = {"number": "FP64", "several": "FP64", "labels": "INT64", "cluster": "INT64", "class": "BYTES"}
    request = json.dumps({"inputs": [{"name": "input", "shape": [1, 4], "datatype": "FP64", "data": ROW}]}).encode()
    for name, datatype in kinds.items():
        answer = await fetch(server.address, f"/v2/models/{name}/infer", "POST", {}, request)
        *_, said = json.loads(answer.body)["outputs"]
        assert (said["name"], said["datatype"]) == ("prediction", datatype)
        expected = MODELS[name].predict([ROW]).ravel().tolist()
        assert said["data"] == expected
        described = json.loads((await fetch(server.address, f"/v2/models/{name}")).body)["outputs"][-1]
        assert described["datatype"] == datatype
        assert described["shape"][1] == len(expected)


async def test_top_k_is_of_models_with_classes_alone(server: Server) -> None:
    for name in ("number", "several", "labels", "cluster"):
        refused = await ask(server, name, top_k="1")
        assert (refused.status, json.loads(refused.body)["parameter"]) == (422, "top_k")


async def test_the_domain_is_a_rendering_and_a_box_with_one_answer(server: Server) -> None:
    plain = await ask(server, "forest")
    shown = await ask(server, "forest", domain="true")
    assert shown.hit, "one key for both"
    document = json.loads(shown.body)
    box = document.pop("unchanged_within")
    assert document == json.loads(plain.body)
    assert list(box) == list(NAMES)
    for number, (name, value) in enumerate(zip(NAMES, ROW, strict=True)):
        low, high = box[name]
        assert (low is None or low <= value) and (high is None or value <= high)
        for end, beyond in ((low, -np.inf), (high, np.inf)):
            if end is None:
                continue
            inside, outside = list(ROW), list(ROW)
            inside[number], outside[number] = end, float(np.nextafter(end, beyond))
            same = await ask(server, "forest", inside, domain="true")
            assert same.hit
            assert same.body == shown.body
            assert json.loads((await ask(server, "forest", outside, domain="true")).body)["unchanged_within"] != box
    assert (await ask(server, "forest", domain="false")).body == plain.body


@pytest.mark.parametrize(
    ("model", "value"), [("forest", "yes"), ("forest", "1"), ("class", "true"), ("class", "false")]
)
async def test_a_domain_that_there_is_not_is_refused(server: Server, model: str, value: str) -> None:
    refused = await ask(server, model, domain=value)
    assert (refused.status, json.loads(refused.body)["parameter"]) == (422, "domain")


async def test_the_description_says_which_models_have_classes_and_cells(server: Server) -> None:
    paths = json.loads((await fetch(server.address, "/openapi.json")).body)["paths"]
    views = {
        name: {parameter["name"] for parameter in paths[f"/models/{name}/predict"]["get"]["parameters"]} - set(NAMES)
        for name in MODELS
    }
    assert views == {
        "number": {"domain"},
        "several": set(),
        "labels": {"domain"},
        "cluster": set(),
        "class": {"top_k"},
        "forest": {"top_k", "domain"},
    }
    listed = json.loads((await fetch(server.address, "/models/labels")).body)
    assert listed["output"] == {"kind": "labels", "names": ["output_1", "output_2"], "rows_per_call": 16}
