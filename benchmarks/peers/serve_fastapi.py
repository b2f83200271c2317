# mypy: ignore-errors
# /// script
# requires-python = "==3.11.*"
# dependencies = ["fastapi==0.165.0", "uvicorn[standard]==0.54.0"]
# ///
"""FastAPI with four float parameters and no work at all: what the framework costs."""

import os

import uvicorn
from fastapi import FastAPI

app = FastAPI()


@app.get("/predict")
async def predict(sepal_length: float, sepal_width: float, petal_length: float, petal_width: float):
    return {"model": "iris", "prediction": "0", "label": "setosa", "probabilities": [1.0, 0.0, 0.0]}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ["PORT"]), access_log=False, log_level="warning")
