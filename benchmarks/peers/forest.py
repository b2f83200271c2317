# mypy: ignore-errors
"""The forest that every peer serves, loaded as anybody would load it. Runs in the peers' own environments."""

import os

import joblib
import numpy as np

LABELS = ("setosa", "versicolor", "virginica")


class Forest:
    """``computations``: how many rows were predicted, so that a cache can be seen to work."""

    def __init__(self):
        self._model = joblib.load(os.environ["MODEL"])
        self.computations = 0

    def probabilities(self, rows):
        """One list of class probabilities per row of four features."""
        self.computations += len(rows)
        return self._model.predict_proba(np.asarray(rows, dtype=np.float64)).tolist()

    def answer(self, row):
        """The body, as a dict, that an endpoint returns for one row."""
        return describe(self.probabilities([row])[0])


def describe(probabilities):
    """The body for one row's probabilities."""
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {"model": "iris", "prediction": str(best), "label": LABELS[best], "probabilities": probabilities}
