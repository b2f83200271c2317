# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = ["bentoml==1.4.39", "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6"]
# ///
"""BentoML with its adaptive batching."""

import os
import sys
from pathlib import Path

import bentoml
from forest import Forest, describe


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Iris:
    def __init__(self):
        self.forest = Forest()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=1000)
    def predict(self, rows: list[list[float]]) -> list[dict]:
        return [describe(row) for row in self.forest.probabilities(rows)]


if __name__ == "__main__":
    os.environ.update(BENTOML_DO_NOT_TRACK="True")
    here = str(Path(__file__).parent)
    where = ["--host", "127.0.0.1", "--port", os.environ["PORT"], "--working-dir", here]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", "serve_bentoml:Iris", *where])
