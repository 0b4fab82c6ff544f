"""Arrow columns from numpy arrays and back, without a Python object per number.

A *ragged* column is one list per row over a flat array of items, cut by `counts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa


def to_column(values: Any, kind: pa.DataType) -> pa.Array:
    """One column of type `kind` from an Arrow array, a numpy array ((n,) or (n, k)) or a sequence of str or None."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, pa.Array):
        return values if values.type == kind else values.cast(kind)
    if pa.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values, dtype=kind.value_type.to_pandas_dtype()).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiub":
        return pa.array(np.ascontiguousarray(values, dtype=kind.to_pandas_dtype()), type=kind)
    return pa.array(values, type=kind)


def struct_column(kind: pa.StructType, columns: Mapping[str, Any]) -> pa.StructArray:
    """Structs of type `kind` from one entry of `columns` per field, see `to_column`; a missing field is a KeyError."""
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return pa.StructArray.from_arrays([to_column(columns[f.name], f.type) for f in fields], fields=fields)


def ragged_column(counts: np.ndarray, items: pa.Array, kind: pa.ListType) -> pa.ListArray:
    """One list per row: row r holds the next ``counts[r]`` items."""
    offsets = np.zeros(counts.size + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=kind)


def build_table(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """A table of `schema` from one entry of `columns` per field, see `to_column`."""
    return pa.table([to_column(columns[f.name], f.type) for f in schema], schema=schema)


def pick_words(words: Sequence[str | None], index: np.ndarray) -> pa.StringArray:
    """(n,) strings ``words[index]``, without a Python object per string."""
    return pa.array(words, type=pa.string()).take(pa.array(index))


def single_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column as one array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def read_numbers(column: pa.Array) -> np.ndarray:
    """(n,) numpy view of a column of numbers or booleans, (n, k) of one of fixed-size lists without nulls."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    values = column.to_numpy(zero_copy_only=False)
    return values.astype(bool) if pa.types.is_boolean(column.type) else values
