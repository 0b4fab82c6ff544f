"""Arrays of an npz without loading them: each member becomes a read-only memory map.

Members that were stored plainly are mapped where they lie in the zip; compressed ones, and all of a file whose mount
refuses maps, are unpacked once into a temporary folder and mapped there. Object arrays are refused: they are pickles.
Knows zip and npy, no key names.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np

from dto_pipeline.data.files import NO_MAPS, check_maps, temporary_folder
from dto_pipeline.errors import NO_ROOM
from dto_pipeline.reading import IrregularFile, check_regular

_DAMAGES = (
    *(OSError, EOFError, ValueError, TypeError, OverflowError, MemoryError, RecursionError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error, SyntaxError, TokenError),
)  # what zipfile and numpy's header parser raise on a damaged file
_RELEASED = 1 << 26  # bytes of a map that may stay in memory once they were read
_LOCAL_HEADER = 30  # bytes of a zip entry's own header before its name


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


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise NpzError(f"is of npy version {version}; expected 1.0 or 2.0")
