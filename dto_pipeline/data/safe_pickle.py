"""The one door for pickles from the internet: nothing inside them is ever imported or called.

`safe_loads` reads a pickle, `safe_load_npz` and `safe_load_npy` read numpy files whose object arrays are pickles. What
may appear is an allowlist of names; everything else is refused by name. Knows what numpy, scipy and chumpy call their
pickling helpers; knows nothing of what the arrays mean.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from dto_pipeline.data.inert_pickle import load_records
from dto_pipeline.data.inert_records import (
    Allowlist,
    BrokenPickle,
    Limits,
    PickleRefused,
    Role,
    UnsafePickle,
    shown,
)
from dto_pipeline.data.pickled_arrays import build_values, checked_values
from dto_pipeline.reading import check_regular, read_regular

__all__ = [
    "NUMPY_ONLY",
    "SMPL_FILE",
    "Allowlist",
    "BrokenPickle",
    "Limits",
    "PickleRefused",
    "UnsafePickle",
    "safe_load_npy",
    "safe_load_npz",
    "safe_loads",
]

_NUMPY_PACKAGES = ("numpy.core", "numpy._core")  # before and since numpy 2
_BUILTINS = ("__builtin__", "builtins")  # Python 2 and 3

NUMPY_ONLY: Allowlist = {
    ("numpy", "ndarray"): Role.NDARRAY,
    ("numpy", "dtype"): Role.DTYPE,
    ("_codecs", "encode"): Role.ENCODE,
    **{(f"{package}.multiarray", "_reconstruct"): Role.RECONSTRUCT for package in _NUMPY_PACKAGES},
    **{(f"{package}.multiarray", "scalar"): Role.SCALAR for package in _NUMPY_PACKAGES},
    **{(f"{package}.numeric", "_frombuffer"): Role.FROMBUFFER for package in _NUMPY_PACKAGES},
    **{(module, "bytes"): Role.BYTES for module in _BUILTINS},
}
"""Plain containers and numpy arrays."""

SMPL_FILE: Allowlist = {
    **NUMPY_ONLY,
    ("chumpy.ch", "Ch"): Role.CHUMPY,
    ("chumpy.reordering", "Select"): Role.SELECT,
    ("scipy.sparse.csc", "csc_matrix"): Role.CSC,
    ("scipy.sparse._csc", "csc_matrix"): Role.CSC,
    ("scipy.sparse._csc", "csc_array"): Role.CSC,
    ("copy_reg", "_reconstructor"): Role.RECONSTRUCTOR,
    ("copyreg", "_reconstructor"): Role.RECONSTRUCTOR,
    **{(module, "object"): Role.OBJECT for module in _BUILTINS},
    **{(module, "set"): Role.SET for module in _BUILTINS},
}
"""The above and what the official SMPL files hold."""

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_CHUNK = 2**20  # bytes read at once
_BROKEN_FILE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError),
    *(OverflowError, MemoryError, RecursionError, SyntaxError, TypeError, TokenError),
)  # what zipfile and numpy's header parser raise on a damaged file


def safe_loads(
    data: bytes,
    allow: Allowlist = NUMPY_ONLY,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    object_arrays: bool = False,
    where: str = "pickle",
) -> Any:
    """Values of a pickle of protocol 0-5, nothing run.

    Args:
        data: the whole stream; Python-2 strings are decoded as latin1.
        allow: the names that may appear.
        object_arrays: allow numpy arrays of Python objects, under the same rules.
        where: file and member, for messages.

    Returns:
        Plain Python containers and values, and numpy arrays (writable, native byte order); numpy scalars come back as
        Python numbers, chumpy and sparse objects as dense arrays.

    Raises:
        UnsafePickle: something that is not allowed, named.
        BrokenPickle: truncated, malformed, contradictory or too large.
    """
    records = load_records(data, allow, limits, where)
    try:
        return build_values(records, limits, object_arrays)
    except PickleRefused as error:
        raise type(error)(f"{where}: {error}") from error


def safe_load_npz(
    path: str | Path | IO[bytes],
    keys: Collection[str] | None = None,
    allow: Allowlist = NUMPY_ONLY,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    where: str = "",
) -> dict[str, Any]:
    """Arrays of an npz file; object arrays go through the inert unpickler.

    Args:
        path: the file, or a seekable stream of its bytes.
        keys: read only these; None = all. A key that is not there is left out.
        limits: `max_array_bytes` also bounds what the read members claim to unpack to, together.
        where: the file in messages; "" = its path.

    Returns:
        key -> array (0-d object arrays, numpy's way to store one object, come back as arrays of shape ()).

    Raises:
        UnsafePickle, BrokenPickle: as `safe_loads`; also for a damaged archive, members with a path in their name,
            members that occur twice, and archives that unpack to too much.
        OSError: the file cannot be read.
    """
    arrays: dict[str, Any] = {}
    where = where or str(path)
    try:
        if isinstance(path, str | Path):
            check_regular(path)
        with zipfile.ZipFile(path) as archive:
            for member in _checked_members(archive, where, keys, limits):
                with archive.open(member) as stream:
                    inside = f"{where}: {member.filename}"
                    arrays[_key(member)] = _read_npy(stream, member.file_size, allow, limits, inside)
    except PickleRefused:
        raise
    except _BROKEN_FILE as error:
        raise BrokenPickle(f"{where}: not a sound npz file ({type(error).__name__}: {shown(str(error))})") from error
    return arrays


def safe_load_npy(path: str | Path, limits: Limits = Limits()) -> np.ndarray:  # noqa: B008 - frozen
    """The array of an npy file: numbers, booleans or strings, no objects.

    Raises:
        UnsafePickle, BrokenPickle, OSError: as `safe_load_npz`.
    """
    data = read_regular(path, max(limits.max_stream_bytes, limits.max_array_bytes))
    return _read_npy(io.BytesIO(data), len(data), None, limits, str(path))


def _key(member: zipfile.ZipInfo) -> str:
    return member.filename.removesuffix(".npy")


def _checked_members(
    archive: zipfile.ZipFile, where: str, keys: Collection[str] | None, limits: Limits
) -> list[zipfile.ZipInfo]:
    """The members to read, after a look at all names and at the sizes they claim (reading stops there)."""
    members = archive.infolist()
    for member in members:
        name = member.filename
        if not name.endswith(".npy") or any(sign in name for sign in "/\\:\0") or name.startswith("."):
            raise UnsafePickle(f"{where}: refuses the member {shown(name)}: expected plain names ending in .npy")
        if member.header_offset < 0:
            raise BrokenPickle(f"{where}: member {shown(name)} begins before the file does; fetch the file again")
        if member.compress_type not in _COMPRESSIONS or member.flag_bits & 1:
            raise BrokenPickle(f"{where}: member {shown(name)} is encrypted or of a compression numpy does not write")
    if len({member.filename for member in members}) != len(members):
        raise BrokenPickle(f"{where}: two members of one name; one of them would be lost")
    wanted = [member for member in members if keys is None or _key(member) in keys]
    total = sum(member.file_size for member in wanted)
    if total > limits.max_array_bytes:
        raise BrokenPickle(f"{where}: unpacks to {total} bytes, at most {limits.max_array_bytes} are read")
    return wanted


def _read_npy(stream: IO[bytes], size: int, allow: Allowlist | None, limits: Limits, where: str) -> np.ndarray:
    """One npy stream of `size` bytes; allow None: no objects."""
    try:
        return _read_array(stream, size, allow, limits, where)
    except PickleRefused:
        raise
    except _BROKEN_FILE as error:
        raise BrokenPickle(f"{where}: not a sound npy ({type(error).__name__}: {shown(str(error))})") from error


def _read_array(stream: IO[bytes], size: int, allow: Allowlist | None, limits: Limits, where: str) -> np.ndarray:
    """The array of a sound stream; its header is believed only as far as there are bytes."""
    shape, fortran, dtype = _read_header(stream)
    if dtype.kind == "O" and allow is not None:
        found = safe_loads(stream.read(), allow, limits, object_arrays=True, where=where)
        return _as_declared(found, shape, where)
    if dtype.kind not in "biufcSU":
        raise UnsafePickle(f"{where}: refuses the dtype {shown(str(dtype))}: only numbers and strings are read")
    needed = math.prod(shape) * dtype.itemsize
    if needed > size or min(shape, default=0) < 0 or dtype.itemsize == 0:
        raise BrokenPickle(f"{where}: an array {shown(shape)} of {dtype.str} needs {needed} bytes and has {size}")
    flat = np.empty(math.prod(shape), dtype)
    if _read_into(stream, flat.view(np.uint8).data) < needed or stream.read(1):
        raise BrokenPickle(f"{where}: more or fewer bytes than the {needed} of an array {shape} of {dtype.str}")
    return checked_values(flat).reshape(shape, order="F" if fortran else "C")


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"npy format {version}; 1.0 to 3.0 are read")
    one = version == (1, 0)
    return np.lib.format.read_array_header_1_0(stream) if one else np.lib.format.read_array_header_2_0(stream)


def _read_into(stream: IO[bytes], buffer: memoryview) -> int:
    """Fill the buffer without holding a second copy of it; the number of bytes there were."""
    filled = 0
    while filled < len(buffer) and (chunk := stream.read(min(_CHUNK, len(buffer) - filled))):
        buffer[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    return filled


def _as_declared(found: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    if not isinstance(found, np.ndarray) or found.dtype != object or found.shape != tuple(shape):
        raise BrokenPickle(f"{where}: the header announces an object array {shape}, the contents are something else")
    return found
