"""Compacted label Parquet: the rows of a run's shards in few files of schema `dto-labels/1`, one folder per subset.

``data/<subset>/<subset>-00000-of-00012.parquet``, 1024 images a row group, about 50,000 images a file; `data.labels`
reads them. `write_persons` writes one row per person instead. Memory: one row group of the output and one of the input.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import single_array
from dto_pipeline.data.exports.job import ExportJob, SubsetPlan
from dto_pipeline.data.parquet import ROWS_PER_GROUP, new_parquet
from dto_pipeline.schema import LABELS_SCHEMA, LABELS_SCHEMA_NAME, PERSONS_SCHEMA, PERSONS_SCHEMA_NAME

FILE_GROUPS = 48  # 49,152 images a file
PERSON_GROUP_ROWS = 8192  # a row group of persons is about as large as one of images
PERSON_FILE_GROUPS = 32  # 262,144 persons a file
_SHARD_FACTS = ("shard", "shards", "images", "shard_key", "rows_sha256")  # footer entries of a single shard


def write_parquet(job: ExportJob) -> None:
    """The label rows of every subset."""
    for subset in job.taken:
        sizes = subset.images, ROWS_PER_GROUP, FILE_GROUPS
        _write_files(job, subset, job.tables(subset.runs), LABELS_SCHEMA, LABELS_SCHEMA_NAME, *sizes)


def write_persons(job: ExportJob) -> None:
    """One row per person, schema `dto-persons/1`; images without a person have no row."""
    for subset in job.taken:
        sizes = subset.persons, PERSON_GROUP_ROWS, PERSON_FILE_GROUPS
        tables = map(person_rows, job.tables(subset.runs))
        _write_files(job, subset, tables, PERSONS_SCHEMA, PERSONS_SCHEMA_NAME, *sizes)


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
    schema_name: str,
    total_rows: int,
    group_rows: int,
    file_groups: int,
) -> None:
    """Write `total_rows` rows of tables of `schema` to Parquet files of at most ``group_rows * file_groups`` rows.

    The footers hold the entries that the subset's runs have in common, except those of single shards, and the
    selection. An image whose persons are in two files counts for the first.
    """
    first, *others = (run.footer for run in subset.runs)
    shared = {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}
    footer = {key: text for key, text in shared.items() if key not in _SHARD_FACTS}
    footer |= {"selection": json.dumps(job.selection.describe(), sort_keys=True), "schema": schema_name}
    described = schema.with_metadata(dict(sorted(footer.items())))
    files = -(-total_rows // (group_rows * file_groups))
    groups, last = rechunk(tables, group_rows), None
    (job.folder / "data" / subset.subset).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        name = f"data/{subset.subset}/{subset.subset}-{number:05d}-of-{files:05d}.parquet"
        images = persons = 0
        with new_parquet(job.folder / name, described) as writer:
            for table in islice(groups, file_groups):
                writer.write_table(table.cast(described), row_group_size=group_rows)
                for image in table["image_id"].to_pylist():
                    images, last = images + (image != last), image
                persons += table["num_persons"].to_numpy().sum() if schema is LABELS_SCHEMA else table.num_rows
        job.add(name, images, persons)
