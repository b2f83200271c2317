# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = [
#   "fastapi==0.165.0", "uvicorn[standard]==0.54.0", "cashews[redis]==7.6.0",
#   "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6",
# ]
# ///
"""cashews on Redis; with CLIENT_SIDE=1 it also keeps in memory what it read, and Redis tells it of changes."""

import asyncio
import os

import uvicorn
from cashews import cache
from fastapi import FastAPI
from forest import Forest

app = FastAPI()
forest = Forest()
cache.setup(os.environ["REDIS_URL"], client_side=os.environ.get("CLIENT_SIDE") == "1")


@app.get("/predict")
@cache(ttl="5m", key="iris:{sepal_length}:{sepal_width}:{petal_length}:{petal_width}")
async def predict(sepal_length: float, sepal_width: float, petal_length: float, petal_width: float):
    return await asyncio.to_thread(forest.answer, [sepal_length, sepal_width, petal_length, petal_width])


@app.get("/computations")
async def computations():
    return forest.computations


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
