"""What a training writes down for people to look at, metrics as CSV and TensorBoard events, and who may write there.

Knows files; decides nothing. After a resume, rows of steps that are done again are dropped, so that a step has one row.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from dto_pipeline.data.files import take_lock, write_bytes_atomic
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import read_regular

TRAINING, HELD_OUT, LOCK_FILE = "metrics.csv", "evaluation.csv", "train.lock"
_MOST_BYTES = 1 << 30  # of a metrics file: ten million rows
_LOG = logging.getLogger(__name__)


class FolderBusy(DtoError, RuntimeError):
    """Another process trains in the folder."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other trainings out of a folder, which is made if missing.

    By the file system's locks, which do not everywhere reach other machines.

    Raises:
        FolderBusy: somebody else is at work in it; the message says who.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+") as stream:
        try:
            locked = take_lock(stream)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise FolderBusy(
                f"{folder} is being trained by {holder}; wait for it, end it, or choose another"
            ) from error
        if not locked:
            _LOG.warning("%s: no file locks here; see to it that only one training runs in this folder", folder)
        stream.truncate(0)
        stream.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield


class Records:
    """The metrics of one training; only one process may write them."""

    def __init__(self, folder: Path, done: int = 0) -> None:
        """`folder` of the training; `done`: steps done, rows of later ones are dropped."""
        self._folder, self._columns = folder, dict[str, list[str]]()
        folder.mkdir(parents=True, exist_ok=True)
        for path in (folder / TRAINING, folder / HELD_OUT):
            kept = [row for row in read_rows(path) if row["step"] <= done]
            if kept:
                self._columns[path.name] = list(kept[0])
                write_bytes_atomic(path, "".join([_line(kept[0]), *(_line(row.values()) for row in kept)]).encode())
            else:
                path.unlink(missing_ok=True)
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """One row of `TRAINING` or `HELD_OUT`; the first row of a file decides its columns, what it lacks is NaN."""
        path, row = self._folder / name, {"step": step, **values}
        head = "" if name in self._columns else _line(row)
        columns = self._columns.setdefault(name, list(row))
        with path.open("a") as stream:
            stream.write(head + _line(row.get(key, math.nan) for key in columns))
        for key, value in values.items():
            self._events.add_scalar(f"{path.stem}/{key}", value, step)

    def close(self) -> None:
        """Write the last events; where that fails, say so: the CSV files, written at once, hold the same."""
        try:
            self._events.close()
        except OSError as error:
            _LOG.warning("%s: the last TensorBoard events are lost: %s", self._folder, error)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics file, none where there is no file; what is half written or damaged is left out."""
    try:
        header, *lines = read_regular(path, _MOST_BYTES).decode(errors="replace").splitlines(keepends=True) or [""]
    except FileNotFoundError:  # not yet, or dropped in this moment
        return []
    rows = []
    for line in lines:
        try:
            row = dict(zip(header.strip().split(","), map(float, line.split(",")), strict=True))
        except ValueError:
            continue
        if line.endswith("\n"):
            rows.append(row)
    return rows


def _line(values: Iterable[str | float]) -> str:
    return ",".join(value if isinstance(value, str) else f"{value:.6g}" for value in values) + "\n"
