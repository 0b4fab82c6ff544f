"""Arrays of npy and npz files, header first: nothing is read before its shape and type were found to be right.

Knows numpy's two containers; knows nothing of what the arrays mean. Only numbers, never objects (pickles).
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from tokenize import TokenError
from typing import IO, BinaryIO

import numpy as np

Check = Callable[[str, tuple[int, ...], np.dtype], None]  # key, shape and type; raises ValueError where they are wrong
_CHUNK = 1 << 20  # bytes read at once
_BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, OverflowError),
    *(RecursionError, SyntaxError, TypeError, KeyError, TokenError),
)  # what zipfile and numpy's header parser raise on a damaged file, besides ValueError and OSError


def read_npy(source: BinaryIO, check: Check) -> np.ndarray:
    """The array of an npy file (key ""), read, not mapped: some mounts refuse to map files.

    Raises:
        ValueError: a damaged file, or what `check` says. OSError: it cannot be read.
    """
    try:
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        return _read_array(source, size, "", check)
    except _BROKEN as error:
        raise ValueError(f"not a whole npy: {_reason(error)}") from error


def read_npz(source: BinaryIO, keys: Iterable[str], check: Check) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of `keys` that an npz holds, and the names of all its arrays; other members are never unpacked.

    Raises:
        ValueError, OSError: as `read_npy`.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            arrays = {}
            for key in keys:
                if key in members:
                    with archive.open(members[key]) as stream:
                        arrays[key] = _read_array(stream, members[key].file_size, key, check)
            return arrays, list(members)
    except _BROKEN as error:
        raise ValueError(f"not a whole npz: {_reason(error)}") from error


def _read_array(stream: IO[bytes], size: int, key: str, check: Check) -> np.ndarray:
    """The array of a stream of `size` bytes."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it is a npy of format {version}; expected 1.0, 2.0 or 3.0")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biuf" or min(shape, default=0) < 0:
        raise ValueError(f"its type is {dtype}; expected numbers (objects are pickles: allow_pickle is never set)")
    check(key, shape, dtype)
    needed = math.prod(shape) * dtype.itemsize
    if needed > size:
        raise ValueError(f"its header {shape} {dtype} expects {needed} bytes, it has {size}")
    flat = np.empty(math.prod(shape), dtype)
    buffer, filled = flat.view(np.uint8).data, 0
    while filled < len(buffer) and (piece := stream.read(min(_CHUNK, len(buffer) - filled))):
        buffer[filled : filled + len(piece)] = piece
        filled += len(piece)
    if filled < len(buffer):
        raise ValueError(f"it holds {filled} of the {needed} bytes of an array {shape} of {dtype}")
    return flat.reshape(shape, order="F" if fortran else "C")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
