"""Compacted label Parquet: the rows of a run's shards in few files of schema `dto-labels/1`, one folder per subset.

``data/<subset>/<subset>-00000-of-00012.parquet``, 1024 images a row group, about 50,000 images a file: label files that
`data.labels` reads. `write_persons` is the same with one row per person. Streams of tables are cut anew into equal row
groups. Memory: one row group of the output and one of the input.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline.data.columns import single_array
from dto_pipeline.data.exports.job import ExportJob, SubsetPlan
from dto_pipeline.data.parquet import ROWS_PER_GROUP, writer_settings
from dto_pipeline.schema import LABELS_SCHEMA, PERSONS_SCHEMA, PERSONS_SCHEMA_NAME

FILE_GROUPS = 48  # 49,152 images a file
PERSON_GROUP_ROWS = 8192  # a row group of persons is about as large as one of images
PERSON_FILE_GROUPS = 32  # 262,144 persons a file
_SHARD_FACTS = ("shard", "shards", "images", "shard_key", "rows_sha256")  # of one shard's footer, untrue elsewhere


def write_parquet(job: ExportJob) -> None:
    """One file set per subset; see the module."""
    for subset in job.taken:
        write_subset(job, subset)


def write_subset(job: ExportJob, subset: SubsetPlan, watch: Callable[[pa.Table], object] | None = None) -> list[str]:
    """Write the files of one subset and return their names; `watch` sees every table that was written."""
    counts: dict[str, np.ndarray] = {}
    tables = job.tables(subset.runs)
    for name, table in _write_files(job, subset, tables, LABELS_SCHEMA, subset.images, ROWS_PER_GROUP, FILE_GROUPS):
        counts[name] = counts.get(name, 0) + np.array([table.num_rows, table["num_persons"].to_numpy().sum()])
        if watch is not None:
            watch(table)
    for name, pair in counts.items():
        job.add(name, *pair)
    return list(counts)


def write_persons(job: ExportJob) -> None:
    """One row per person, schema `dto-persons/1`; images without a person have no row.

    An image counts for the file in which its first person is.
    """
    for subset in job.taken:
        counts: dict[str, np.ndarray] = {}
        tables, last = map(person_rows, job.tables(subset.runs)), ""
        sizes = (subset.persons, PERSON_GROUP_ROWS, PERSON_FILE_GROUPS)
        for name, table in _write_files(job, subset, tables, PERSONS_SCHEMA, *sizes, {"schema": PERSONS_SCHEMA_NAME}):
            ids = [last, *table["image_id"].to_pylist()]
            begun = sum(one != before for before, one in pairwise(ids))
            counts[name], last = counts.get(name, 0) + np.array([begun, table.num_rows]), ids[-1]
        for name, pair in counts.items():
            job.add(name, *pair)


def person_rows(table: pa.Table) -> pa.Table:
    """A label table as one of `schema.PERSONS_SCHEMA`, people in the order of their images."""
    counts = table["num_persons"].to_numpy()
    owner = pa.array(np.repeat(np.arange(counts.size), counts))
    people = single_array(table["persons"]).flatten()
    own = {people.type.field(i).name for i in range(people.type.num_fields)}
    columns = []
    for name in PERSONS_SCHEMA.names:
        image = "status" if name == "image_status" else name
        columns.append(people.field(name) if name in own else single_array(table[image]).take(owner))
    return pa.table(columns, schema=PERSONS_SCHEMA)


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


def _write_files(
    job: ExportJob,
    subset: SubsetPlan,
    tables: Iterable[pa.Table],
    schema: pa.Schema,
    total_rows: int,
    group_rows: int,
    file_groups: int,
    facts: dict[str, str] | None = None,
) -> Iterator[tuple[str, pa.Table]]:
    """Write a stream of tables to Parquet files of at most ``group_rows * file_groups`` rows; none where it is empty.

    The footers hold what those of the subset's runs agree on, without what is true of one shard only, what was
    selected, and `facts`.

    Args:
        tables: of `schema`, any sizes, `total_rows` rows in all.

    Yields:
        (file below the folder, table) of each row group once it is written; run it to the end.
    """
    first, *others = (run.footer for run in subset.runs)
    shared = {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}
    footer = {key: text for key, text in shared.items() if key not in _SHARD_FACTS}
    footer |= {"selection": json.dumps(job.selection.describe(), sort_keys=True)} | (facts or {})
    described = schema.with_metadata(dict(sorted(footer.items())))
    files = -(-total_rows // (group_rows * file_groups))
    groups = rechunk(tables, group_rows)
    (job.folder / "data" / subset.subset).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        name = f"data/{subset.subset}/{subset.subset}-{number:05d}-of-{files:05d}.parquet"
        with pq.ParquetWriter(job.folder / name, described, **writer_settings(schema)) as writer:
            for table in islice(groups, file_groups):
                writer.write_table(table.cast(described), row_group_size=group_rows)
                yield name, table
