"""Some rows of a label table replaced by others, everything else as it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def splice_rows(table: pa.Table, positions: Sequence[int], rows: pa.Table) -> pa.Table:
    """The table with `rows` in the place of some of its own.

    Args:
        table: rows of `schema.LABELS_SCHEMA`.
        positions: (n,) rows of `table` that are replaced, each at most once.
        rows: (n) rows of the same columns, in that order.

    Returns:
        As many rows as before, in one chunk: written to Parquet it gives the bytes of a table made at once.

    Raises:
        ValueError: another image would stand in a row than before.
    """
    order = np.arange(table.num_rows)
    order[list(positions)] = table.num_rows + np.arange(rows.num_rows)
    joined = pa.concat_tables([table.replace_schema_metadata(None), rows.replace_schema_metadata(None)])
    spliced = joined.take(pa.array(order)).combine_chunks()
    if spliced.column("image_id").to_pylist() != table.column("image_id").to_pylist():
        raise ValueError(f"rows {list(positions)} are of other images; expected the same images in the same order")
    return spliced
