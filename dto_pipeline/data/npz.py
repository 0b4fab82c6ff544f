"""Arrays of npz and npy files that somebody else wrote: read with bounds, or mapped without loading them.

`safe_load_npz` reads members whose claims hold, object arrays (pickles) through the inert unpickler. `MappedNpz` makes
each member a read-only memory map: members that were stored plainly are mapped where they lie in the zip; compressed
ones, and all of a file whose mount refuses maps, are unpacked once into a temporary folder and mapped there.
`create_npz` writes members piece by piece, plainly and with a fixed date: equal arrays give equal bytes. Knows zip and
npy, no key names.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np

from dto_pipeline.data.files import NO_MAPS, check_maps, temporary_folder
from dto_pipeline.data.inert_pickle import Allowlist, BrokenPickle, Limits, PickleRefused, UnsafePickle, shown
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, checked_values, safe_loads
from dto_pipeline.errors import NO_ROOM
from dto_pipeline.reading import IrregularFile, check_regular, read_regular

_BROKEN_FILE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, NotImplementedError, RuntimeError),
    *(OverflowError, MemoryError, RecursionError, SyntaxError, TypeError, TokenError),
)  # what zipfile and numpy's header parser raise on a damaged file
_DAMAGES = (OSError, *_BROKEN_FILE)
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_CHUNK = 1 << 20  # bytes read at once
_RELEASED = 1 << 26  # bytes of a map that may stay in memory once they were read
_LOCAL_HEADER = 30  # bytes of a zip entry's own header before its name


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


class NpzError(ValueError):
    """An npz that cannot be read; the message names file and member."""


class MappedNpz:
    """An open npz; owns the temporary folder of unpacked members, so close it (or use `with`).

    Args:
        path: the npz file.

    Raises:
        NpzError: not a whole zip file.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            check_regular(self.path)
            self._zip = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise
        except IrregularFile as error:
            raise NpzError(f"{self.path}: {error.strerror}") from error
        except _DAMAGES as error:
            raise NpzError(f"{self.path} is not a whole npz file ({error}); download it again") from error
        self._members = {name.removesuffix(".npy"): name for name in self._zip.namelist() if name.endswith(".npy")}
        self._unpacked = temporary_folder("dto-npz-")

    @property
    def keys(self) -> list[str]:
        """Names of the arrays, in file order."""
        return list(self._members)

    def array(self, key: str) -> np.ndarray:
        """Read-only memory map of one array.

        Raises:
            NpzError: the member is missing, damaged, an object array, or longer or shorter than its header says.
        """
        if key not in self._members:
            raise NpzError(f"{self.path} has no array {key!r}; it holds {self.keys}")
        entry = self._zip.getinfo(self._members[key])
        try:
            if entry.compress_type == zipfile.ZIP_STORED and (mapped := self._map_in_zip(entry)) is not None:
                return mapped
            return self._map(self._unpack(key, entry), 0, entry.file_size)
        except _DAMAGES as error:
            if getattr(error, "errno", None) in NO_ROOM:  # of the temporary folder
                raise
            raise NpzError(f"{self.path}, array {key!r}: {error}") from error

    def object_bytes(self, key: str, compare: bool = True) -> tuple[mmap.mmap, int, int]:
        """The pickle inside a 0-d object array: a read-only map, and the stream's first byte and end in it.

        Args:
            compare: hold the bytes against the archive's checksum, which a map does not do by itself.

        Raises:
            NpzError: the member is missing, damaged, or an array of another kind.
        """
        if key not in self._members:
            raise NpzError(f"{self.path} has no array {key!r}; it holds {self.keys}")
        entry = self._zip.getinfo(self._members[key])
        try:
            stored = entry.compress_type == zipfile.ZIP_STORED
            path, start = (self.path, self._start_in_zip(entry)) if stored else (self._unpack(key, entry), 0)
            try:
                data = _map_whole(path)
            except OSError as error:  # a mount that can be read but not mapped says nothing about the file
                if not stored or error.errno not in NO_MAPS:
                    raise
                stored, path, start = False, self._unpack(key, entry), 0
                data = _map_whole(path)
            with path.open("rb") as stream:
                stream.seek(start)
                shape, _, dtype = _read_header(stream)
                begin = stream.tell()
            if start + entry.file_size > len(data):
                raise NpzError("ends before its header says; download it again")
            if shape != () or dtype != np.dtype(object):
                data.close()
                raise NpzError(f"is {dtype} {shape}; expected one object, as a dictionary is stored")
            if stored and compare and _check_sum(data, start, start + entry.file_size) != entry.CRC:
                data.close()
                raise NpzError("its bytes are not those that were written (CRC-32); download it again")
            return data, begin, start + entry.file_size
        except _DAMAGES as error:
            if getattr(error, "errno", None) in NO_ROOM:  # of the temporary folder
                raise
            raise NpzError(f"{self.path}, array {key!r}: {error}") from error

    def close(self) -> None:
        """Give up the file and the temporary folder; maps handed out stay valid on POSIX."""
        self._zip.close()
        self._unpacked.cleanup()

    def __enter__(self) -> MappedNpz:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _map_in_zip(self, entry: zipfile.ZipInfo) -> np.ndarray | None:
        """A member mapped where it lies; None where the mount refuses maps, which says nothing about the file."""
        try:
            return self._map(self.path, self._start_in_zip(entry), entry.file_size)
        except OSError as error:
            if error.errno in NO_MAPS:
                return None
            raise

    def _start_in_zip(self, entry: zipfile.ZipInfo) -> int:
        with self.path.open("rb") as stream:
            stream.seek(entry.header_offset)
            header = stream.read(_LOCAL_HEADER)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        return entry.header_offset + _LOCAL_HEADER + name_length + extra_length

    def _unpack(self, key: str, entry: zipfile.ZipInfo) -> Path:
        target = Path(self._unpacked.name) / f"{self.keys.index(key)}.npy"
        if target.exists():
            return target
        check_maps(self._unpacked.name)
        free = shutil.disk_usage(self._unpacked.name).free
        if entry.file_size > free:
            raise NpzError(f"unpacks to {entry.file_size} bytes, {free} are free; set TMPDIR to a larger disk")
        with self._zip.open(entry) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 1 << 20)
        return target

    def _map(self, path: Path, start: int, size: int) -> np.ndarray:
        """Map an npy that begins `start` bytes into `path` and is `size` bytes long."""
        with path.open("rb") as stream:
            stream.seek(start)
            shape, fortran, dtype = _read_header(stream)
            begin = stream.tell()
            end = os.fstat(stream.fileno()).st_size
        if dtype.hasobject:
            raise NpzError("is an object array, a pickle in disguise, which is not opened; convert it to plain arrays")
        expected = dtype.itemsize * int(np.prod(shape, dtype=object))
        if begin - start + expected != size or begin + expected > end:
            raise NpzError(f"holds {start + size - begin} bytes; its header {shape} {dtype} expects {expected}")
        if expected == 0:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", begin, shape, "F" if fortran else "C")


def _map_whole(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def release(data: mmap.mmap, released: int, at: int) -> int:
    """Give back the pages of a map that lie behind `at`: they are the file's, and can be read again.

    Returns:
        Up to where they were given back: `released` as long as little lies behind.
    """
    if at - released < _RELEASED:
        return released
    data.madvise(mmap.MADV_DONTNEED, 0, at - at % mmap.PAGESIZE)
    return at


def _check_sum(data: mmap.mmap, start: int, end: int) -> int:
    found, released = 0, start
    for at in range(start, end, 1 << 20):
        found = zlib.crc32(data[at : min(end, at + (1 << 20))], found)
        released = release(data, released, at)
    return found


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
