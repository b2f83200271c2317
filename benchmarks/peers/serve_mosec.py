# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = ["mosec==0.9.8", "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6"]
# ///
"""mosec: a Rust front and one Python worker behind it, which batches whatever arrived within a millisecond."""

import os

from forest import Forest, describe
from mosec import Server, Worker


class Iris(Worker):
    def __init__(self):
        super().__init__()
        self.forest = Forest()

    def forward(self, data):
        return [describe(row) for row in self.forest.probabilities([each["features"] for each in data])]


if __name__ == "__main__":
    os.environ.update(MOSEC_PORT=os.environ["PORT"], MOSEC_ADDRESS="127.0.0.1", MOSEC_LOG_LEVEL="error")
    server = Server()
    server.append_worker(Iris, num=1, max_batch_size=32, max_wait_time=1)
    server.run()
