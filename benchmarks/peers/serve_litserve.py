# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = ["litserve==0.2.19", "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6"]
# ///
"""LitServe with batches of up to 32 that wait for one another for a millisecond."""

import os

import litserve as ls
from forest import Forest, describe


class Iris(ls.LitAPI):
    def setup(self, device):
        self.forest = Forest()

    def decode_request(self, request):
        return request["features"]

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def predict(self, rows):
        return self.forest.probabilities(rows)

    def encode_response(self, output):
        return describe(output)


if __name__ == "__main__":
    server = ls.LitServer(Iris(max_batch_size=32, batch_timeout=0.001), accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning", generate_client_file=False)
