# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = [
#   "fastapi==0.165.0", "uvicorn[standard]==0.54.0", "redis==8.1.0",
#   "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6",
# ]
# ///
"""The textbook version: a blocking Redis client, a ``def`` endpoint, an f-string for a key, a pickle for a value."""

import os
import pickle

import redis
import uvicorn
from fastapi import FastAPI
from forest import Forest

app = FastAPI()
forest = Forest()
store = redis.Redis.from_url(os.environ["REDIS_URL"])


@app.get("/predict")
def predict(sepal_length: float, sepal_width: float, petal_length: float, petal_width: float):
    key = f"iris:{sepal_length}:{sepal_width}:{petal_length}:{petal_width}"
    cached = store.get(key)
    if cached is not None:
        return pickle.loads(cached)
    answer = forest.answer([sepal_length, sepal_width, petal_length, petal_width])
    store.set(key, pickle.dumps(answer), ex=300)
    return answer


@app.get("/computations")
async def computations():
    return forest.computations


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
