"""Labels of finished runs as a stream of tables: what an export reads.

Knows label files and their sizes and hashes as their receipts told them; never lists a folder, so a file nobody vouches
for is never read. One row group (at most 1024 images) is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from dto_pipeline.data.labels import LabelsError, fill_added, open_labels
from dto_pipeline.data.manifest import Manifest, ManifestError, find_manifest
from dto_pipeline.data.parquet import READ_ERRORS, footer_text
from dto_pipeline.data.storage import Location, as_location, sha256_of
from dto_pipeline.errors import DtoError

IMAGE_FILE = "image_file"  # extra column: the manifest's name of the image, relative to its images folder


class ExportError(DtoError):
    """An export that cannot be made; the message says why and the next step."""


@dataclass(frozen=True)
class LabelFile:
    """One label shard as its receipt describes it."""

    path: Location
    shard: int  # of the manifest
    rows: int
    sha256: str  # of the file's bytes


@dataclass(frozen=True)
class RunLabels:
    """What an export takes from one run."""

    name: str  # the run's folder, for messages
    subset: str
    manifest: Location  # where run.json says it is
    manifest_fingerprint: str
    config_hash: str
    shards: int  # of the manifest; more than `files` where the run is not finished
    files: tuple[LabelFile, ...]  # in shard order
    named_manifests: tuple[Location, ...] = ()  # where its manifest may be, in place of what run.json says


def check_label_file(run: RunLabels, file: LabelFile) -> None:
    """Refuse a label file that is not the one its receipt was written for.

    Raises:
        ExportError: missing, or of another hash.
    """
    advice = "delete the shard's receipt and run again"
    try:
        found = sha256_of(file.path)
    except FileNotFoundError as error:
        raise ExportError(f"{file.path} of run {run.name} is missing though its receipt exists; {advice}") from error
    if found != file.sha256:
        raise ExportError(
            f"{file.path} has sha256 {found[:16]}..., its receipt says {file.sha256[:16]}...: "
            f"the file was changed or damaged; {advice}"
        )


def read_tables(run: RunLabels, columns: Sequence[str] | None = None, image_files: bool = False) -> Iterator[pa.Table]:
    """The labels of a run, one row group at a time, in shard order.

    Args:
        columns: Parquet's names of the columns to read, None = all; parts of persons as ``persons.list.element.pose``.
        image_files: add the column `IMAGE_FILE` from the run's manifest.

    Raises:
        LabelsError: a file that cannot be read, or has other rows than its receipt says.
        ExportError, ManifestError: the manifest is needed and cannot be used.
    """
    manifest = open_manifest(run) if image_files else None
    wanted = columns if columns is None or not image_files else list(dict.fromkeys([*columns, "image_id"]))
    for file in run.files:
        names = manifest.read_shard(file.shard, ["image_id", IMAGE_FILE]) if manifest is not None else None
        yield from _read_file(file, wanted, names)


def read_footer(run: RunLabels) -> dict[str, str]:
    """Footer text of the run's first label file; {} if it has none."""
    if not run.files:
        return {}
    with open_labels(run.files[0].path) as opened:
        return footer_text(opened)


def _read_file(file: LabelFile, columns: Sequence[str] | None, names: pa.Table | None) -> Iterator[pa.Table]:
    with open_labels(file.path) as opened:
        if opened.metadata.num_rows != file.rows:
            raise LabelsError(f"{file.path} has {opened.metadata.num_rows} rows, its receipt says {file.rows}")
        start = 0
        for group in range(opened.num_row_groups):
            try:
                table = fill_added(opened.read_row_group(group, columns=columns), columns)
            except READ_ERRORS as error:
                raise LabelsError(f"{file.path} is damaged ({error}); delete it and run again") from error
            if names is not None:
                table = _with_image_files(file, table, names.slice(start, table.num_rows))
            start += table.num_rows
            yield table


def _with_image_files(file: LabelFile, table: pa.Table, names: pa.Table) -> pa.Table:
    if not table["image_id"].combine_chunks().equals(names["image_id"].combine_chunks()):
        raise ExportError(f"{file.path} holds other images than shard {file.shard} of its manifest")
    return table.append_column(IMAGE_FILE, names[IMAGE_FILE])


def open_manifest(run: RunLabels) -> Manifest:
    """The manifest of a run, which names its image files and its label file.

    Raises:
        ExportError: it is gone, or is another one.
    """
    try:
        return find_manifest(run.manifest, as_location(run.name), run.manifest_fingerprint, run.named_manifests)
    except ManifestError as error:
        raise ExportError(f"the manifest of run {run.name} is needed for the names of its files: {error}") from error
