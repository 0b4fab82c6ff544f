"""A manifest made from label tables instead of label files: how labels that came from elsewhere can be run again.

Knows both schemas and nothing of where the labels came from. The rows are those of the labels, in their order; people
keep theirs, masks are unknown. One shard is in memory at a time; equal input gives identical bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.columns import build_table, ragged_column, single_array, struct_column
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.manifest_writer import describe_origin, open_manifest_writer
from dto_pipeline.data.storage import Location
from dto_pipeline.schema import LABEL_PERSON, MANIFEST_PERSON, MANIFEST_SCHEMA
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
    with open_manifest_writer(out) as writer:
        for shard, (labels, image_files, depth_files) in enumerate(shards):
            writer.add(_shard_table(shard, labels, image_files, depth_files))
        writer.finish(describe_origin(dataset, []))


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
