"""npz files written piece by piece: a zip of npy members whose shapes are known beforehand.

Knows zip and npy; knows no key. Members are stored plainly (floats hardly shrink), with a fixed date, so equal arrays
give equal bytes; any member may pass 4 GiB.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can tell


@contextmanager
def create_npz(path: Path) -> Iterator[zipfile.ZipFile]:
    """A new npz to fill with `open_member`."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        yield archive


@contextmanager
def open_member(
    archive: zipfile.ZipFile, key: str, dtype: np.dtype, shape: tuple[int, ...], packed: bool = False
) -> Iterator[IO[bytes]]:
    """A stream for the contents of array `key`, its npy header written.

    Args:
        dtype: of the array; object means that a pickle follows.
        shape: of the whole array; the caller writes exactly so many values, row-major.
        packed: deflate it (text of fixed width is mostly zeros).
    """
    info = zipfile.ZipInfo(f"{key}.npy", _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    info.external_attr = 0o644 << 16
    with archive.open(info, "w", force_zip64=True) as stream:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        yield stream
