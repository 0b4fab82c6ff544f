"""Compacted label Parquet: the rows of a run's shards in few files of schema `dto-labels/1`, one folder per subset.

``data/<subset>/<subset>-00000-of-00012.parquet``, 1024 images a row group, about 50,000 images a file. What
`data.labels.read_labels` reads, this writes. `write_persons` is the same with one row per person.

Streams of tables are cut anew into equal row groups and files of a known number of them. Memory: one row group of the
output and one of the input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dto_pipeline.data.columns import single_array
from dto_pipeline.data.exports.inputs import RunLabels, read_footer
from dto_pipeline.data.exports.job import ExportedFile, ExportJob, SubsetPlan
from dto_pipeline.data.exports.selection import Selection
from dto_pipeline.data.parquet import ROWS_PER_GROUP, writer_settings
from dto_pipeline.schema import LABELS_SCHEMA, PERSONS_SCHEMA, PERSONS_SCHEMA_NAME

FILE_GROUPS = 48  # 49,152 images a file
PERSON_GROUP_ROWS = 8192  # a row group of persons is about as large as one of images
PERSON_FILE_GROUPS = 32  # 262,144 persons a file
_SHARD_FACTS = ("shard", "shards", "images", "shard_key", "rows_sha256")  # of one shard's footer, untrue elsewhere


def write_parquet(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One file set per subset; see the module."""
    return [file for subset in job.subsets for file in write_subset(job, folder, subset)]


def write_subset(
    job: ExportJob, folder: Path, subset: SubsetPlan, watch: Callable[[pa.Table], object] | None = None
) -> list[ExportedFile]:
    """The files of one subset; `watch` sees every table that was written."""
    tables, footer = job.tables(subset), compacted_footer(subset.runs, job.plan.selection)
    name = _namer(folder, subset.subset)
    written = write_files(tables, LABELS_SCHEMA, subset.images, name, ROWS_PER_GROUP, FILE_GROUPS, footer)
    counts: dict[Path, np.ndarray] = {}
    for path, table in written:
        found = np.array([table.num_rows, table["num_persons"].to_numpy().sum()])
        counts[path] = counts.get(path, 0) + found
        if watch is not None:
            watch(table)
    return _files(folder, counts)


def write_persons(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One row per person, schema `dto-persons/1`; images without a person have no row.

    An image counts for the file in which its first person is.
    """
    counts: dict[Path, np.ndarray] = {}
    for subset in job.subsets:
        if not subset.persons:
            continue
        footer = compacted_footer(subset.runs, job.plan.selection) | {"schema": PERSONS_SCHEMA_NAME}
        name, tables = _namer(folder, subset.subset), person_tables(job.tables(subset))
        last = ""
        for path, table in write_files(
            tables, PERSONS_SCHEMA, subset.persons, name, PERSON_GROUP_ROWS, PERSON_FILE_GROUPS, footer
        ):
            ids = single_array(table["image_id"])
            begun = pc.sum(pc.not_equal(ids[1:], ids[:-1])).as_py() or 0
            counts[path] = counts.get(path, 0) + np.array([begun + (ids[0].as_py() != last), table.num_rows])
            last = ids[-1].as_py()
    return _files(folder, counts)


def person_tables(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Label tables as tables of `schema.PERSONS_SCHEMA`, people in the order of their images."""
    for table in tables:
        counts = table["num_persons"].to_numpy()
        owner = pa.array(np.repeat(np.arange(counts.size), counts))
        people = single_array(table["persons"]).flatten()
        own = {people.type.field(i).name for i in range(people.type.num_fields)}
        columns = []
        for field in PERSONS_SCHEMA:
            if field.name in own:
                columns.append(people.field(field.name))
            else:
                source = "status" if field.name == "image_status" else field.name
                columns.append(single_array(table[source]).take(owner))
        yield pa.table(columns, schema=PERSONS_SCHEMA)


def compacted_footer(runs: list[RunLabels], selection: Selection) -> dict[str, str]:
    """What the footers of some runs agree on, without what is true of one shard only, and what was selected."""
    footers = [read_footer(run) for run in runs]
    shared = {key: text for key, text in footers[0].items() if all(other.get(key) == text for other in footers)}
    facts = {key: text for key, text in shared.items() if key not in _SHARD_FACTS}
    return facts | {"selection": json.dumps(selection.describe(), sort_keys=True)}


def _namer(folder: Path, subset: str) -> Callable[[int, int], Path]:
    return lambda number, files: folder / "data" / subset / f"{subset}-{number:05d}-of-{files:05d}.parquet"


def _files(folder: Path, counts: dict[Path, np.ndarray]) -> list[ExportedFile]:
    return [ExportedFile(str(path.relative_to(folder)), *map(int, pair)) for path, pair in counts.items()]


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
