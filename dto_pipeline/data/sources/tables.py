"""Parquet files of people, one row each, as predictions and sidecars are: unpacked once, mapped, read in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dto_pipeline.data.columns import single_array
from dto_pipeline.data.parquet import READ_ERRORS, check_room, open_parquet
from dto_pipeline.data.scratch import FlatColumn
from dto_pipeline.data.sources.rows import LabelFileError

Shapes = Mapping[str, tuple[tuple[int, ...], ...]]  # column of numbers -> shapes a row may have
_BATCH_ROWS = 4096
_PRECISE = ("label_row", "intrinsics", "focal")  # columns kept in float64


@dataclass(frozen=True)
class PeopleTable:
    """N rows; columns that hold nothing but nulls are absent."""

    num_rows: int
    numbers: dict[str, np.ndarray]  # name -> (N, *shape), NaN = null
    images: pa.StringArray  # N names, in memory; of no column, none
    mask_lengths: np.ndarray  # (N + 1,) int64 bytes of each row's run lengths, -1 = null, as of the last one, "row -1"
    mask_starts: np.ndarray  # (N + 1,) int64 where they begin in `mask_bytes`
    mask_bytes: np.ndarray  # uint8

    def masks(self, index: np.ndarray) -> pa.BinaryArray:
        """Run lengths of rows (n,) int; null = none, as of row -1.

        Raises:
            LabelFileError: they cannot be masks, so long are they.
        """
        starts, lengths = self.mask_starts[index], np.maximum(self.mask_lengths[index], 0)
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        if offsets[-1] > np.iinfo(np.int32).max:
            raise LabelFileError(f"{index.size} masks hold {offsets[-1]} bytes; expected run lengths, far below 2 GiB")
        letters = np.asarray(self.mask_bytes[np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)])
        parts = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(letters)]
        return pc.if_else(
            pa.array(self.mask_lengths[index] >= 0), pa.Array.from_buffers(pa.binary(), index.size, parts), None
        )


def read_table(path: Path, check: Callable[[pa.Schema], object], shapes: Shapes) -> PeopleTable:
    """Read the columns ``image`` and ``mask_rle`` and those of `shapes`, as far as they are there.

    Args:
        check: looks at the schema first, and raises where columns are missing or unknown.

    Raises:
        LabelFileError: missing, damaged, or columns of other types than documented.
    """
    columns: dict[str, FlatColumn] = {}
    images, lengths, letters, done = [pa.array([], pa.string())], [np.zeros(0, np.int64)], FlatColumn("u1"), 0
    with open_parquet(path, LabelFileError) as file:
        check(file.schema_arrow)
        part = ""  # the column in work
        try:
            for batch in file.iter_batches(_BATCH_ROWS):
                for name in [name for name in batch.schema.names if name in shapes]:
                    part = f", column {name!r},"
                    _append(path, name, batch.column(name), columns, done, shapes[name])
                if "image" in batch.schema.names:
                    part = ", column 'image',"
                    images.append(batch.column("image").cast(pa.string()))
                if "mask_rle" in batch.schema.names:
                    part = ", column 'mask_rle',"
                    masks = batch.column("mask_rle").cast(pa.binary())
                    letters.append(np.frombuffer(b"".join(masks.drop_null().to_pylist()), np.uint8))
                    lengths.append(pc.binary_length(masks).fill_null(-1).to_numpy(zero_copy_only=False))
                else:
                    lengths.append(np.full(len(batch), -1))
                done, part = done + len(batch), ""
            names = single_array(pa.chunked_array(images))
            names.validate(full=True)  # text that is not UTF-8 would be found when somebody reads it
        except READ_ERRORS as error:
            check_room(error)
            raise LabelFileError(f"{path}{part} is damaged or of other types than documented ({error})") from error
    if names.null_count:
        raise LabelFileError(f"{path}: column 'image' holds {names.null_count} nulls; expected none")
    numbers = {name: column.mapped() for name, column in columns.items()}
    told = np.concatenate([*lengths, [-1]])
    starts = np.cumsum(np.maximum(told, 0)) - np.maximum(told, 0)
    return PeopleTable(done, numbers, names, told, starts, letters.mapped())


def _append(
    path: Path,
    name: str,
    column: pa.Array,
    columns: dict[str, FlatColumn],
    start: int,
    shapes: tuple[tuple[int, ...], ...],
) -> None:
    """One batch of a column, from row `start` on; nulls become NaN."""
    told = column.drop_null()
    if not len(told) and name not in columns:  # how many numbers a row holds shows in another batch, or never
        return
    kind, tail = column.type, tuple[int, ...]()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        tail = tuple(np.unique(pc.list_value_length(told).to_numpy(zero_copy_only=False)).tolist())
        told = told.flatten()
    tail = tail if len(told) or name not in columns else columns[name].tail
    if tail not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise LabelFileError(f"{path}, column {name!r}: rows of {tail} numbers; expected {wanted} in every row")
    if name not in columns:
        columns[name] = FlatColumn("f8" if name in _PRECISE else "f4", tail)
        for first in range(0, start, _BATCH_ROWS):
            columns[name].append(np.full((min(_BATCH_ROWS, start - first), *tail), np.nan))
    if tail != columns[name].tail:
        found = f"rows from {start} hold {tail} numbers; before {columns[name].tail}"
        raise LabelFileError(f"{path}, column {name!r}: {found}; expected one shape in every row")
    values = np.full((len(column), *tail), np.nan)
    given = told.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False).reshape(-1, *tail)
    values[column.is_valid().to_numpy(zero_copy_only=False)] = given
    columns[name].append(values)
