from __future__ import annotations

import pyarrow as pa
import pytest

from dto_pipeline.data.columns import rows_sha256, single_array

ROWS = {
    "number": [1.5, None, float("nan")],
    "text": ["a", None, "bc"],
    "list": [[{"x": [1.0, 2.0], "b": b"z"}], [], None],
}
KINDS = pa.schema(
    [
        ("number", pa.float64()),
        ("text", pa.string()),
        ("list", pa.list_(pa.struct([("x", pa.list_(pa.float32(), 2)), ("b", pa.binary())]))),
    ]
)


def test_a_column_of_one_piece_is_not_copied():
    table = pa.table(ROWS | {"number": [1.5, None, 2.0]}, schema=KINDS)
    before = pa.total_allocated_bytes()
    arrays = [single_array(column) for column in table.slice(1, 2).columns]
    assert pa.total_allocated_bytes() == before
    assert [array.to_pylist() for array in arrays] == [column.to_pylist() for column in table.slice(1, 2).columns]
    pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert [single_array(column) for column in pieces.columns] == [single_array(column) for column in table.columns]


def test_chunks_and_slices_do_not_change_a_rows_sha256():
    table = pa.table(ROWS, schema=KINDS)
    padded = pa.concat_tables([table.slice(1, 1), table, table.slice(0, 2)])
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert rows_sha256(padded.slice(1, 3)) == rows_sha256(chunked) == rows_sha256(table)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("number", [1.5, 0.0, float("nan")]),
        ("number", [1.5, None, 0.0]),
        ("text", ["a", "", "bc"]),
        ("text", ["ab", None, "c"]),
        ("list", [[], [{"x": [1.0, 2.0], "b": b"z"}], None]),
        ("list", [[{"x": [1.0, 3.0], "b": b"z"}], [], None]),
        ("list", [[{"x": [1.0, 2.0], "b": None}], [], None]),
        ("list", [[{"x": [1.0, 2.0], "b": b"z"}], [], []]),
    ],
)
def test_every_value_null_and_border_counts(column, value):
    assert rows_sha256(pa.table({**ROWS, column: value}, schema=KINDS)) != rows_sha256(pa.table(ROWS, schema=KINDS))
