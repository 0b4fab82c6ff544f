"""Label shards: placed scenes in, Parquet of schema `dto-labels/1` out, and back.

Knows how a `PlacedScene` becomes a row; every input image has one, failures too, and people keep their order. Knows no
shard plan and no receipt. Equal input and metadata give identical bytes. Lengths in metres, image positions in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline import __version__
from dto_pipeline.axes import HEIGHT_CLASSES, NUM_BETAS
from dto_pipeline.data.columns import build_table, pick_words, ragged_column, struct_column
from dto_pipeline.data.files import commit_new, staged
from dto_pipeline.data.parquet import (
    READ_ERRORS,
    ROWS_PER_GROUP,
    check_schema,
    footer_text,
    open_parquet,
    writer_settings,
)
from dto_pipeline.data.storage import Location, as_location, open_store, parent_and_name
from dto_pipeline.errors import NO_ROOM, DtoError
from dto_pipeline.schema import (
    COORDINATES,
    IMAGE_COLUMNS,
    LABEL_PERSON,
    LABELS_SCHEMA,
    LABELS_SCHEMA_NAME,
    PERSON_COLUMNS,
    Column,
)

if TYPE_CHECKING:  # a finished run answers without loading PyTorch
    from dto_pipeline.scene import PlacedScene


class LabelsError(DtoError, ValueError):
    """A label file that cannot be used; the message names it and the next step."""


def build_label_table(placed: Sequence[PlacedScene]) -> pa.Table:
    """One row per placed scene, in order.

    Returns:
        Table of `schema.LABELS_SCHEMA`.

    Raises:
        ValueError: a scene whose per-person fields disagree on the number of people, named.
    """
    counts = np.array([item.scene.num_people for item in placed], dtype=np.int64)
    _check_counts(placed, counts)
    people = ragged_column(counts, struct_column(LABEL_PERSON, _person_columns(placed, counts)), _PERSONS_TYPE)
    return build_table(LABELS_SCHEMA, {**_image_columns(placed), "num_persons": counts, "persons": people})


def write_label_shard(table: pa.Table, path: Location, metadata: Mapping[str, str]) -> bool:
    """Write a table of `build_label_table` if there is no file of that name yet.

    Args:
        table: rows of `schema.LABELS_SCHEMA`.
        path: the shard's final name.
        metadata: text for the footer (config hash, shard key, licence ...); schema, pipeline version and coordinate
            convention are added.

    Returns:
        True if this call created the file, False if it existed and was left alone.
    """
    check_schema(path, table.schema, LABELS_SCHEMA, LabelsError)
    footer = {"schema": LABELS_SCHEMA_NAME, "pipeline_version": __version__, "coordinates": COORDINATES, **metadata}
    schema = LABELS_SCHEMA.with_metadata(dict(sorted(footer.items())))
    table = table.replace_schema_metadata(schema.metadata)
    if isinstance(path, Path):
        with staged(path) as temporary:
            try:
                _write_parquet(table, temporary)
            except OSError as error:
                if error.errno in NO_ROOM:
                    raise OSError(error.errno, f"{error.strerror}; {NO_ROOM[error.errno]}", str(path)) from error
                raise
            return commit_new(temporary, path)
    buffer = pa.BufferOutputStream()
    _write_parquet(table, buffer)
    folder, name = parent_and_name(path)
    return open_store(folder).create(name, buffer.getvalue().to_pybytes())


def _write_parquet(table: pa.Table, sink: Path | pa.NativeFile) -> None:
    with pq.ParquetWriter(sink, table.schema, **writer_settings(table.schema)) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)


def open_labels(path: Location) -> pq.ParquetFile:
    """Open a label file to read it piece by piece; errors as `read_labels`. Close it, or use `with`."""
    path = as_location(path)
    file = open_parquet(path, LabelsError)
    name = footer_text(file).get("schema")
    if name != LABELS_SCHEMA_NAME:
        raise LabelsError(f"{path} has schema {name!r}; expected {LABELS_SCHEMA_NAME!r}, is it a label shard?")
    lacking = {column.name for column in IMAGE_COLUMNS if column.added} - set(file.schema_arrow.names)
    known = [field for field in LABELS_SCHEMA if field.name not in lacking]
    check_schema(path, file.schema_arrow, pa.schema(known), LabelsError)
    return file


def fill_added(table: pa.Table, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a label file with null in the columns its version did not know, of `columns` (None = all)."""
    for name in [column.name for column in IMAGE_COLUMNS if column.added]:
        if name not in table.column_names and (columns is None or name in columns):
            before = LABELS_SCHEMA.names[: LABELS_SCHEMA.names.index(name)]
            place, field = sum(other in before for other in table.column_names), LABELS_SCHEMA.field(name)
            table = table.add_column(place, field, pa.nulls(table.num_rows, field.type))
    return table


