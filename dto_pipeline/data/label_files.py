"""Many label files at once: found, read as one table, and taken apart into flat numpy columns.

Knows files of schema `dto-labels/1`, whoever wrote them (a run, an export); knows no receipts. Flat columns are what
checks, statistics and training sets compute on: one entry per image or per person, people of all images end to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline import schema
from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.columns import read_vectors, single_array
from dto_pipeline.data.labels import LabelsError, fill_added, read_label_metadata, read_labels
from dto_pipeline.data.parquet import READ_ERRORS, footer_text, open_parquet
from dto_pipeline.data.receipts import find_run_labels
from dto_pipeline.data.storage import Location, as_location, base_name, exists, join_location, list_names
from dto_pipeline.schema import LABEL_PERSON, LABELS_SCHEMA_NAME

PERSON_COLUMNS = tuple(column.name for column in schema.PERSON_COLUMNS)
IMAGE_COLUMNS = tuple(column.name for column in schema.IMAGE_COLUMNS)


@dataclass(frozen=True)
class LabelColumns:
    """N images and their n people as flat arrays; the people of image i are rows starts[i] .. starts[i + 1]."""

    images: dict[str, np.ndarray]  # column -> (N,); words as object arrays of str or None
    people: dict[str, np.ndarray]  # column -> (n,) or (n, k)
    starts: np.ndarray  # (N + 1,) int64

    @property
    def num_images(self) -> int:
        return len(self.starts) - 1

    @property
    def num_people(self) -> int:
        return int(self.starts[-1])

    @property
    def owner(self) -> np.ndarray:
        """(n,) int64: the image of each person."""
        return np.repeat(np.arange(self.num_images), np.diff(self.starts))

    @property
    def intrinsics(self) -> np.ndarray:
        """(N, 3, 3) float64 [px]."""
        return read_cameras(self.images)

    def take(self, images: np.ndarray) -> LabelColumns:
        """The columns of some images (m,), in that order, with their people."""
        lengths = np.diff(self.starts)[images]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        people = np.arange(starts[-1]) + np.repeat(self.starts[:-1][images] - starts[:-1], lengths)
        return LabelColumns(
            images={name: values[images] for name, values in self.images.items()},
            people={name: values[people] for name, values in self.people.items()},
            starts=starts,
        )


def flatten_table(table: pa.Table, people: Iterable[str] = PERSON_COLUMNS) -> LabelColumns:
    """Columns of a label table (or, with other `people`, of a manifest), whichever image columns it has.

    Args:
        table: one row per image, people in ``persons``.
        people: person columns to read.
    """
    persons = single_array(table.column("persons"))
    lengths = persons.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    items = persons.flatten()
    names = [name for name in table.column_names if name != "persons"]
    return LabelColumns(
        images={name: _values(single_array(table.column(name))) for name in names},
        people={name: _values(items.field(name)) for name in people},
        starts=np.concatenate([[0], np.cumsum(lengths)]),
    )


def initial_betas(columns: LabelColumns) -> np.ndarray:
    """(n, 11) float32: the shapes as they went in, by undoing what `beta_index` says was changed."""
    betas, index = columns.people["betas"].copy(), columns.people["beta_index"]
    changed = np.flatnonzero(index >= 0)
    betas[changed, index[changed]] = columns.people["beta_init"][changed]
    return betas


def find_label_files(folder: str | Path) -> list[Location]:
    """Label files at or below a path or URI: the file itself; of a run, or its ``labels``, those that count; of any
    other folder every Parquet file that is one, by name.

    Raises:
        LabelsError: there is none.
    """
    folder = as_location(folder)
    if exists(folder):
        return [folder]
    found = find_run_labels(folder)
    if found is None:
        found = [path for path in _parquet_files(folder) if not base_name(path).startswith(".") and _is_labels(path)]
    if not found:
        raise LabelsError(f"{folder} holds no label file; expected a run, an export in Parquet, or one of their files")
    return found


def check_one_body(paths: Iterable[Location]) -> str:
    """The body model all of these labels belong to; files that tell none say nothing.

    Returns:
        Its sha256 (hex); "" where no file tells.

    Raises:
        LabelsError: two files of different body models, both named; or one that cannot be read.
    """
    told: tuple[Location, str] | None = None
    for path in paths:
        found = read_label_metadata(path).get("body_sha256", "")
        if told and found and found != told[1]:
            raise LabelsError(
                f"{told[0]} was made with the body model of sha256 {told[1]}, {path} with that of {found}: shapes of "
                "one body mean something else in another; take labels of one body model at a time"
            )
        if found and told is None:
            told = path, found
    return told[1] if told else ""


def read_label_files(paths: Sequence[str | Path], columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of several label files as one table, files in the given order.

    Args:
        paths: label files.
        columns: names to read, nested ones as ``persons.list.element.transl``; None = all.

    Raises:
        LabelsError: a file that is missing, damaged or of another schema, or a column that does not exist.
    """
    if columns is None:
        return pa.concat_tables([read_labels(path) for path in paths])
    known = {*IMAGE_COLUMNS, *(person_leaf(name) for name in PERSON_COLUMNS)}
    if unknown := [name for name in columns if name not in known]:
        raise LabelsError(f"labels have no column {unknown}; columns are {sorted(known)}")
    tables = []
    for path in paths:
        with open_parquet(as_location(path), LabelsError) as file:
            try:
                tables.append(fill_added(file.read(columns=list(columns)), columns))
            except READ_ERRORS as error:
                raise LabelsError(f"{path} is damaged ({error}); delete it and run again to write it anew") from error
    return pa.concat_tables(tables)


def person_leaf(name: str) -> str:
    """What `read_label_files` calls a person column; a fixed-size list has one more level. Raises: LabelsError."""
    kind = LABEL_PERSON.field(name).type if name in PERSON_COLUMNS else None
    if kind is None:
        raise LabelsError(f"persons have no column {name!r}; columns are {list(PERSON_COLUMNS)}")
    return f"persons.list.element.{name}" + (".list.element" if pa.types.is_fixed_size_list(kind) else "")


def _parquet_files(folder: Location) -> list[Location]:
    """Every Parquet file below a folder, by name; [] where there is no such folder."""
    try:
        return [join_location(folder, name) for name in sorted(list_names(folder, (".parquet",)))]
    except FileNotFoundError:
        return []


def _is_labels(path: Location) -> bool:
    try:
        with open_parquet(path, LabelsError) as file:
            return footer_text(file).get("schema") == LABELS_SCHEMA_NAME
    except (LabelsError, *READ_ERRORS):
        return False


def _values(column: pa.Array) -> np.ndarray:
    if pa.types.is_fixed_size_list(column.type):
        return read_vectors(column)
    if pa.types.is_boolean(column.type):
        return column.to_numpy(zero_copy_only=False).astype(bool)
    return column.to_numpy(zero_copy_only=False)
