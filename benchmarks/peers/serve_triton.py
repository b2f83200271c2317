# mypy: ignore-errors
# /// script
# requires-python = "==3.12.*"
# dependencies = ["nvidia-pytriton==0.7.0", "scikit-learn==1.9.1", "joblib==1.6.0"]
# ///
"""NVIDIA Triton, by way of pytriton, with its ``local`` response cache; the forest runs in this Python process."""

import os
import sys

import numpy as np
from forest import Forest
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

forest = Forest()


@batch
def infer(features):
    return {"probabilities": np.asarray(forest.probabilities(features))}


if __name__ == "__main__":
    # Triton's Python backend is linked against libpython, which need not be where the system looks for libraries.
    os.environ["LD_LIBRARY_PATH"] = f"{sys.base_prefix}/lib:{os.environ.get('LD_LIBRARY_PATH', '')}"
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=int(os.environ["PORT"]),
        allow_grpc=False,
        allow_metrics=False,
        cache_config=["local,size=67108864"],
        log_verbose=0,
    )
    with Triton(config=config, security_config=TritonSecurityConfig(restricted_endpoints=[])) as triton:
        triton.bind(
            model_name="iris",
            infer_func=infer,
            inputs=[Tensor(name="features", dtype=np.float64, shape=(4,))],
            outputs=[Tensor(name="probabilities", dtype=np.float64, shape=(3,))],
            config=ModelConfig(
                max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=0), response_cache=True
            ),
        )
        triton.serve()
