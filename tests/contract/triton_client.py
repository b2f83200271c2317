# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "tritonclient[http]==2.73.0", "geventhttpclient==2.6.1", "gevent==26.9.0", "greenlet==3.3.2", "numpy==2.4.6",
# ]
# ///
"""What a user of Triton's HTTP client does, in its defaults: ``triton_client.py HOST:PORT IMAGE_FILE``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

ROWS = np.array([[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]])
LABELS = [[b"setosa"], [b"virginica"]]


def tensor(name: str, values: Any, datatype: str, **how: bool) -> InferInput:
    made = InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, **how)
    return made


def it_is_live_and_ready(client: InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    for model in ("iris", "digits"):
        assert client.is_model_ready(model)
        assert client.is_model_ready(model, "1")
        assert not client.is_model_ready(model, "7")
    assert not client.is_model_ready("nobody")


def it_describes_itself_and_its_models(client: InferenceServerClient) -> None:
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    for model, shape in (("iris", [-1, 3]), ("digits", [-1, 10])):
        metadata = client.get_model_metadata(model)
        assert metadata["outputs"][0]["shape"] == shape
        assert client.get_model_config(model)["max_batch_size"] == 10_000
        assert client.get_model_metadata(model, metadata["versions"][0]) == metadata
    assert {model["name"] for model in client.get_model_repository_index()} == {"iris", "digits"}


def it_infers_in_its_defaults(client: InferenceServerClient) -> None:
    result = client.infer("iris", [tensor("input", ROWS, "FP64")], request_id="seven")
    assert result.as_numpy("label").tolist() == LABELS
    assert result.as_numpy("probabilities").dtype == np.float64
    assert result.get_response()["id"] == "seven"
    assert result.as_numpy("nothing") is None


def json_binary_and_compressed_bodies_are_the_same(client: InferenceServerClient) -> None:
    names = ("probabilities", "label", "prediction")
    expected = client.infer("iris", [tensor("input", ROWS, "FP64")])
    plain = [InferRequestedOutput(name, binary_data=False) for name in names]
    in_json = client.infer("iris", [tensor("input", ROWS, "FP64", binary_data=False)], outputs=plain)
    assert in_json.as_numpy("probabilities").tolist() == expected.as_numpy("probabilities").tolist()
    assert [[text.encode() for text in row] for row in in_json.as_numpy("label")] == LABELS
    for coding in ("gzip", "deflate"):
        result = client.infer(
            "iris",
            [tensor("input", ROWS, "FP64")],
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        for name in names:
            assert result.as_numpy(name).tolist() == expected.as_numpy(name).tolist()


def several_outputs_come_in_the_order_that_was_asked_for(client: InferenceServerClient) -> None:
    wanted = [
        InferRequestedOutput("label", binary_data=False),
        InferRequestedOutput("probabilities", class_count=1),
        InferRequestedOutput("prediction"),
    ]
    result = client.infer("iris", [tensor("input", ROWS.astype(np.float32), "FP32")], outputs=wanted)
    assert [item["name"] for item in result.get_response()["outputs"]] == ["label", "probabilities", "prediction"]
    assert result.as_numpy("prediction").tolist() == [[b"0"], [b"2"]]
    assert result.as_numpy("probabilities")[0, 0].endswith(b":0:setosa")


def a_tensor_per_feature_will_do(client: InferenceServerClient) -> None:
    names = ("sepal_length", "sepal_width", "petal_length", "petal_width")
    columns = [tensor(name, ROWS[:, [index]], "FP64") for index, name in enumerate(names)]
    assert client.infer("iris", columns).as_numpy("label").tolist() == LABELS


def images_are_files_or_arrays(client: InferenceServerClient) -> None:
    file = Path(sys.argv[2]).read_bytes()
    result = client.infer("digits", [tensor("image", np.array([[file], [file]], object), "BYTES")])
    assert result.as_numpy("probabilities").shape == (2, 10)
    assert result.as_numpy("probabilities").dtype == np.float32
    arrays = np.zeros((2, 3, 32, 32), np.float32)
    result = client.infer("digits", [tensor("input", arrays, "FP32")])
    assert np.allclose(result.as_numpy("probabilities").sum(axis=1), 1)


def requests_may_be_asynchronous(client: InferenceServerClient) -> None:
    waiting = [client.async_infer("iris", [tensor("input", ROWS, "FP64")]) for _ in range(20)]
    assert all(request.get_result().as_numpy("label").tolist() == LABELS for request in waiting)


def it_counts_hits(client: InferenceServerClient) -> None:
    for _ in range(2):
        client.infer("iris", [tensor("input", ROWS, "FP64")])
    (stats,) = client.get_inference_statistics("iris")["model_stats"]
    assert stats["inference_stats"]["cache_hit"]["count"] >= 2
    assert {model["name"] for model in client.get_inference_statistics()["model_stats"]} == {"iris", "digits"}


def errors_have_a_status_and_a_text(client: InferenceServerClient) -> None:
    good = tensor("input", ROWS, "FP64")
    fails("404", lambda: client.get_model_metadata("nobody"))
    fails("404", lambda: client.infer("nobody", [good]))
    fails("404", lambda: client.infer("iris", [good], model_version="7"))
    fails("400", lambda: client.infer("iris", [tensor("input", ROWS[:, :3], "FP64")]))
    fails("400", lambda: client.infer("digits", [good]))
    fails("400", lambda: client.infer("digits", [tensor("image", np.array([[b"no image"]], object), "BYTES")]))
    fails("400", lambda: client.infer("iris", [good], outputs=[InferRequestedOutput("logits")]))
    fails("501", lambda: client.load_model("iris"))
    fails("501", client.get_system_shared_memory_status)


def fails(status: str, ask: Callable[[], Any]) -> None:
    try:
        ask()
    except InferenceServerException as error:
        assert error.status() == status, error
        assert error.message()
        assert "exception occurred in the client" not in error.message()
    else:
        raise AssertionError(f"this should have been a {status}")


PROMISES = (
    it_is_live_and_ready,
    it_describes_itself_and_its_models,
    it_infers_in_its_defaults,
    json_binary_and_compressed_bodies_are_the_same,
    several_outputs_come_in_the_order_that_was_asked_for,
    a_tensor_per_feature_will_do,
    images_are_files_or_arrays,
    requests_may_be_asynchronous,
    it_counts_hits,
    errors_have_a_status_and_a_text,
)

if __name__ == "__main__":
    with InferenceServerClient(sys.argv[1], concurrency=4) as client:
        for promise in PROMISES:
            promise(client)
            print("kept:", promise.__name__)
