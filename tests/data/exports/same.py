"""Equality of tables and values that may hold NaN."""

from __future__ import annotations

import pyarrow as pa

from dto_pipeline.data.digest import TableDigest


def rows_digest(table: pa.Table) -> str:
    """Equal for equal rows, NaN included, whatever the chunks."""
    digest = TableDigest()
    digest.update(table)
    return digest.hexdigest()
