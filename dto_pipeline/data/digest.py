"""A sha256 over the contents of Arrow tables: equal across chunkings, Parquet settings and pyarrow versions.

Lengths, nulls and values in little-endian order are hashed, column by column.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.columns import single_array


class TableDigest:
    """sha256 over the tables fed to it, in order."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def update(self, table: pa.Table) -> None:
        """Add one table; the result depends on how rows are spread over calls (one call a shard)."""
        for name in table.column_names:
            self._sha.update(f"{name}:{table.num_rows};".encode())
            self._feed(single_array(table[name]))

    def hexdigest(self) -> str:
        return self._sha.hexdigest()

    def _feed(self, array: pa.Array) -> None:
        kind = array.type
        if array.null_count:
            self._sha.update(np.packbits(array.is_null().to_numpy(zero_copy_only=False)).tobytes())
        if pa.types.is_struct(kind):
            for child in array.flatten():
                self._feed(child)
        elif pa.types.is_list(kind):
            self._feed_numbers(pc.list_value_length(array).fill_null(0))
            self._feed(array.flatten())
        elif pa.types.is_fixed_size_list(kind):
            self._feed(array.flatten())
        elif pa.types.is_string(kind) or pa.types.is_binary(kind):
            self._feed_numbers(pc.binary_length(array).fill_null(0))
            texts = array.drop_null()
            _, offsets, data = texts.buffers()
            if data is not None and len(texts):
                cuts = np.frombuffer(offsets, dtype=np.int32)
                self._sha.update(memoryview(data)[cuts[texts.offset] : cuts[texts.offset + len(texts)]])
        else:
            self._feed_numbers(array.fill_null(0) if array.null_count else array)

    def _feed_numbers(self, array: pa.Array) -> None:
        values = array.to_numpy(zero_copy_only=False)
        self._sha.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
