"""What a packed answer is, and what is none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from service.inference.manifest import Example, Image, Manifest
from service.inference.predictor import answer_check, pack

IMAGE = Image(size=(1, 1), mode="L", mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("classes", [1, 3, 1000])
def test_what_classifiers_answer_is_accepted(classes: int, dtype: str) -> None:
    is_answer = answer_check(_manifest(_one_hot(classes), dtype))
    chance = np.random.default_rng(1)
    for vector in (
        *chance.dirichlet(np.ones(classes), 100),
        *chance.dirichlet(np.full(classes, 1e-3), 100),
        np.array(_one_hot(classes)),
        -0.0 + np.array(_one_hot(classes)),
        np.full(classes, np.round(1 / classes, 5)),
    ):
        assert is_answer(pack(vector.astype(dtype)))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
def test_one_value_moved_makes_probabilities_none(dtype: str) -> None:
    is_answer = answer_check(_manifest(_one_hot(5), dtype))
    for vector in np.random.default_rng(2).dirichlet(np.ones(5), 100):
        for value in (np.nan, np.inf, -np.inf, -0.1, 1.1, vector[2] + 0.02, vector[2] - 0.02):
            moved = vector.copy()
            moved[2] = value
            assert not is_answer(pack(moved.astype(dtype)))
        swapped = vector + np.array([0, 1, 0, -1, 0])  # whose sum is still 1
        assert not is_answer(pack(swapped.astype(dtype)))


def test_bytes_that_are_no_such_vector_are_none() -> None:
    is_answer = answer_check(_manifest(_one_hot(3)))
    packed = pack(np.array(_one_hot(3)))
    for value in (b"", packed[:-1], packed + b"\0", bytes(len(packed)), pack(np.array(_one_hot(3), dtype="<f4"))):
        assert not is_answer(value)


@pytest.mark.parametrize(("value", "accepted"), [(7.0, True), (-1.0, True), (np.nan, False), (np.inf, False)])
def test_a_model_whose_example_answer_is_no_probability_answers_any_finite_numbers(
    value: float, accepted: bool
) -> None:
    assert answer_check(_manifest([3.0, -2.0]))(pack(np.array([value, 0.5]))) is accepted


def _manifest(golden: list[float], dtype: str = "<f8") -> Manifest:
    return Manifest.model_construct(example=Example(inputs={}, golden=golden), image=IMAGE if dtype == "<f4" else None)


def _one_hot(classes: int) -> list[float]:
    hot: NDArray[np.float64] = np.zeros(classes)
    hot[0] = 1
    return hot.tolist()
