"""Numbers too many for memory, kept in temporary files and mapped from there, read-only.

The files have no name: they go with the last map of them, whatever becomes of the process.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from dto_pipeline.data.files import NO_MAPS
from dto_pipeline.errors import NO_ROOM, DtoError


def scratch_file() -> IO[bytes]:
    """An empty file without a name that can be mapped. Raises: DtoError: there is no place for one."""
    try:
        stream = tempfile.TemporaryFile()  # noqa: SIM115 - handed over
    except OSError as error:  # where none of the usual places can be written, it is a FileNotFoundError of no file
        raise DtoError(f"no temporary file can be made ({error.strerror}); set TMPDIR to a folder with room") from error
    stream.write(b"x")
    stream.flush()
    try:
        mmap.mmap(stream.fileno(), 1, access=mmap.ACCESS_READ).close()
    except OSError as error:
        if error.errno not in NO_MAPS:
            raise
        place, advice = tempfile.gettempdir(), "set TMPDIR to a folder of a local disk"
        raise DtoError(f"{place}, where temporary files go, cannot map files ({error.strerror}); {advice}") from error
    stream.seek(0)
    stream.truncate()
    return stream


@contextmanager
def naming_place() -> Iterator[None]:
    """Says of a full disk that it is the one of temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:
            raise OSError(error.errno, error.strerror, tempfile.gettempdir()) from error
        raise


class FlatColumn:
    """One column of rows of shape `tail`, appended to and then mapped; in a file `path` where others map it too."""

    def __init__(self, dtype: str, tail: tuple[int, ...] = (), path: Path | None = None) -> None:
        self.dtype, self.tail, self.rows = np.dtype(dtype), tail, 0
        self._stream: IO[bytes] = scratch_file() if path is None else path.open("w+b")

    def append(self, values: np.ndarray) -> None:
        """(n, *tail) rows; what is beyond the type becomes infinite."""
        with np.errstate(over="ignore"), naming_place():
            self._stream.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.rows += len(values)

    def mapped(self) -> np.ndarray:
        """(rows, *tail) read-only; nothing can be appended any more."""
        with naming_place(), self._stream as stream:
            stream.flush()
            return map_numbers(stream, self.dtype, (self.rows, *self.tail))


def map_numbers(stream: IO[bytes] | BinaryIO, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of a file, mapped."""
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