def read_labels(path: Location) -> pa.Table:
    """All rows of a label file.

    Raises:
        LabelsError: missing, not a whole Parquet file, or not of this schema.
    """
    with open_labels(path) as file:
        try:
            return fill_added(file.read())
        except READ_ERRORS as error:
            raise LabelsError(f"{path} is damaged ({error}); delete it and run again to write it anew") from error


def read_label_metadata(path: Location) -> dict[str, str]:
    """Footer text of a label file (shard key, config hash ...), without reading its rows; errors as `read_labels`."""
    with open_labels(path) as file:
        return footer_text(file)


def undo_betas(betas: np.ndarray, index: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """(n, 11) shapes as they went in: coefficient `index` (n,) becomes `initial` (n,) again where index >= 0."""
    changed = np.flatnonzero(index >= 0)
    betas = betas.copy()
    betas[changed, index[changed]] = initial[changed]
    return betas


_PERSONS_TYPE = LABELS_SCHEMA.field("persons").type


def _check_counts(placed: Sequence[PlacedScene], counts: np.ndarray) -> None:
    for item, people in zip(placed, counts, strict=True):
        found = {len(item.person_status), len(item.person_message), item.transl.shape[0], item.scene.pose.shape[0]}
        if found != {int(people)}:
            raise ValueError(f"{item.scene.image_id}: fields hold {sorted(found)} people; expected {people} in each")


def _image_columns(placed: Sequence[PlacedScene]) -> dict[str, Any]:
    """Columns of the image itself, one entry per scene."""
    intrinsics = np.array([item.scene.intrinsics for item in placed], dtype=np.float64).reshape(-1, 3, 3)
    columns: dict[str, Any] = {"fx": intrinsics[:, 0, 0], "fy": intrinsics[:, 1, 1]}
    columns.update({"cx": intrinsics[:, 0, 2], "cy": intrinsics[:, 1, 2]})
    for column in IMAGE_COLUMNS:
        if column.place:
            columns[column.name] = [take_place(item, column.place) for item in placed]
    return columns


def _person_columns(placed: Sequence[PlacedScene], counts: np.ndarray) -> dict[str, Any]:
    """Columns of all people of all scenes, one after the other."""
    columns = {column.name: _all_people(placed, column) for column in PERSON_COLUMNS if column.place}
    starts = np.cumsum(counts) - counts
    columns["person_index"] = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    before = [item.scene.betas for item in placed]
    columns["beta_init"] = _initial_beta(np.concatenate([*before, np.zeros((0, NUM_BETAS))]), columns["beta_index"])
    heights = np.array([code for item in placed for code in item.height_class], np.int64)
    columns["height_class"] = pick_words((*HEIGHT_CLASSES, None), np.where(heights < 0, len(HEIGHT_CLASSES), heights))
    return columns


def _all_people(placed: Sequence[PlacedScene], column: Column) -> Any:
    """One column of everybody: words as a list; numbers end to end. Scenes that have none: null, NaN, -1 or false."""
    found = [take_place(item, column.place) for item in placed]
    people = [item.scene.num_people for item in placed]
    if column.kind == pa.string():
        told = [[None] * count if words is None else words for words, count in zip(found, people, strict=True)]
        return [word if word is None else str(word) for words in told for word in words]
    shape = (column.kind.list_size,) if pa.types.is_fixed_size_list(column.kind) else ()
    kind = np.dtype((column.kind.value_type if shape else column.kind).to_pandas_dtype())
    unknown = {"f": np.nan, "i": -1, "b": False}[kind.kind]
    arrays = [np.full((n, *shape), unknown, kind) if own is None else own for own, n in zip(found, people, strict=True)]
    return np.concatenate([*arrays, np.zeros((0, *shape), kind)])


def take_place(item: Any, place: str) -> Any:
    """What sits at a place of the column table: fields, entries of dicts (None where there is none) and positions."""
    for part in place.split("."):
        if isinstance(item, Mapping):
            item = item.get(part)
        else:
            item = item[int(part)] if part.isdigit() else getattr(item, part)
    return item


def _initial_beta(betas: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(n,) float32: the input coefficient that was changed, NaN where none was."""
    picked = np.take_along_axis(betas, np.maximum(index, 0).astype(np.int64)[:, None], axis=1)[:, 0]
    return np.where(index < 0, np.float32(np.nan), picked).astype(np.float32)
