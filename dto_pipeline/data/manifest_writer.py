"""How a manifest's file comes into being: a row group per shard, then a footer with counts and fingerprint.

Knows the schema and the footer's keys; knows nothing of where rows come from. Equal input gives identical bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline import __version__
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.digest import TableDigest
from dto_pipeline.data.parquet import writer_settings
from dto_pipeline.data.storage import Location, absolute, written
from dto_pipeline.schema import COORDINATES, MANIFEST_SCHEMA, MANIFEST_SCHEMA_NAME

_SCHEMA_TEXTS = {"schema": MANIFEST_SCHEMA_NAME, "coordinates": COORDINATES}


class ShardSize(NamedTuple):
    """How much work a shard is."""

    images: int
    people: int


class ManifestWriter:
    """A manifest being written; made by `open_manifest_writer`."""

    def __init__(self, writer: pq.ParquetWriter) -> None:
        self._writer, self._digest = writer, TableDigest()
        self._sizes: list[ShardSize] = []

    def add(self, shard: pa.Table) -> None:
        """Write the rows of the next shard, `schema.MANIFEST_SCHEMA`."""
        self._digest.update(shard)
        self._sizes.append(ShardSize(shard.num_rows, int(shard["num_persons"].to_numpy().sum())))
        self._writer.write_table(shard, row_group_size=shard.num_rows)

    @property
    def fingerprint(self) -> str:
        """sha256 over what the rows so far say."""
        return self._digest.hexdigest()

    def finish(self, facts: Mapping[str, Any], texts: Mapping[str, str] = _SCHEMA_TEXTS) -> None:
        """Write the footer, in a fixed order.

        Args:
            facts: JSON-ready, besides counts and shards; texts: as they are, those of another manifest to begin with.
        """
        images, people = (sum(size[i] for size in self._sizes) for i in range(2))
        counts = {"images": images, "persons": people, "shards": len(self._sizes)}
        told = {**facts, "counts": counts, "shards": self._sizes}
        footer = {**texts, **{key: json.dumps(value, sort_keys=True) for key, value in told.items()}}
        footer.update(pipeline_version=__version__, fingerprint=self.fingerprint)
        self._writer.add_key_value_metadata(dict(sorted(footer.items())))


@contextmanager
def open_manifest_writer(out: Location) -> Iterator[ManifestWriter]:
    """The manifest at `out`, replaced when the block ends without an error."""
    with (
        written(out) as local,
        pq.ParquetWriter(local, MANIFEST_SCHEMA, **writer_settings(MANIFEST_SCHEMA)) as writer,
    ):
        yield ManifestWriter(writer)


def describe_origin(dataset: Dataset, label_files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a manifest says of the data set it was made from; `label_files`: file, bytes, sha256 of each."""
    depth = dataset.depth_root
    roots = {"images": str(absolute(dataset.images_root)), "depth": depth and str(absolute(depth))}
    return {"dataset": dataset.describe(), "label_files": list(label_files), "roots": roots}
