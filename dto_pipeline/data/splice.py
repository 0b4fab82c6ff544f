"""Some rows of a label table replaced by others, everything else as it was."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dto_pipeline.schema import LABELS_SCHEMA


def splice_rows(table: pa.Table, positions: Sequence[int], rows: pa.Table) -> pa.Table:
    """The table with `rows` in the place of some of its own.

    Args:
        table: rows of `schema.LABELS_SCHEMA`.
        positions: (n,) rows of `table` that are replaced, each at most once.
        rows: (n) rows of the same schema, in that order.

    Returns:
        As many rows as before, in one chunk: written to Parquet it gives the bytes of a table made at once.

    Raises:
        ValueError: another image would stand in a row than before.
    """
    order = np.arange(table.num_rows)
    order[list(positions)] = table.num_rows + np.arange(rows.num_rows)
    # The schema as it is written first: a table that was read carries what the reader noted about its fields.
    joined = pa.concat_tables([table.cast(LABELS_SCHEMA), rows.cast(LABELS_SCHEMA)])
    spliced = joined.take(pa.array(order)).combine_chunks()
    if spliced.column("image_id").to_pylist() != table.column("image_id").to_pylist():
        raise ValueError(f"rows {list(positions)} are of other images; expected the same images in the same order")
    return spliced
