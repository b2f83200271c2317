"""Models as their makers have them: fitted on a DataFrame or on texts, and the CSV files that they were fitted on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

COMMENTS = {"pos": "a good film|great fun|nice, nice|très bien", "neg": "a bad film|no fun|awful, awful|très mauvais"}


def passengers(count: int = 120) -> pd.DataFrame:
    """A table like the Titanic's: numbers, whole ones, texts and truth values, some of them missing."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "class": rng.integers(1, 4, count),
            "name": [f"Passenger {number}" for number in range(count)],
            "sex": rng.choice(["female", "male"], count),
            "age (years)": np.where(rng.random(count) < 0.2, np.nan, rng.uniform(1, 80, count).round(1)),
            "länge": rng.uniform(1.5, 2, count).round(2),
            "embarked": np.where(rng.random(count) < 0.1, None, rng.choice(["C", "Q", "S"], count)),
            "alone": rng.random(count) < 0.5,
        }
    )
    table["survived"] = ((table["sex"] == "female") | (rng.random(count) < 0.2)).astype(int)
    return pd.read_csv(io.StringIO(table.to_csv(index=False)))  # as who fits a model on a file has it


def titanic() -> tuple[Any, pd.DataFrame]:
    """The pipeline, which passes over the names, and what it was fitted on."""
    table = passengers()
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    ports = make_pipeline(SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore"))
    columns = ColumnTransformer(
        [
            ("numbers", numbers, ["age (years)", "länge"]),
            ("known", OneHotEncoder(), ["sex", "class"]),
            ("any", ports, ["embarked"]),
            ("as it is", "passthrough", ["alone"]),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(table.drop(columns="survived"), table["survived"]), table


def mood() -> tuple[Any, pd.DataFrame]:
    """A classifier of texts, and its texts."""
    pairs = [(text, label) for label, texts in COMMENTS.items() for text in texts.split("|")]
    table = pd.DataFrame(pairs, columns=["comment", "label"])
    return make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(table["comment"], table["label"]), table


def register_all(directory: Path) -> None:
    """By the command line, into ``directory/models``."""
    from training.register import main

    for name, (model, table), target in (("titanic", titanic(), "survived"), ("mood", mood(), "label")):
        file, data = write(directory, name, model, table)
        main([str(file), "--data", str(data), "--target", target, "--out", str(directory / "models")])


def write(directory: Path, name: str, model: Any, table: pd.DataFrame) -> tuple[Path, Path]:
    """The model's file and the table's."""
    directory.mkdir(parents=True, exist_ok=True)
    file, data = directory / f"{name}.joblib", directory / f"{name}.csv"
    joblib.dump(model, file)
    table.to_csv(data, index=False)
    return file, data
