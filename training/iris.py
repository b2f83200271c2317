"""Train a random forest on scikit-learn's Iris: ``python -m training.iris [--out DIR]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from service.inference.manifest import Feature, Manifest
from training import MODELS_DIR, command
from training.register import register

TREES = 100
SEED = 0
STEP = 20
EXAMPLE = (5.1, 3.5, 1.4, 0.2)
# Centimetres. Wider than the flowers measured (0.1…7.9), so that the curious may ask; no iris is larger than that.
FEATURES = tuple(
    Feature(name=name, minimum=0, maximum=10) for name in ("sepal_length", "sepal_width", "petal_length", "petal_width")
)


def train() -> tuple[RandomForestClassifier, float]:
    """The forest, and its accuracy on a held-out fifth of the flowers; prints its progress."""
    flowers = load_iris()
    train_x, test_x, train_y, test_y = train_test_split(
        flowers.data, flowers.target, test_size=0.2, stratify=flowers.target, random_state=SEED
    )
    forest = RandomForestClassifier(0, warm_start=True, random_state=SEED, n_jobs=1)
    for trees in range(STEP, TREES + 1, STEP):
        forest.set_params(n_estimators=trees).fit(train_x, train_y)
        print(f"\riris: {trees}/{TREES} trees", end="", flush=True)
    print()
    return forest, float(forest.score(test_x, test_y))


def main(arguments: Sequence[str] | None = None) -> Manifest:
    parser = argparse.ArgumentParser(prog="python -m training.iris", description=__doc__)
    parser.add_argument("--out", type=Path, default=MODELS_DIR, help="where model directories live")
    options = parser.parse_args(arguments)
    forest, accuracy = train()
    publish = partial(
        register,
        forest,
        name="iris",
        models_dir=options.out,
        features=FEATURES,
        labels=("setosa", "versicolor", "virginica"),
        example=EXAMPLE,
        accuracy=accuracy,
        description="The species of an iris from its sepals and petals, in centimetres.",
        show=lambda table: None,
    )
    return command(publish, options.out)


if __name__ == "__main__":
    main()
