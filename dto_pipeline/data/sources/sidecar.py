"""The sidecar: what a label file lacks, as a Parquet file joined by label row.

| column      | type                     | meaning                                                         |
|-------------|--------------------------|---------------------------------------------------------------- |
| label_row   | int64, required, unique  | row of the label file, from 0                                   |
| age_years   | float32                  | estimated age [years], 0 .. 130                                 |
| male_prob   | float32                  | probability of being male, 0 .. 1                               |
| det_score   | float32                  | score of the detector that found the person                     |
| mask_rle    | binary                   | instance mask of the visible part, COCO compressed run lengths  |
| mask_height | int32                    | height of the mask [px] = height of the image                   |
| mask_width  | int32                    | width of the mask [px] = width of the image                     |

Every column but the first may be left out, and every value but a label_row may be null or NaN: unknown, as for label
rows without a sidecar row. An age or probability out of range is taken as unknown and counted in the report; a damaged
mask makes its person unusable. Unknown columns and unknown or repeated label rows are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import build_table
from dto_pipeline.data.files import replaced
from dto_pipeline.data.parquet import new_parquet
from dto_pipeline.data.sources.rows import LabelFileError, SeenRows, judge_seen, read_table, take_masks

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
_NUMBERS = [name for name in SIDECAR_SCHEMA.names if name != "mask_rle"]
_ROWS_PER_GROUP = 4096


class Sidecar:
    """An open sidecar of a label file of `num_rows` rows; without a path nothing is known about them.

    Raises: LabelFileError: it is missing or damaged, or holds what the module says is refused.
    """

    def __init__(self, path: Path | None, num_rows: int) -> None:
        self.path, self._masks, self._columns = path, None, dict[str, np.ndarray]()
        self._place = np.full(num_rows, -1, dtype=np.int64)  # row of the sidecar of each label row
        if path is not None:
            table = read_table(path, self._check_columns, dict.fromkeys(_NUMBERS, ((),)))
            rows = self._check_rows(table.columns.get("label_row", np.zeros(len(table.masks))))
            self._place[rows] = np.arange(len(rows))
            self._masks = table.masks
            self._columns = {name: np.append(values, np.nan) for name, values in table.columns.items()}  # at -1

    def rows(self, index: np.ndarray) -> SeenRows:
        """What is known about the label rows `index` (n,) int, in this order."""
        place = self._place[index]
        columns = {name: values[place].astype(np.float32) for name, values in self._columns.items()}
        return judge_seen(columns, take_masks(self._masks, place))

    def _check_columns(self, found: pa.Schema) -> None:
        if not set(found.names) <= set(SIDECAR_SCHEMA.names) or "label_row" not in found.names:
            expected = f"expected label_row and any of {SIDECAR_SCHEMA.names[1:]}"
            raise LabelFileError(f"{self.path}: columns {found.names}; {expected}")
        kind = found.field("label_row").type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):  # pandas makes numbers with gaps floats
            raise LabelFileError(f"{self.path}: label_row is {kind}; expected int64")

    def _check_rows(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) int64 label rows. Raises: LabelFileError: one is null, no row of the label file, or given twice."""
        count = self._place.size
        with np.errstate(invalid="ignore"):
            rows = numbers.astype(np.int64)
        wrong = ~((numbers >= 0) & (numbers < count) & (rows == numbers))
        if not wrong.any():
            wrong = np.bincount(rows, minlength=count)[rows] > 1
        if wrong.any():
            found = f"{wrong.sum()} label rows such as {numbers[wrong][0]:g}"
            expected = f"each of 0 .. {count - 1} at most once; does it belong to this label file?"
            raise LabelFileError(f"{self.path}: {found} (nan = null); expected {expected}")
        return rows


def write_sidecar(path: Path, label_row: np.ndarray, **columns: Any) -> None:
    """Write a sidecar for the label rows `label_row` (n,), replacing an older file; columns of None are left out."""
    given = {"label_row": label_row, **{name: value for name, value in columns.items() if value is not None}}
    schema = pa.schema([SIDECAR_SCHEMA.field(name) for name in given])
    with replaced(path) as temporary, new_parquet(temporary, schema) as writer:
        writer.write_table(build_table(schema, given), row_group_size=_ROWS_PER_GROUP)
