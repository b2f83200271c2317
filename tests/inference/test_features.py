"""Features with types: one question for each way to write a row, and another question for another row."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import InvalidInput
from service.http.endpoint import load_object
from service.inference.manifest import RESERVED_FEATURES, Class, Example, Feature, Manifest, Weights
from service.inference.tabular.features import RowReader, table_of

COLORS = ("green", "red", "null", "1")
FEATURES = (
    Feature(name="age (years)", missing=True, dtype="float64"),
    Feature(name="länge", minimum=-1e6, maximum=1e6, dtype="float32"),
    Feature(name="visits", type="integer", minimum=-(2**60), missing=True, dtype="Int64"),
    Feature(name="vip", type="boolean", missing=True, dtype="object"),
    Feature(name="color", type="category", values=COLORS, missing=True, dtype="category"),
    Feature(name="class", type="category", values=(1, 2, 3), dtype="int64"),
    Feature(name="comment", type="text", dtype="str"),
)
NUMBER = st.floats(-1e6, 1e6)
ROWS = st.tuples(
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    NUMBER,
    st.none() | st.integers(-(2**60), 2**63 - 1),
    st.none() | st.booleans(),
    st.none() | st.sampled_from(COLORS),
    st.sampled_from((1, 2, 3)),
    st.text(st.characters(exclude_categories=["Cs"])),
)


def manifest_of(features: tuple[Feature, ...], rows: Any = "frame") -> Manifest:
    return Manifest(
        name="model",
        kind="tabular",
        weights=Weights.of(b"", "joblib"),
        features=features,
        rows=rows,
        classes=(Class(value="0", label="0"), Class(value="1", label="1")),
        cost_seconds=1,
        example=Example(inputs={}, golden=[0, 1]),
        versions={},
    )


READER = RowReader(manifest_of(FEATURES))


def payload(params: dict[str, Any], content_type: str | None = "application/json") -> bytes:
    return READER.rows.pack(READER.read(params, content_type))


def named(row: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip((feature.name for feature in FEATURES), row, strict=True))


def as_text(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@given(ROWS)
def test_a_row_is_one_question_in_json_by_name_by_place_and_in_a_query_string(row: tuple[Any, ...]) -> None:
    members = named(row)
    texts = {name: as_text(value) for name, value in members.items()}
    present = {name: value for name, value in members.items() if value is not None}
    one = payload(members)
    assert payload({"input": list(row)}) == payload(present) == payload(texts, None) == one
    assert tuple(orjson.loads(one)) == row


@pytest.mark.parametrize("text", ["true", "True", "1"])
def test_true_is_one_question_as_json_and_as_pandas_writes_it(text: str) -> None:
    written = {name: as_text(value) for name, value in GOOD.items()}
    assert payload(written | {"vip": text}, None) == payload(GOOD)


@given(ROWS, ROWS)
def test_other_rows_are_other_questions(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assume(one != other)
    assert payload(named(one)) != payload(named(other))


FINITE = st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)  # as the reader gives them
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FINITE | st.text('a-\x00dé"\\')


@given(st.lists(VALUES, max_size=4), st.lists(VALUES, max_size=4))
def test_the_payload_says_type_and_value_of_each_feature(one: list[Any], other: list[Any]) -> None:
    def exact(row: list[Any]) -> list[Any]:
        return [(type(value), value) for value in row]

    pack = table_of(manifest_of(FEATURES)).pack
    assert exact(orjson.loads(pack(one))) == exact(one)
    assert (pack(one) == pack(other)) == (exact(one) == exact(other))


@pytest.mark.parametrize("zero", [-0.0, 0, 0.0, "-0", "0.0", "-0e9"])
def test_both_zeros_are_one_question(zero: Any) -> None:
    row = named((0.0, 0.0, 0, False, "red", 1, ""))
    if isinstance(zero, str):
        texts = {name: as_text(value) for name, value in row.items()} | {"age (years)": zero, "visits": zero}
        assert payload(texts, None) == payload(row)
    else:
        assert payload(row | {"age (years)": zero, "länge": zero, "visits": zero}) == payload(row)


def test_what_is_missing_in_an_array_is_one_nan() -> None:
    features = (Feature(name="a", missing=True), Feature(name="b", type="boolean"))
    reader = RowReader(manifest_of(features, "array"))
    rows = [{"b": "1"}, {"a": "", "b": "true"}, {"a": "null", "b": "1"}]
    packed = {reader.rows.pack(reader.read(row, None)) for row in rows}
    packed.add(reader.rows.pack(reader.read({"a": -math.nan, "b": True}, "application/json")))
    assert len(packed) == 1
    assert np.array_equal(reader.rows.table([*packed]), [[math.nan, 1.0]], equal_nan=True)


GOOD = named((1.5, 2.0, 3, True, "red", 1, "hello"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"länge": None}, "länge must be a number"),
        ({"länge": 2e6}, "between -1e"),
        ({"visits": 1.5}, "whole number"),
        ({"visits": 2**63}, " and 9223372036854775807."),
        ({"visits": True}, "whole number"),
        ({"vip": 1}, "true or false"),
        ({"color": "rde"}, "must be one of green, red, null, 1; did you mean red?"),
        ({"color": 1}, "must be one of"),
        ({"class": None}, "must be one of 1, 2, 3"),
        ({"class": True}, "must be one of 1, 2, 3"),
        ({"class": "1"}, "must be one of 1, 2, 3"),
        ({"comment": 5}, "must be a text"),
        ({"comment": "x" * 100_001}, "100,000 characters"),
        ({"comment": None}, "must be a text"),
    ],
)
def test_what_is_not_of_the_features_type_is_refused_and_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        payload(GOOD | change)
    assert said in str(caught.value)
    assert caught.value.parameter == next(iter(change))


@pytest.mark.parametrize(
    "change", [{"vip": "yes"}, {"visits": "1.5"}, {"länge": ""}, {"länge": "null"}, {"class": "4"}]
)
def test_a_text_in_a_query_string_is_as_strictly_read(change: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        payload({name: as_text(value) for name, value in GOOD.items()} | change, None)
    assert caught.value.parameter == next(iter(change))


@pytest.mark.parametrize("character", ["x", "語", "\N{GRINNING FACE}", '"'])
def test_a_long_text_is_read_however_json_writes_it(character: str) -> None:
    """In ASCII, as most clients write it, each character may take twelve bytes."""
    reader = RowReader(manifest_of(FEATURES[-1:], "texts"))
    for text in (character * 100_000, character * 100_001, character * 300_000):
        for as_ascii in (True, False):
            row = load_object(json.dumps({"comment": text}, ensure_ascii=as_ascii).encode())
            if len(text) == 100_000:
                assert reader.read(row, "application/json") == [text]
            else:
                with pytest.raises(InvalidInput, match="at most 100,000 characters"):
                    reader.read(row, "application/json")


def test_a_feature_that_may_not_be_missing_is_named_where_it_is_absent() -> None:
    with pytest.raises(InvalidInput, match="Missing parameters länge, class, comment"):
        payload({"vip": True})


def test_the_model_is_given_the_columns_and_dtypes_it_was_fitted_on() -> None:
    rows = [payload(GOOD), payload(named((None, 0.1, None, None, None, 3, "")))]
    frame = READER.rows.table(rows)
    expected = pd.DataFrame(
        {
            "age (years)": [1.5, np.nan],
            "länge": np.array([2.0, 0.1], np.float32),
            "visits": pd.array([3, None], dtype="Int64"),
            "vip": pd.Series([True, np.nan], dtype="object"),
            "color": pd.Categorical(["red", None], categories=COLORS),
            "class": [1, 3],
            "comment": ["hello", ""],
        }
    )
    pd.testing.assert_frame_equal(frame, expected)


def test_schemas_have_types_values_and_whether_a_feature_may_be_missing() -> None:
    parameters = READER.parameters
    assert parameters["color"] == {"type": ["string", "null"], "enum": [*COLORS, None], "example": None}
    assert parameters["class"]["type"] == "integer"
    assert parameters["class"]["enum"] == [1, 2, 3]
    assert parameters["vip"]["type"] == ["boolean", "null"]
    assert parameters["comment"]["type"] == "string"


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", "\ud800", *sorted(RESERVED_FEATURES)])
def test_names_that_no_feature_may_have(name: str) -> None:
    with pytest.raises(ValidationError):
        Feature(name=name)


def test_only_a_model_that_is_given_a_frame_imports_pandas(iris_models: Path) -> None:
    """After a whole start and a prediction."""
    program = f"""
import sys
from pathlib import Path
from service.inference.loading import load_model
from service.inference.predictor import Options
predictor = load_model(Path({str(iris_models / "iris")!r}), Options()).predictor
predictor.predict([predictor.parse({{"input": [1.0, 2.0, 3.0, 4.0]}}, b"", "application/json").payload])
print("pandas" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
