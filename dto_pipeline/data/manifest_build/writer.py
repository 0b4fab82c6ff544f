"""Write a manifest: a row group per shard, then a footer with counts and fingerprint.

`write_label_manifest` makes the manifest of finished labels, so that they can be run again: the same images and people
in the same order, without masks. Equal input gives identical bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dto_pipeline import __version__
from dto_pipeline.data.columns import build_table, hash_table, ragged_column, single_array, struct_column
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.files import sha256_file
from dto_pipeline.data.manifest import ShardSize
from dto_pipeline.data.parquet import new_parquet
from dto_pipeline.data.storage import Location, absolute, written
from dto_pipeline.schema import COORDINATES, LABEL_PERSON, MANIFEST_PERSON, MANIFEST_SCHEMA, MANIFEST_SCHEMA_NAME
from dto_pipeline.status import ImageStatus, PersonStatus

_SCHEMA_TEXTS = {"schema": MANIFEST_SCHEMA_NAME, "coordinates": COORDINATES}


class ManifestWriter:
    """A manifest being written; made by `open_manifest_writer`."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer, self._sha = writer, hashlib.sha256()
        self.sizes: list[ShardSize] = []

    def add(self, shard: pa.Table) -> None:
        hash_table(shard, self._sha)
        self.sizes.append(ShardSize(shard.num_rows, int(shard["num_persons"].to_numpy().sum())))
        self._writer.write_table(shard, row_group_size=shard.num_rows)

    @property
    def fingerprint(self) -> str:
        return self._sha.hexdigest()

    def finish(self, facts: Mapping[str, Any], texts: Mapping[str, str] = _SCHEMA_TEXTS) -> None:
        """Write the footer.

        Args:
            facts: entries that are written as JSON; counts, shards, version and fingerprint are added.
            texts: entries that are written as they are, e.g. another manifest's footer.
        """
        images, people = (sum(size[i] for size in self.sizes) for i in range(2))
        counts = {"images": images, "persons": people, "shards": len(self.sizes)}
        values = {**facts, "counts": counts, "shards": self.sizes}
        footer = {**texts, **{key: json.dumps(value, sort_keys=True) for key, value in values.items()}}
        footer.update(pipeline_version=__version__, fingerprint=self.fingerprint)
        self._writer.add_key_value_metadata(dict(sorted(footer.items())))


@contextmanager
def open_manifest_writer(out: Location) -> Iterator[ManifestWriter]:
    with written(out) as local, new_parquet(local, MANIFEST_SCHEMA) as writer:
        yield ManifestWriter(writer)


def describe_files(name: str, files: Sequence[Path]) -> dict[str, Any]:
    """Name, size and sha256 of an input; of several files the sum of the sizes and the sha256 of the joined sha256s."""
    hashes = [sha256_file(path) for path in files]
    whole = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    return {"file": name, "bytes": sum(path.stat().st_size for path in files), "sha256": whole}


def describe_origin(dataset: Dataset, label_files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Footer entries about the data set of a manifest; `label_files`: as of `describe_files`."""
    depth = dataset.depth_root
    roots = {"images": str(absolute(dataset.images_root)), "depth": depth and str(absolute(depth))}
    return {"dataset": dataset.describe(), "label_files": list(label_files), "roots": roots}


_SHARED_COLUMNS = ("image_id", "subset", "image_path", "width", "height", "fx", "fy", "cx", "cy", "num_persons")
_SHARED_PEOPLE = {field.name for field in MANIFEST_PERSON} & {field.name for field in LABEL_PERSON}
_FAILURES = [str(status) for status in ImageStatus if status.is_failure]


def write_label_manifest(
    shards: Iterable[tuple[pa.Table, Sequence[str], Sequence[str | None]]], dataset: Dataset, out: Location
) -> None:
    """Write the manifest of finished labels.

    Args:
        shards: of each the label rows (`schema.LABELS_SCHEMA`), the names of the image files and of the depth maps.
        dataset: its description, with the folders that these names are relative to.
    """
    with open_manifest_writer(out) as writer:
        for shard, (labels, image_files, depth_files) in enumerate(shards):
            people, nothing = single_array(labels["persons"]).flatten(), pa.nulls(labels.num_rows, pa.string())
            invalid = pc.equal(people.field("status"), str(PersonStatus.INVALID_LABEL))
            sides = np.zeros(len(people), np.int32)
            columns: dict[str, Any] = {name: people.field(name) for name in _SHARED_PEOPLE}
            columns.update(mask_rle=pa.nulls(len(people), pa.binary()), mask_height=sides, mask_width=sides)
            columns["problem"] = pc.if_else(invalid, people.field("message"), None)
            persons = struct_column(MANIFEST_PERSON, columns)
            failed = pc.is_in(labels["status"], pa.array(_FAILURES))
            rows: dict[str, Any] = {
                **{name: labels[name] for name in _SHARED_COLUMNS},
                "shard": np.full(labels.num_rows, shard),
                "image_file": list(image_files),
                "depth_file": list(depth_files),
                "mask_origin": nothing,
                "attribute_origin": nothing,
                "problem_status": pc.if_else(failed, labels["status"], None),
                "problem": pc.if_else(failed, labels["message"], None),
            }
            counts = labels["num_persons"].to_numpy().astype(np.int64)
            rows["persons"] = ragged_column(counts, persons, MANIFEST_SCHEMA.field("persons").type)
            writer.add(build_table(MANIFEST_SCHEMA, rows))
        writer.finish(describe_origin(dataset, []))
