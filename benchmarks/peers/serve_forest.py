# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = [
#   "fastapi==0.165.0", "uvicorn[standard]==0.54.0", "scikit-learn==1.9.1", "joblib==1.6.0", "numpy==2.4.6",
# ]
# ///
"""FastAPI and the forest, no cache: behind nginx's proxy_cache, and on its own what a miss costs."""

import os

import uvicorn
from fastapi import FastAPI
from forest import Forest

app = FastAPI()
forest = Forest()


@app.get("/predict")
def predict(sepal_length: float, sepal_width: float, petal_length: float, petal_width: float):
    return forest.answer([sepal_length, sepal_width, petal_length, petal_width])


@app.get("/computations")
async def computations():
    return forest.computations


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
