"""The sidecar: what a label file lacks, as a Parquet file joined by label row.

| column      | type                     | meaning                                                        |
|-------------|--------------------------|----------------------------------------------------------------|
| label_row   | int64, required, unique  | row of the label file, from 0                                  |
| age_years   | float32                  | estimated age [years], 0 .. 130                                |
| male_prob   | float32                  | probability of being male, 0 .. 1                              |
| det_score   | float32                  | score of the detector that found the person                    |
| mask_rle    | binary                   | instance mask of the visible part, COCO compressed run lengths |
| mask_height | int32                    | height of the mask [px] = height of the image                  |
| mask_width  | int32                    | width of the mask [px] = width of the image                    |

Every column but the first may be left out, every value but a label_row may be null or NaN: unknown. Label rows without
a sidecar row are unknown too. An age or probability out of range counts as unknown and is counted in the report; a
damaged mask makes its person unusable. Unknown columns, unknown or repeated label rows are refused. Rows in label order
are read fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dto_pipeline.data.columns import build_table, single_array
from dto_pipeline.data.files import check_maps, commit_over, staged, temporary_folder
from dto_pipeline.data.parquet import READ_ERRORS, check_room, open_parquet, writer_settings
from dto_pipeline.data.rle import measure_rles
from dto_pipeline.errors import DtoError

SIDECAR_SCHEMA = pa.schema(
    [
        pa.field("label_row", pa.int64(), nullable=False),
        ("age_years", pa.float32()),
        ("male_prob", pa.float32()),
        ("det_score", pa.float32()),
        ("mask_rle", pa.binary()),
        ("mask_height", pa.int32()),
        ("mask_width", pa.int32()),
    ]
)
MASK_DAMAGED = "instance mask is damaged: its run lengths do not fill mask_height x mask_width"
_MAX_AGE = 130.0  # [years]
_BATCH_ROWS = 4096


class SidecarError(DtoError, ValueError):
    """A sidecar that cannot be joined; names file, column, what was found and what was expected."""


@dataclass(frozen=True)
class SidecarRows:
    """What the sidecar says about n label rows; NaN, null and 0 mean unknown."""

    age_years: np.ndarray  # (n,) float32 [years]
    male_prob: np.ndarray  # (n,) float32
    det_score: np.ndarray  # (n,) float32
    mask_rle: pa.BinaryArray  # n, null = none
    mask_height: np.ndarray  # (n,) int32 [px], 0 = none
    mask_width: np.ndarray  # (n,) int32 [px], 0 = none
    mask_damaged: np.ndarray  # (n,) bool
    mask_empty: np.ndarray  # (n,) bool: sound, but no pixel
    notes: dict[str, int] = field(default_factory=dict)  # kind of value taken as unknown -> how many


class Sidecar:
    """An open sidecar; owns a temporary copy in Arrow's own format, whose rows can be mapped in any order.

    Args:
        path: Parquet file, or None for a sidecar that knows nothing.
        num_rows: rows of the label file.

    Raises:
        SidecarError: missing, or see the module for what is refused.
    """

    def __init__(self, path: Path | None, num_rows: int) -> None:
        self.path = path
        self._folder = temporary_folder("dto-sidecar-")
        self._place = np.full(num_rows, -1, dtype=np.int64)  # position in the sidecar of each label row
        self._batches: list[pa.RecordBatch] = []
        if path is not None:
            try:
                self._load(path)
            except BaseException:
                self._folder.cleanup()
                raise
        self._starts = np.cumsum([0, *(len(batch) for batch in self._batches)])

    def rows(self, index: np.ndarray) -> SidecarRows:
        """What is known about the label rows `index` (n,) int, in this order."""
        return judge_seen(self._take(self._place[index]))

    def __enter__(self) -> Sidecar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches = []
        self._folder.cleanup()

    def _load(self, path: Path) -> None:
        with open_parquet(path, SidecarError) as file:
            present = _check_columns(path, file.schema_arrow)
            check_maps(self._folder.name)
            copy = Path(self._folder.name) / "rows.arrow"
            try:
                with pa.OSFile(str(copy), "wb") as sink, pa.ipc.new_file(sink, SIDECAR_SCHEMA) as writer:
                    for batch in file.iter_batches(_BATCH_ROWS, columns=present):
                        writer.write_batch(_complete(batch))
            except READ_ERRORS as error:
                check_room(error)
                types = ", ".join(f"{f.name} {f.type}" for f in SIDECAR_SCHEMA)
                raise SidecarError(f"{path}: {error}; expected whole columns of the types {types}") from error
        reader = pa.ipc.open_file(pa.memory_map(str(copy)))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        label_row = np.concatenate([b.column("label_row").to_numpy() for b in self._batches] or [self._place[:0]])
        self._place[_check_label_rows(path, label_row, self._place.size)] = np.arange(label_row.size)

    def _take(self, place: np.ndarray) -> pa.Table:
        """Sidecar rows at these positions, a row of nulls where -1."""
        found = np.flatnonzero(place >= 0)
        which = np.searchsorted(self._starts, place[found], side="right") - 1
        order = np.argsort(which, kind="stable")
        edges = np.flatnonzero(np.diff(which[order], prepend=-1))
        pieces = []
        for members in np.split(order, edges[1:]) if found.size else []:
            batch = which[members[0]]
            pieces.append(self._batches[batch].take(pa.array(place[found[members]] - self._starts[batch])))
        back = np.full(place.size, -1, dtype=np.int64)
        back[found[order]] = np.arange(found.size)
        table = pa.Table.from_batches(pieces, schema=SIDECAR_SCHEMA).combine_chunks()
        return table.take(pa.array(back, mask=back < 0))


def write_sidecar(
    path: Path,
    label_row: np.ndarray,
    *,
    age_years: np.ndarray | None = None,
    male_prob: np.ndarray | None = None,
    det_score: np.ndarray | None = None,
    mask_rle: Sequence[bytes | None] | None = None,
    mask_height: np.ndarray | None = None,
    mask_width: np.ndarray | None = None,
) -> None:
    """Write a sidecar for n people, replacing an older one; see the module for the columns.

    Args:
        label_row: (n,) int.
        age_years, male_prob, det_score: (n,) float or None; NaN = unknown.
        mask_rle: n counts strings of `data.rle.encode_rle`, None = no mask.
        mask_height, mask_width: (n,) int [px].
    """
    given = {
        "label_row": label_row,
        "age_years": age_years,
        "male_prob": male_prob,
        "det_score": det_score,
        "mask_rle": mask_rle,
        "mask_height": mask_height,
        "mask_width": mask_width,
    }
    columns = {name: value for name, value in given.items() if value is not None}
    schema = pa.schema([field for field in SIDECAR_SCHEMA if field.name in columns])
    table = build_table(schema, columns)
    with staged(path) as temporary:
        pq.write_table(table, temporary, row_group_size=_BATCH_ROWS, **writer_settings(schema))
        commit_over(temporary, path)


def _check_columns(path: Path, found: pa.Schema) -> list[str]:
    unknown = [name for name in found.names if name not in SIDECAR_SCHEMA.names]
    if unknown or "label_row" not in found.names:
        raise SidecarError(f"{path}: columns {found.names}; expected label_row and any of {SIDECAR_SCHEMA.names[1:]}")
    return found.names


def _complete(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with all columns of the schema, in its types; absent columns are null."""
    columns = [
        batch.column(f.name).cast(f.type) if f.name in batch.schema.names else pa.nulls(len(batch), f.type)
        for f in SIDECAR_SCHEMA
    ]
    if columns[0].null_count:
        raise pa.ArrowInvalid("column 'label_row' holds nulls")
    return pa.RecordBatch.from_arrays(columns, schema=SIDECAR_SCHEMA)


