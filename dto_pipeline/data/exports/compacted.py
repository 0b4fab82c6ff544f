"""Label rows of a run's shards in few Parquet files of schema `dto-labels/1`, one folder per subset.

``data/<subset>/<subset>-00000-of-00012.parquet``, 1024 images a row group, about 50,000 images a file; `data.labels`
reads them. `write_persons` writes one row per person instead.
"""

from __future__ import annotations

import json
from itertools import chain

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import single_array
from dto_pipeline.data.exports.job import ExportJob, Subset
from dto_pipeline.data.label_files import flatten_table
from dto_pipeline.data.parquet import ROWS_PER_GROUP, new_parquet
from dto_pipeline.schema import LABELS_SCHEMA, LABELS_SCHEMA_NAME, PERSONS_SCHEMA, PERSONS_SCHEMA_NAME

FILE_GROUPS = 48  # 49,152 images a file
PERSON_GROUP_ROWS = 8192  # a row group of persons is about as large as one of images
PERSON_FILE_GROUPS = 32  # 262,144 persons a file
_SHARD_FACTS = ("shard", "shards", "images", "shard_key", "rows_sha256")  # footer entries of a single shard


def write_parquet(job: ExportJob) -> None:
    """The label rows of every subset."""
    for subset in job.taken:
        table = pa.concat_tables(chain(*subset.tables))
        _write_files(job, subset, table, LABELS_SCHEMA, LABELS_SCHEMA_NAME, ROWS_PER_GROUP, FILE_GROUPS)


def write_persons(job: ExportJob) -> None:
    """One row per person, schema `dto-persons/1`; images without a person have no row."""
    for subset in job.taken:
        table = pa.concat_tables(map(person_rows, chain(*subset.tables)))
        _write_files(job, subset, table, PERSONS_SCHEMA, PERSONS_SCHEMA_NAME, PERSON_GROUP_ROWS, PERSON_FILE_GROUPS)


def person_rows(table: pa.Table) -> pa.Table:
    """A label table as one of `schema.PERSONS_SCHEMA`, people in the order of their images."""
    owner = pa.array(flatten_table(table.select(["persons"]), ()).owner)
    people = single_array(table["persons"]).flatten()
    own = {field.name for field in people.type}
    columns = []
    for name in PERSONS_SCHEMA.names:
        image = "status" if name == "image_status" else name
        columns.append(people.field(name) if name in own else single_array(table[image]).take(owner))
    return pa.table(columns, schema=PERSONS_SCHEMA)


def _write_files(
    job: ExportJob, subset: Subset, table: pa.Table, schema: pa.Schema, name: str, group_rows: int, file_groups: int
) -> None:
    """Write a table of `schema`, called `name`, to Parquet files of at most ``group_rows * file_groups`` rows.

    The footers hold the selection, and the entries that all runs of the subset share, except those of single shards.
    An image whose persons are in two files counts for the first.
    """
    first, *others = (run.footer for run in subset.runs)
    shared = {key: text for key, text in first.items() if all(other.get(key) == text for other in others)}
    footer = {key: text for key, text in shared.items() if key not in _SHARD_FACTS}
    footer |= {"selection": json.dumps(job.selection.describe(), sort_keys=True), "schema": name}
    described = schema.with_metadata(dict(sorted(footer.items())))
    images = table["image_id"].to_numpy()
    begins = np.append(True, images[1:] != images[:-1])  # the first row of each image
    persons = table["num_persons"].to_numpy() if schema is LABELS_SCHEMA else np.ones(len(images), int)
    starts = range(0, table.num_rows, group_rows * file_groups)
    (job.folder / "data" / subset.name).mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(starts):
        path = f"data/{subset.name}/{subset.name}-{number:05d}-of-{len(starts):05d}.parquet"
        end = min(start + starts.step, table.num_rows)
        with new_parquet(job.folder / path, described) as writer:
            for group in range(start, end, group_rows):
                rows = table.slice(group, min(group_rows, end - group)).combine_chunks()
                writer.write_table(rows.cast(described), row_group_size=group_rows)
                job.advance(int(begins[group : group + rows.num_rows].sum()))
        job.add(path, begins[start:end].sum(), persons[start:end].sum())
