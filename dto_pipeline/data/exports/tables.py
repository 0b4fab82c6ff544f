"""Streams of tables cut anew: equal row groups, files of a known number of row groups.

Knows Parquet files of this project's dialect and how they are named; knows no label column. Memory: one row group of
the output and one of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline.data.parquet import writer_settings


def rechunk(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows each, the last one shorter."""
    held: list[pa.Table] = []
    missing = rows
    for table in tables:
        while table.num_rows:
            held.append(table.slice(0, missing))
            missing -= held[-1].num_rows
            table = table.slice(held[-1].num_rows)
            if missing == 0:
                yield pa.concat_tables(held).combine_chunks()
                held, missing = [], rows
    if held:
        yield pa.concat_tables(held).combine_chunks()


def write_files(
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    total_rows: int,
    name: Callable[[int, int], Path],
    group_rows: int,
    file_groups: int,
    footer: Mapping[str, str],
) -> Iterator[tuple[Path, pa.Table]]:
    """Write a stream of tables to Parquet files of at most ``group_rows * file_groups`` rows.

    Args:
        tables: of `schema`, any sizes, `total_rows` rows in all.
        name: (number of the file, how many files) -> its path.
        footer: text of every file's footer.

    Yields:
        (file, table) of each row group once it is written; run it to the end.
    """
    files = max(1, -(-total_rows // (group_rows * file_groups)))
    groups = rechunk(tables, group_rows)
    described = schema.with_metadata(dict(sorted(footer.items())))
    settings = writer_settings(schema)
    for number in range(files):
        path = name(number, files)
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(path, described, **settings) as writer:
            for table in islice(groups, file_groups):
                writer.write_table(table.cast(described), row_group_size=group_rows)
                yield path, table
