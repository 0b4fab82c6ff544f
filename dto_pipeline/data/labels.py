"""Label files: placed scenes written as Parquet of schema `dto-labels/1`, and read back.

The column table in `schema` says where the value of each column is in a `PlacedScene`. Every input image has a row,
failures too, and people keep their order. Equal input and metadata give identical bytes. Metres, pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline import __version__
from dto_pipeline.axes import HEIGHT_CLASSES, NUM_BETAS
from dto_pipeline.data.cameras import camera_columns, read_cameras
from dto_pipeline.data.columns import build_table, pick_words, ragged_column, read_numbers, single_array, struct_column
from dto_pipeline.data.parquet import (
    READ_ERRORS,
    ROWS_PER_GROUP,
    check_file,
    check_schema,
    footer_text,
    open_parquet,
    parquet_leaves,
    writer_settings,
)
from dto_pipeline.data.storage import Location, as_location, find_file
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
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.terminal import progress_bar

if TYPE_CHECKING:  # a finished run answers without loading PyTorch
    from dto_pipeline.scene import PlacedScene


_ADDED = [column.name for column in IMAGE_COLUMNS if column.added]  # columns that older versions did not write


class LabelsError(DtoError, ValueError):
    """A label file that cannot be used; the message names it and the next step."""


def build_label_table(placed: Sequence[PlacedScene]) -> pa.Table:
    """One row of `schema.LABELS_SCHEMA` per placed scene, in order.

    Raises: ValueError: a scene whose per-person fields disagree on the number of people, named.
    """
    counts = np.array([item.scene.num_people for item in placed], dtype=np.int64)
    for item, people in zip(placed, counts, strict=True):
        found = {len(item.person_status), len(item.person_message), item.transl.shape[0], item.scene.pose.shape[0]}
        if found != {int(people)}:
            raise ValueError(f"{item.scene.image_id}: fields hold {sorted(found)} people; expected {people} in each")
    camera = np.array([item.scene.intrinsics for item in placed], dtype=np.float64).reshape(-1, 3, 3)
    columns: dict[str, Any] = {**camera_columns(camera)}
    for column in IMAGE_COLUMNS:
        if column.place:
            columns[column.name] = [take_place(item, column.place) for item in placed]
    kind = LABELS_SCHEMA.field("persons").type
    people = ragged_column(counts, struct_column(LABEL_PERSON, _person_columns(placed, counts)), kind)
    return build_table(LABELS_SCHEMA, {**columns, "num_persons": counts, "persons": people})


def _person_columns(placed: Sequence[PlacedScene], counts: np.ndarray) -> dict[str, Any]:
    """Columns of all people of all scenes, one after the other."""
    columns = {column.name: _all_people(placed, column) for column in PERSON_COLUMNS if column.place}
    columns["person_index"] = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    betas = np.concatenate([*(item.scene.betas for item in placed), np.zeros((0, NUM_BETAS))])
    index = columns["beta_index"]
    changed = np.take_along_axis(betas, np.maximum(index, 0).astype(np.int64)[:, None], axis=1)[:, 0]
    columns["beta_init"] = np.where(index < 0, np.float32(np.nan), changed).astype(np.float32)
    heights = np.array([code for item in placed for code in item.height_class], np.int64)
    columns["height_class"] = pick_words((*HEIGHT_CLASSES, None), np.where(heights < 0, len(HEIGHT_CLASSES), heights))
    return columns


def _all_people(placed: Sequence[PlacedScene], column: Column) -> Any:
    """One column of the people of all scenes; null, NaN, -1 or false in scenes without the value."""
    found = [take_place(item, column.place) for item in placed]
    people = [item.scene.num_people for item in placed]
    if column.kind == pa.string():
        lists = [[None] * count if words is None else words for words, count in zip(found, people, strict=True)]
        return [word if word is None else str(word) for words in lists for word in words]
    shape = (column.kind.list_size,) if pa.types.is_fixed_size_list(column.kind) else ()
    kind = np.dtype((column.kind.value_type if shape else column.kind).to_pandas_dtype())
    unknown = {"f": np.nan, "i": -1, "b": False}[kind.kind]
    arrays = [np.full((n, *shape), unknown, kind) if own is None else own for own, n in zip(found, people, strict=True)]
    return np.concatenate([*arrays, np.zeros((0, *shape), kind)])


def take_place(item: Any, place: str) -> Any:
    """The value at `Column.place`: a path of fields, dict entries (None where missing) and positions."""
    for part in place.split("."):
        if isinstance(item, Mapping):
            item = item.get(part)
        else:
            item = item[int(part)] if part.isdigit() else getattr(item, part)
    return item


def write_label_shard(table: pa.Table, path: Location, metadata: Mapping[str, str]) -> bool:
    """Write rows of `schema.LABELS_SCHEMA` to a file if there is none of that name yet.

    Args:
        metadata: text for the footer (config hash, shard key, licence ...); schema, pipeline version and coordinate
            convention are added.

    Returns:
        True if this call created the file, False if it existed and was left alone.
    """
    check_schema(path, table.schema, LABELS_SCHEMA, LabelsError)
    footer = {"schema": LABELS_SCHEMA_NAME, "pipeline_version": __version__, "coordinates": COORDINATES, **metadata}
    table = table.replace_schema_metadata(dict(sorted(footer.items())))
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema, **writer_settings(table.schema)) as writer:
        writer.write_table(table, row_group_size=ROWS_PER_GROUP)
    store, name = find_file(path)
    try:
        return store.create(name, buffer.getvalue().to_pybytes())
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OSError(error.errno, f"{error.strerror}; {NO_ROOM[error.errno]}", str(path)) from error
        raise


def splice_rows(table: pa.Table, positions: Sequence[int], rows: pa.Table) -> pa.Table:
    """A label table with `rows` in place of those at `positions`. It has one chunk, so that its file has the same bytes
    as if all rows had been built at once. Raises: ValueError: a row would get another image."""
    order = np.arange(table.num_rows)
    order[list(positions)] = table.num_rows + np.arange(rows.num_rows)
    # cast: a table that was read has more metadata in its fields than one that was built
    joined = pa.concat_tables([table.cast(LABELS_SCHEMA), rows.cast(LABELS_SCHEMA)])
    spliced = joined.take(pa.array(order)).combine_chunks()
    if spliced.column("image_id").to_pylist() != table.column("image_id").to_pylist():
        raise ValueError(f"rows {list(positions)} are of other images; expected the same images in the same order")
    return spliced


def read_groups(
    path: Location,
    columns: Sequence[str] | None = None,
    people: Sequence[str] | None = None,
    groups: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """Rows of a label file, one row group (at most 1024 images) after the other.

    Args:
        columns: image columns to read; None = all. Columns that an older version did not write are null.
        people: columns of ``persons`` to read; None = all, () = no ``persons``.
        groups: row groups to read; None = all.

    Raises: LabelsError: missing, not a whole Parquet file, of another schema, or a column that does not exist.
    """
    wanted = _parquet_columns(columns, people)
    with _open_labels(path) as file:
        for group in range(file.num_row_groups) if groups is None else groups:
            try:
                table = file.read_row_group(group, columns=wanted)
            except READ_ERRORS as error:
                raise LabelsError(f"{path} is damaged ({error}); delete it and run again to write it anew") from error
            for name in _ADDED:
                if name not in table.column_names and (columns is None or name in columns):
                    field = LABELS_SCHEMA.field(name)
                    table = table.append_column(field, pa.nulls(table.num_rows, field.type))
            yield table.select([name for name in LABELS_SCHEMA.names if name in table.column_names])


def read_labels(
    *paths: Location, columns: Sequence[str] | None = None, people: Sequence[str] | None = None
) -> pa.Table:
    """All rows of label files, in the given order; arguments and errors as `read_groups`."""
    read = progress_bar(paths, "file") if len(paths) > 1 else paths
    tables = [table for path in read for table in read_groups(path, columns, people)]
    return pa.concat_tables(tables or [LABELS_SCHEMA.empty_table()])


def _open_labels(path: Location) -> pq.ParquetFile:
    path = as_location(path)
    file = open_parquet(path, LabelsError)
    name = footer_text(file).get("schema")
    if name != LABELS_SCHEMA_NAME:
        raise LabelsError(f"{path} has schema {name!r}; expected {LABELS_SCHEMA_NAME!r}, is it a label shard?")
    lacking = set(_ADDED) - set(file.schema_arrow.names)
    known = [field for field in LABELS_SCHEMA if field.name not in lacking]
    check_file(path, file, pa.schema(known), LabelsError)
    return file


def _parquet_columns(columns: Sequence[str] | None, people: Sequence[str] | None) -> list[str] | None:
    """Parquet's names of image columns and of columns of ``persons``; None = all."""
    if columns is None and people is None:
        return None
    known = {"labels": [column.name for column in IMAGE_COLUMNS], "persons": LABEL_PERSON.names}
    columns, people = known["labels"] if columns is None else columns, known["persons"] if people is None else people
    for what, names in (("labels", columns), ("persons", people)):
        if unknown := [name for name in names if name not in known[what]]:
            raise LabelsError(f"{what} have no column {unknown}; columns are {known[what]}")
    parts = pa.struct([LABEL_PERSON.field(name) for name in people])
    return [*columns, *(leaf for leaf, _ in parquet_leaves("persons", pa.list_(parts)))]


