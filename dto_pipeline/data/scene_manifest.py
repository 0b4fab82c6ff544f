"""A manifest made from label tables instead of label files: how labels that came from elsewhere can be run again.

Knows both schemas and nothing of where the labels came from. The rows are those of the labels, in their order; people
keep theirs, masks are unknown. One shard is in memory at a time; equal input gives identical bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dto_pipeline import __version__
from dto_pipeline.data.columns import build_table, ragged_column, single_array, struct_column
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.digest import TableDigest
from dto_pipeline.data.parquet import writer_settings
from dto_pipeline.data.storage import Location, written
from dto_pipeline.schema import COORDINATES, LABEL_PERSON, MANIFEST_PERSON, MANIFEST_SCHEMA, MANIFEST_SCHEMA_NAME
from dto_pipeline.status import ImageStatus, PersonStatus

_SHARED_COLUMNS = ("image_id", "subset", "image_path", "width", "height", "fx", "fy", "cx", "cy", "num_persons")
_LABEL_PEOPLE = {LABEL_PERSON.field(i).name for i in range(LABEL_PERSON.num_fields)}
_SHARED_PEOPLE = [MANIFEST_PERSON.field(i).name for i in range(MANIFEST_PERSON.num_fields)]
_FAILURES = [str(status) for status in ImageStatus if status.is_failure]

LabelTable = Any  # a pyarrow.Table of schema.LABELS_SCHEMA


def write_label_manifest(
    shards: Iterable[tuple[LabelTable, Sequence[str], Sequence[str | None]]], dataset: Dataset, out: Location
) -> None:
    """Write the manifest whose labels these are.

    Args:
        shards: label rows, the images' names in their store, and those of their depth maps (None = there is none).
        dataset: what the manifest says of itself; its `images` and `depth` are the roots.
        out: the manifest.
    """
    digest, sizes = TableDigest(), []
    with written(out) as temporary:  # noqa: SIM117 - the file is whole once the writer is closed
        with pq.ParquetWriter(temporary, MANIFEST_SCHEMA, **writer_settings(MANIFEST_SCHEMA)) as writer:
            for shard, (labels, image_files, depth_files) in enumerate(shards):
                table = _shard_table(shard, labels, image_files, depth_files)
                digest.update(table)
                sizes.append([table.num_rows, int(table["num_persons"].to_numpy().sum())])
                writer.write_table(table, row_group_size=table.num_rows)
            writer.add_key_value_metadata(_footer(dataset, sizes, digest.hexdigest()))


def _shard_table(
    shard: int, labels: LabelTable, image_files: Sequence[str], depth_files: Sequence[str | None]
) -> pa.Table:
    people = single_array(labels["persons"]).flatten()
    counts = labels["num_persons"].to_numpy().astype(np.int64)
    failed = pc.is_in(labels["status"], pa.array(_FAILURES))
    nothing = pa.nulls(labels.num_rows, pa.string())
    columns: dict[str, Any] = {name: labels[name] for name in _SHARED_COLUMNS}
    columns["shard"] = np.full(labels.num_rows, shard)
    columns["image_file"], columns["depth_file"] = list(image_files), list(depth_files)
    columns["mask_origin"] = columns["attribute_origin"] = nothing
    columns["problem_status"] = pc.if_else(failed, labels["status"], None)
    columns["problem"] = pc.if_else(failed, labels["message"], None)
    persons = struct_column(MANIFEST_PERSON, _person_columns(people))
    columns["persons"] = ragged_column(counts, persons, MANIFEST_SCHEMA.field("persons").type)
    return build_table(MANIFEST_SCHEMA, columns)


def _person_columns(people: pa.StructArray) -> dict[str, Any]:
    columns: dict[str, Any] = {name: people.field(name) for name in _SHARED_PEOPLE if name in _LABEL_PEOPLE}
    invalid = pc.equal(people.field("status"), str(PersonStatus.INVALID_LABEL))
    columns["problem"] = pc.if_else(invalid, people.field("message"), None)
    columns["mask_rle"] = pa.nulls(len(people), pa.binary())
    columns["mask_height"] = columns["mask_width"] = np.zeros(len(people), np.int32)
    return columns


def _footer(dataset: Dataset, sizes: list[list[int]], fingerprint: str) -> dict[str, str]:
    images, people = (sum(size[i] for size in sizes) for i in range(2))
    facts: dict[str, Any] = {
        "counts": {"images": images, "persons": people, "shards": len(sizes)},
        "dataset": dataset.describe(),
        "label_files": [],
        "roots": {"images": str(dataset.images_root), "depth": dataset.depth_root and str(dataset.depth_root)},
        "shards": sizes,
    }
    texts = {key: json.dumps(value, sort_keys=True) for key, value in facts.items()}
    texts.update(schema=MANIFEST_SCHEMA_NAME, pipeline_version=__version__, coordinates=COORDINATES)
    return dict(sorted({**texts, "fingerprint": fingerprint}.items()))
