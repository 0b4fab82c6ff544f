"""Columns of numbers too many for memory, in temporary files without a name, mapped read-only.

A file goes with the last map of it, even where the process is killed.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from typing import IO

import numpy as np

from dto_pipeline.data.files import NO_MAPS, naming_full_disk
from dto_pipeline.errors import DtoError


def scratch_file() -> IO[bytes]:
    """An empty file without a name that can be mapped. Raises: DtoError: no folder for one, or it maps no files."""
    try:
        stream = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        stream.write(b"x")
        stream.flush()
        mmap.mmap(stream.fileno(), 1, access=mmap.ACCESS_READ).close()
        stream.truncate(stream.seek(0))
        return stream
    except FileNotFoundError as error:  # no usual place can be written
        raise DtoError(f"no temporary file can be made ({error.strerror}); set TMPDIR to a folder with room") from error
    except OSError as error:
        if error.errno not in NO_MAPS:
            raise
        place, advice = tempfile.gettempdir(), "set TMPDIR to a folder of a local disk"
        raise DtoError(f"{place}, where temporary files go, cannot map files ({error.strerror}); {advice}") from error


class FlatColumn:
    """A column of rows of shape `tail`, appended to and then mapped."""

    def __init__(self, dtype: str, tail: tuple[int, ...] = ()) -> None:
        self.dtype, self.tail, self.rows = np.dtype(dtype), tail, 0
        self._stream = scratch_file()

    def append(self, values: np.ndarray) -> None:
        """(n, *tail) rows; what is beyond the type becomes infinite."""
        with np.errstate(over="ignore"), naming_full_disk(tempfile.gettempdir()):
            self._stream.write(np.ascontiguousarray(values, self.dtype).tobytes())
        self.rows += len(values)

    def mapped(self) -> np.ndarray:
        """(rows, *tail) read-only; nothing can be appended any more."""
        with naming_full_disk(tempfile.gettempdir()), self._stream as stream:
            stream.flush()
            if not self.rows or not math.prod(self.tail):
                return np.zeros((self.rows, *self.tail), self.dtype)
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            return np.ndarray((self.rows, *self.tail), self.dtype, data)
