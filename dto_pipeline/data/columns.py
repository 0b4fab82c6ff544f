"""Arrow columns from numpy arrays and back, without a Python object per number; and a hash of a table's contents.

A *ragged* column has one list per row; the items of all lists are in one flat array.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def to_column(values: Any, kind: pa.DataType) -> pa.Array:
    """A column of type `kind` from an Arrow array, a numpy array (n,) or (n, k), or a sequence of str or None."""
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
    """Structs of type `kind`; `columns` has an entry for each field, see `to_column`."""
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return pa.StructArray.from_arrays([to_column(columns[f.name], f.type) for f in fields], fields=fields)


def ragged_column(counts: np.ndarray, items: pa.Array, kind: pa.ListType) -> pa.ListArray:
    """One list per row: that of row r holds the next ``counts[r]`` items."""
    offsets = np.zeros(counts.size + 1, dtype=np.int32)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), items, type=kind)


def build_table(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """A table of `schema`; `columns` has an entry for each field, see `to_column`."""
    return pa.table([to_column(columns[f.name], f.type) for f in schema], schema=schema)


def pick_words(words: Sequence[str | None], index: np.ndarray) -> pa.StringArray:
    """(n,) strings ``words[index]``, without a Python object per string."""
    return pa.array(words, type=pa.string()).take(pa.array(index))


def single_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """The column as one array; copied only if it has several chunks."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def read_numbers(column: pa.Array) -> np.ndarray:
    """A column as numpy array: (n,), or (n, k) of fixed-size lists without nulls; of other types an object array."""
    if pa.types.is_fixed_size_list(column.type):
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    values = column.to_numpy(zero_copy_only=False)
    return values.astype(bool) if pa.types.is_boolean(column.type) else values


def rows_sha256(table: pa.Table) -> str:
    """sha256 (hex) of a table's contents; chunks, Parquet settings and pyarrow's version do not change it."""
    sha = hashlib.sha256()
    hash_table(table, sha)
    return sha.hexdigest()


def hash_table(table: pa.Table, sha: Any) -> None:
    """Add a table to a hashlib object column by column: lengths, nulls, values in little-endian order."""
    for name in table.column_names:
        sha.update(f"{name}:{table.num_rows};".encode())
        _hash_array(single_array(table[name]), sha)


def _hash_array(array: pa.Array, sha: Any) -> None:
    kind = array.type
    if array.null_count:
        sha.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_struct(kind):
        for child in array.flatten():
            _hash_array(child, sha)
    elif pa.types.is_list(kind):
        _hash_numbers(pc.list_value_length(array).fill_null(0), sha)
        _hash_array(array.flatten(), sha)
    elif pa.types.is_fixed_size_list(kind):
        _hash_array(array.flatten(), sha)
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        _hash_numbers(pc.binary_length(array).fill_null(0), sha)
        texts = array.drop_null()
        _, offsets, data = texts.buffers()
        if data is not None and len(texts):
            cuts = np.frombuffer(offsets, dtype=np.int32)
            sha.update(memoryview(data)[cuts[texts.offset] : cuts[texts.offset + len(texts)]])
    else:
        _hash_numbers(array.fill_null(0) if array.null_count else array, sha)


def _hash_numbers(array: pa.Array, sha: Any) -> None:
    values = array.to_numpy(zero_copy_only=False)
    sha.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
