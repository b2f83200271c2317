# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = [
#   "fastapi==0.165.0", "uvicorn[standard]==0.54.0", "fastapi-cache2==0.2.2", "jinja2==3.1.6", "redis[hiredis]==8.1.0",
#   "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6",
# ]
# ///
"""fastapi-cache2 on Redis: its decorator on the endpoint."""

import asyncio
import os

import redis.asyncio as redis
import uvicorn
from fastapi import FastAPI
from fastapi_cache import FastAPICache
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache
from forest import Forest

app = FastAPI()
forest = Forest()
FastAPICache.init(RedisBackend(redis.Redis.from_url(os.environ["REDIS_URL"], protocol=2)), prefix="iris")


@app.get("/predict")
@cache(expire=300)
async def predict(sepal_length: float, sepal_width: float, petal_length: float, petal_width: float):
    return await asyncio.to_thread(forest.answer, [sepal_length, sepal_width, petal_length, petal_width])


@app.get("/computations")
async def computations():
    return forest.computations


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