def _check_label_rows(path: Path, label_row: np.ndarray, num_rows: int) -> np.ndarray:
    outside = label_row[(label_row < 0) | (label_row >= num_rows)]
    if outside.size:
        found = f"{outside.size} label rows such as {outside[0]}"
        raise SidecarError(f"{path}: {found}; expected 0 .. {num_rows - 1}, does it belong to this label file?")
    counts = np.bincount(label_row, minlength=num_rows)
    if counts.max() > 1:
        found = f"{int((counts > 1).sum())} label rows more than once, such as {int(counts.argmax())}"
        raise SidecarError(f"{path}: names {found}; expected each at most once")
    return label_row


def judge_seen(table: pa.Table) -> SidecarRows:
    """Numbers out of range become unknown, damaged and empty masks are marked."""
    notes: dict[str, int] = {}
    age = _in_range(table, "age_years", 0.0, _MAX_AGE, notes)
    male = _in_range(table, "male_prob", 0.0, 1.0, notes)
    rle = single_array(table["mask_rle"])
    height, width = (_numbers(table, name, 0) for name in ("mask_height", "mask_width"))
    foreground, total = _measure(rle)
    has_mask = rle.is_valid().to_numpy(zero_copy_only=False)
    fills = (height > 0) & (width > 0) & (total == height.astype(np.int64) * width)
    return SidecarRows(
        age_years=age,
        male_prob=male,
        det_score=_numbers(table, "det_score", np.nan),
        mask_rle=rle,
        mask_height=np.where(has_mask, height, 0).astype(np.int32),
        mask_width=np.where(has_mask, width, 0).astype(np.int32),
        mask_damaged=has_mask & ~fills,
        mask_empty=has_mask & fills & (foreground == 0),
        notes=notes,
    )


def _numbers(table: pa.Table, name: str, missing: float) -> np.ndarray:
    return single_array(table[name]).fill_null(missing).to_numpy(zero_copy_only=False)


def _in_range(table: pa.Table, name: str, low: float, high: float, notes: dict[str, int]) -> np.ndarray:
    values = _numbers(table, name, np.nan)
    bad = ~np.isnan(values) & ~((values >= low) & (values <= high))
    if bad.any():
        notes[f"{name} outside {low:g} .. {high:g}, taken as unknown"] = int(bad.sum())
    return np.where(bad, np.float32(np.nan), values)


def _measure(rle: pa.BinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """Foreground and total pixels of each mask, -1 where null or damaged."""
    _, offsets, data = rle.buffers()
    cuts = np.frombuffer(offsets, dtype=np.int32)[rle.offset : rle.offset + len(rle) + 1].astype(np.int64)
    letters = np.frombuffer(data, dtype=np.uint8) if data is not None else np.zeros(0, dtype=np.uint8)
    return measure_rles(letters, cuts)
