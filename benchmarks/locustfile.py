"""What a service like this meets: few questions asked often, many asked once, in every form, of both kinds of models.

``locust -f benchmarks/locustfile.py --host http://…`` runs it anywhere; ``make load`` does so against a service of its
own, and judges. Inputs are Zipf-distributed: the most frequent of ``QUESTIONS`` comes a thousand times as often as the
thousandth.
"""

from __future__ import annotations

import json
import random
from itertools import accumulate
from typing import Any

from locust import FastHttpUser, constant_throughput, events, tag, task

from benchmarks.inputs import IRIS, iris_rows, iris_target, small_png

QUESTIONS = 10_000
PER_USER = 10
"""Requests per second of each user: ``--users 100`` is 1,000 requests per second."""
BATCH_ROWS = 16
PICTURES = 64

LARGEST_SHARE_OF_ERRORS = 0.0
LONGEST_MEAN, LONGEST_P99 = 100.0, 250.0
"""In milliseconds. The mean is what the article that asked for this load allows."""
LEAST_SHARE_OF_RATE = 0.95

_chance = random.Random(0)
_rows = [row for row, _ in zip(iris_rows(_chance), range(QUESTIONS), strict=False)]
_weights = list(accumulate(1 / rank for rank in range(1, QUESTIONS + 1)))


def questions(count: int = 1) -> list[tuple[float, ...]]:
    return random.choices(_rows, cum_weights=_weights, k=count)


_pictures = [small_png(random.Random(number)) for number in range(PICTURES)]


class Visitor(FastHttpUser):
    """Somebody who keeps a connection and asks ten times a second, whatever it takes to be answered."""

    wait_time = constant_throughput(PER_USER)
    has_digits = False

    def on_start(self) -> None:
        with self.client.get("/models", name="/models") as response:
            self.has_digits = any(model["name"] == "digits" for model in response.json()["models"])

    @tag("get")
    @task(70)
    def get(self) -> None:
        self.client.get(iris_target(questions()[0]), name="GET /predict")

    @tag("post")
    @task(12)
    def post(self) -> None:
        self._json("/predict", dict(zip(IRIS, questions()[0], strict=True)), "POST /predict")

    @tag("batch")
    @task(5)
    def batch(self) -> None:
        self._json("/predict_batch", {"inputs": questions(BATCH_ROWS)}, "POST /predict_batch")

    @tag("v2")
    @task(8)
    def infer(self) -> None:
        tensor = {"name": "input", "datatype": "FP64", "shape": [1, 4], "data": list(questions()[0])}
        self._json("/v2/models/iris/infer", {"inputs": [tensor]}, "POST /v2/…/infer")

    @tag("image")
    @task(5)
    def image(self) -> None:
        if self.has_digits:
            self.client.post(
                "/models/digits/predict",
                data=random.choice(_pictures),  # type: ignore[arg-type]
                headers={"Content-Type": "image/png"},
                name="POST an image",
            )

    def _json(self, path: str, document: Any, name: str) -> None:
        headers = {"Content-Type": "application/json"}
        self.client.post(path, data=json.dumps(document), headers=headers, name=name)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def judge(environment: Any, **_: Any) -> None:
    """The verdict of a run: printed, and its exit code."""
    total = environment.stats.total
    wanted = PER_USER * (environment.parsed_options.num_users or 0)
    p99 = total.get_response_time_percentile(0.99) or 0
    verdicts = [
        ("errors", total.fail_ratio, total.fail_ratio <= LARGEST_SHARE_OF_ERRORS, "{:.2%}"),
        ("mean", total.avg_response_time, total.avg_response_time < LONGEST_MEAN, "{:.1f} ms"),
        ("p99", p99, p99 < LONGEST_P99, "{:.0f} ms"),
        ("requests/s", total.total_rps, total.total_rps >= LEAST_SHARE_OF_RATE * wanted, "{:,.0f}"),
    ]
    for name, value, is_good, form in verdicts:
        print(f"{'pass' if is_good else 'FAIL'}  {name} {form.format(value)}")
    environment.process_exit_code = 0 if total.num_requests and all(good for _, _, good, _ in verdicts) else 1
