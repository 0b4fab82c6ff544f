"""A digest of what an Arrow table says, whatever its encoding.

Equal values give equal digests across chunkings, Parquet settings and pyarrow versions: only lengths, nulls and values
in little-endian order are hashed, column by column.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.columns import single_array


class _Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...


class TableDigest:
    """sha256 over the tables fed to it, in order."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def update(self, table: pa.Table) -> None:
        """Feed one table; how rows are spread over calls matters (a shard is a call)."""
        for name in table.column_names:
            self._sha.update(f"{name}:{table.num_rows};".encode())
            _feed(self._sha, single_array(table[name]))

    def hexdigest(self) -> str:
        return self._sha.hexdigest()


def _feed(sha: _Hash, array: pa.Array) -> None:
    kind = array.type
    if array.null_count:
        sha.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
    if pa.types.is_struct(kind):
        for child in array.flatten():
            _feed(sha, child)
    elif pa.types.is_list(kind):
        _feed_numbers(sha, pc.list_value_length(array).fill_null(0))
        _feed(sha, array.flatten())
    elif pa.types.is_fixed_size_list(kind):
        _feed(sha, array.flatten())
    elif pa.types.is_string(kind) or pa.types.is_binary(kind):
        _feed_numbers(sha, pc.binary_length(array).fill_null(0))
        sha.update(_letters(array.drop_null()))
    else:
        _feed_numbers(sha, array.fill_null(0) if array.null_count else array)


def _feed_numbers(sha: _Hash, array: pa.Array) -> None:
    values = array.to_numpy(zero_copy_only=False)
    sha.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())


def _letters(array: pa.Array) -> memoryview:
    """The bytes of all strings of an array without nulls, end to end."""
    _, offsets, data = array.buffers()
    if data is None or len(array) == 0:
        return memoryview(b"")
    cuts = np.frombuffer(offsets, dtype=np.int32)
    return memoryview(data)[cuts[array.offset] : cuts[array.offset + len(array)]]
