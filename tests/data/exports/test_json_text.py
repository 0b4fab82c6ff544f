"""Arrow columns as JSON: what Python's own reader gets back is what went in."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dto_pipeline.data.exports.webdataset import json_rows, json_values


@given(st.lists(st.floats(width=32)))
def test_float32_comes_back_to_the_last_bit(values: list[float]) -> None:
    found = [json.loads(text) for text in json_values(pa.array(values, pa.float32())).to_pylist()]
    for number, value in zip(found, values, strict=True):
        assert number is None if not math.isfinite(value) else np.float32(number) == np.float32(value)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_float64_comes_back_to_the_last_bit(values: list[float]) -> None:
    assert [json.loads(text) for text in json_values(pa.array(values, pa.float64())).to_pylist()] == values


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.none()))
def test_any_text_comes_back(words: list[str | None]) -> None:
    assert [json.loads(text) for text in json_values(pa.array(words, pa.string())).to_pylist()] == words


PERSON = pa.struct([("x", pa.int32()), ("v", pa.list_(pa.float32(), 2)), ("word", pa.string()), ("yes", pa.bool_())])


@given(
    st.lists(
        st.lists(
            st.fixed_dictionaries(
                {
                    "x": st.integers(-(2**31), 2**31 - 1),
                    "v": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
                    "word": st.none() | st.just('a "quoted" word'),
                    "yes": st.booleans(),
                }
            ),
            max_size=3,
        )
    ),
    st.integers(0, 3),
)
def test_nested_rows_come_back_also_from_a_slice(rows: list[list[dict]], start: int) -> None:
    counts = pa.array([len(row) for row in rows], pa.int32())
    table = pa.table({"n": counts, "people": pa.array(rows, pa.list_(PERSON))}).slice(start)
    found = [json.loads(text) for text in json_rows(table).to_pylist()]
    assert [row["n"] for row in found] == [len(row) for row in rows[start:]]
    for row, people in zip(found, rows[start:], strict=True):
        for person, expected in zip(row["people"], people, strict=True):
            assert (person["x"], person["word"], person["yes"]) == (expected["x"], expected["word"], expected["yes"])
            assert np.array_equal(np.array(person["v"], np.float32), np.array(expected["v"], np.float32))


def test_a_type_without_json_is_named() -> None:
    with pytest.raises(TypeError, match="binary"):
        json_values(pa.array([b"x"]))
