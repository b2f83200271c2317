# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = [
#   "fastapi==0.165.0", "uvicorn[standard]==0.54.0", "redis[hiredis]==8.1.0",
#   "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6",
# ]
# ///
"""Written with care by hand: redis-py's asyncio client, hiredis, a JSON body stored as it will be sent."""

import asyncio
import hashlib
import json
import os

import redis.asyncio as redis
import uvicorn
from fastapi import FastAPI, Response
from forest import Forest

app = FastAPI()
forest = Forest()
store = redis.Redis.from_url(os.environ["REDIS_URL"], protocol=2)


@app.get("/predict")
async def predict(sepal_length: float, sepal_width: float, petal_length: float, petal_width: float):
    row = [sepal_length, sepal_width, petal_length, petal_width]
    key = "iris:" + hashlib.sha256(repr(row).encode()).hexdigest()
    body = await store.get(key)
    if body is None:
        body = json.dumps(await asyncio.to_thread(forest.answer, row)).encode()
        await store.set(key, body, ex=300)
    return Response(body, media_type="application/json")


@app.get("/computations")
async def computations():
    return forest.computations


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
