"""Arrays of npy and npz files. Contents are read only if shape and type in the header are right; no pickles."""

from __future__ import annotations

import io
import math
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from tokenize import TokenError
from typing import IO, Any, BinaryIO

import numpy as np

Check = Callable[[str, tuple[int, ...], np.dtype], None]  # key, shape and type; raises ValueError where they are wrong
_CHUNK = 1 << 20  # bytes read at once
_MOST_HEADER = 1 << 16  # bytes of an npy header; numpy parses up to 10,000
_PARSING = threading.Lock()  # ast.parse, which reads headers, fails at times in several threads (CPython issue 106905)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in the text of an error
BROKEN = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, OverflowError),
    *(RecursionError, SyntaxError, TypeError, KeyError, TokenError, MemoryError),
)  # errors of zipfile and numpy's header parser on a damaged file, besides ValueError and OSError


def read_npy(source: BinaryIO, check: Check) -> np.ndarray:
    """The array of an npy file, in memory: some mounts refuse to map files (GlusterFS, other FUSE).

    Args:
        check: called with key "", shape and type before the contents are read.

    Raises:
        ValueError: a damaged file, or the error of `check`. OSError: it cannot be read.
    """
    with _damage_named("npy"):
        size = source.seek(0, io.SEEK_END)
        source.seek(0)
        return _read_array(source, size, "", check)


def read_npz(source: BinaryIO, keys: Iterable[str], check: Check) -> tuple[dict[str, np.ndarray], list[str]]:
    """Those of `keys` that an npz holds, and the names of all its arrays; other members are never unpacked.

    Raises:
        ValueError, OSError: as `read_npy`.
    """
    with _damage_named("npz"), zipfile.ZipFile(source) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        arrays = {}
        for key in keys:
            if key in members:
                with archive.open(members[key]) as stream:
                    arrays[key] = _read_array(stream, members[key].file_size, key, check)
        return arrays, list(members)


@contextmanager
def _damage_named(kind: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise ValueError(f"not a whole {kind}: {str(error) or type(error).__name__}") from error


def _read_array(stream: IO[bytes], size: int, key: str, check: Check) -> np.ndarray:
    shape, fortran, dtype = read_header(stream)
    if dtype.kind not in "biuf":
        raise ValueError(f"its type is {dtype}; expected numbers (objects are pickles: allow_pickle is never set)")
    check(key, shape, dtype)
    return read_flat(stream, size, shape, dtype).reshape(shape, order="F" if fortran else "C")


def read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether stored in Fortran's order, and type from the header of an npy. Raises: ValueError, `BROKEN`."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it is a npy of format {version}; expected 1.0, 2.0 or 3.0")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    prefix = bytes(stream.read(2 if version == (1, 0) else 4))
    length = int.from_bytes(prefix, "little")
    if length > _MOST_HEADER:  # a file may claim one of 4 GiB
        raise ValueError(f"its header of {length} bytes is longer than any; expected at most {_MOST_HEADER}")
    header = io.BytesIO(prefix + bytes(stream.read(length)))
    try:
        with _PARSING:
            return read(header)
    except ValueError as error:  # its text may end up in labels, which are equal on every machine
        raise ValueError(_ADDRESS.sub("", str(error))) from error


def read_flat(stream: Any, size: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The numbers that follow a header, in the file's order; no memory is taken for more than its `size` bytes.

    Raises:
        ValueError: there are fewer than the header says.
    """
    expected, filled = math.prod(shape) * dtype.itemsize, size
    if expected <= size and min(shape, default=0) >= 0 and dtype.itemsize:
        flat, filled = np.empty(math.prod(shape), dtype), 0
        buffer = flat.view(np.uint8).data
        while filled < expected and (count := stream.readinto(buffer[filled : filled + _CHUNK])):
            filled += count
        if filled == expected:
            return flat
    raise ValueError(f"it holds {filled} bytes; its header {shape} {dtype.str} expects {expected}")
