# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = [
#   "fastapi==0.165.0", "uvicorn[standard]==0.54.0", "fastapi-redis-sdk==0.9.1", "redis[hiredis]==8.1.0",
#   "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6",
# ]
# ///
"""fastapi-redis-sdk, Redis' own integration with FastAPI: its cache as a dependency of the endpoint."""

import asyncio
import os

import uvicorn
from fastapi import Depends, FastAPI
from forest import Forest
from redis_fastapi import FastAPIRedis, cache

app = FastAPI()
forest = Forest()
FastAPIRedis(app).lifespan().caching()


@app.get("/predict", dependencies=[Depends(cache(ttl=300))])
async def predict(sepal_length: float, sepal_width: float, petal_length: float, petal_width: float):
    return await asyncio.to_thread(forest.answer, [sepal_length, sepal_width, petal_length, petal_width])


@app.get("/computations")
async def computations():
    return forest.computations


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
