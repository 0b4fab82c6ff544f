"""What a training writes down for people to look at: metrics as CSV and TensorBoard events, pictures.

Knows files; decides nothing. After a resume, rows of steps that are done again are dropped, so that a step has one row.
"""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.reading import check_regular
from dto_pipeline.view.panel import save_png

TRAINING, HELD_OUT = "metrics.csv", "evaluation.csv"
_LOG = logging.getLogger(__name__)


class Records:
    """The files of one training; only one process may write them."""

    def __init__(self, folder: Path, done: int = 0) -> None:
        """
        Args:
            folder: of the training.
            done: steps done; rows of later steps are dropped.
        """
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._columns = {name: _drop_rows_after(folder / name, done) for name in (TRAINING, HELD_OUT)}
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """One row of `TRAINING` or `HELD_OUT`; the first row of a file decides its columns, what it lacks is NaN."""
        with (self._folder / name).open("a", newline="") as stream:
            writer = csv.writer(stream)
            if not self._columns[name]:
                self._columns[name] = list(values)
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{values.get(key, math.nan):.6g}" for key in self._columns[name])])
        for key, value in values.items():
            self._events.add_scalar(f"{Path(name).stem}/{key}", value, step)

    def draw(self, name: str, step: int, picture: Image.Image) -> None:
        """Keep a picture as pictures/step-N/NAME.png."""
        save_png(picture, self._folder / "pictures" / f"step-{step:08d}" / f"{name}.png")

    def close(self) -> None:
        """Write the last events; where that fails, say so: the CSV files, written at once, hold the same."""
        try:
            self._events.close()
        except OSError as error:
            _LOG.warning("%s: the last TensorBoard events are lost: %s", self._folder, error)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file, none where there is no file; one that is being written is left out."""
    header, rows = _read_whole_rows(path)
    return [dict(zip(header, map(float, row), strict=True)) for row in rows]


def _drop_rows_after(path: Path, step: int) -> list[str]:
    """Keep the header and rows of steps up to `step`; half a row of a killed process goes too.

    Returns:
        The columns besides the step; none where no row is left, and so no file.
    """
    header, rows = _read_whole_rows(path)
    kept = [row for row in rows if int(row[0]) <= step]
    if not kept:
        path.unlink(missing_ok=True)
        return []
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *kept])
    write_bytes_atomic(path, text.getvalue().encode())
    return header[1:]


def _read_whole_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows that end with their line, have all columns and hold numbers; what is damaged is left out."""
    try:
        check_regular(path)
        with path.open(newline="", errors="replace") as stream:
            header, *rows = [*csv.reader(line for line in stream if line.endswith("\n"))] or [[]]
    except FileNotFoundError:  # not yet, or dropped in this moment
        return [], []
    return header, [row for row in rows if len(row) == len(header) and _are_numbers(row)]


def _are_numbers(row: list[str]) -> bool:
    try:
        int(row[0]), [float(value) for value in row]
    except ValueError:
        return False
    return True