def read_label_metadata(path: Location) -> dict[str, str]:
    """Footer text of a label file (shard key, config hash ...); errors as `read_groups`."""
    with _open_labels(path) as file:
        return footer_text(file)


def undo_betas(betas: np.ndarray, index: np.ndarray, initial: np.ndarray) -> np.ndarray:
    """(n, 11) input shapes: `betas` with coefficient `index` (n,) set back to `initial` (n,) where index >= 0."""
    changed = np.flatnonzero(index >= 0)
    betas = betas.copy()
    betas[changed, index[changed]] = initial[changed]
    return betas


def read_placed(path: Location) -> list[PlacedScene]:
    """Every image of a label file. Errors as `read_groups`."""
    return list(placed_scenes(read_labels(path)))


def unpack_covariance(packed: np.ndarray, people: int) -> np.ndarray:
    """(P, P) symmetric matrix from the column `z_covariance` of an image of `people` people."""
    matrix: np.ndarray = np.zeros((people, people), packed.dtype)
    rows, columns = np.tril_indices(people)
    matrix[rows, columns] = matrix[columns, rows] = packed
    return matrix


def placed_scenes(table: pa.Table) -> Iterator[PlacedScene]:
    """The rows of a table of `schema.LABELS_SCHEMA` as scenes."""
    from dto_pipeline.scene import PlacedScene, Scene

    items = single_array(table.column("persons")).flatten()
    columns: dict[str, Any] = {}
    for column in PERSON_COLUMNS:
        found = items.field(column.name)
        columns[column.name] = found.to_pylist() if column.kind == pa.string() else read_numbers(found)
    classes = {name: code for code, name in enumerate(HEIGHT_CLASSES)}
    end = 0
    for row in table.drop_columns(["persons"]).to_pylist():
        start, end = end, end + row["num_persons"]
        people = {name: values[start:end] for name, values in columns.items()}
        fields = _put_back(row, people)
        scene = Scene(
            intrinsics=read_cameras(row),
            betas=undo_betas(people["betas"], people["beta_index"], people["beta_init"]),
            person_problem=[None] * len(people["betas"]),
            **fields.pop("scene"),
        )
        heights = np.array([classes.get(word, -1) for word in people["height_class"]], np.int32)
        yield PlacedScene(scene=scene, height_class=heights, **fields)


def _put_back(row: dict[str, Any], people: dict[str, Any]) -> dict[str, Any]:
    """The values of a row as fields of a `PlacedScene`, at the places that the column table names."""
    fields: dict[str, Any] = {}
    for column, values in [*((c, row) for c in IMAGE_COLUMNS), *((c, people) for c in PERSON_COLUMNS)]:
        if not column.place:
            continue
        value, inner = values[column.name], fields
        *folders, last = column.place.split(".")
        for part in folders:
            inner = inner.setdefault(part, {})
        inner[last] = np.array(value, np.float32) if pa.types.is_list(column.kind) and value is not None else value
    origin = fields["scene"]["origin"]
    fields["scene"]["origin"] = {key: value for key, value in origin.items() if value is not None}
    for name in ("alpha", "beta", "disparity_line"):  # of two columns each
        fields[name] = (fields[name]["0"], fields[name]["1"])
    fields["status"] = ImageStatus(fields["status"])
    fields["person_status"] = [PersonStatus(word) for word in fields["person_status"]]
    return fields
