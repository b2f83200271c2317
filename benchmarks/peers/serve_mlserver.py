# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = ["mlserver==1.7.1", "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6"]
# ///
"""MLServer (Seldon): the Open Inference Protocol, the model in the server's own process, adaptive batching on."""

import asyncio
import os

from forest import Forest
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

CACHED = "CACHED" in os.environ


class Iris(MLModel):
    async def load(self):
        self.forest = Forest()
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0])
        probabilities = await asyncio.to_thread(self.forest.probabilities, rows)
        import numpy as np

        output = NumpyCodec.encode_output("probabilities", np.asarray(probabilities))
        return InferenceResponse(model_name=self.name, outputs=[output])


async def main():
    port = int(os.environ["PORT"])
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        http_port=port,
        grpc_port=port + 1,
        metrics_port=port + 2,
        parallel_workers=0,
        cache_enabled=CACHED,
    )
    iris = ModelSettings(
        name="iris", implementation=Iris, max_batch_size=32, max_batch_time=0.001, cache_enabled=CACHED
    )
    await MLServer(settings).start([iris])


if __name__ == "__main__":
    asyncio.run(main())
