"""Arrays of npz files that somebody else wrote: read with bounds, mapped without loading them, or item by item.

`safe_load_npz` reads arrays into memory, object arrays (pickles) through the inert unpickler. `MappedNpz` makes
each array a read-only view of a memory map: of the file itself for members that were stored plainly, of a temporary
copy without a name for compressed ones, and for all where the file's mount refuses maps.

`read_items` reads a huge pickled dictionary, as `np.savez(file, annots=dictionary)` leaves it, without holding it: the
inert unpickler reads straight from the map, and each item is given to a function when it is set, a thousand at a time.
Two passes: the first only notes which memo entries are fetched again, because a pickle remembers every object it ever
made and almost none is asked for; the second keeps those alone, until their last use.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
import shutil
import struct
import tempfile
import zipfile
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from dto_pipeline.array_files import BROKEN, read_header
from dto_pipeline.data.files import NO_MAPS, naming_full_disk
from dto_pipeline.data.inert_pickle import (
    OPCODES,
    Allowlist,
    BrokenPickle,
    InertUnpickler,
    Limits,
    Stream,
    UnsafePickle,
    shown,
)
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, checked_values, safe_loads
from dto_pipeline.data.scratch import scratch_file
from dto_pipeline.errors import NO_ROOM
from dto_pipeline.reading import IrregularFile, check_regular, open_regular

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_CHUNK = 1 << 20  # bytes read at once
_RELEASED = 1 << 26  # bytes of a map that may stay in memory once they were read
_LOCAL_HEADER = 30  # bytes of a zip entry's own header before its name
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold: equal arrays give equal bytes

ITEM_LIMITS = Limits()
"""What the items that are set at once may cost together."""

_MAX_FETCHES = 100_000_000  # memo entries fetched again, 4 bytes each; 20 times those of 560,000 images
_ALWAYS_KEPT = 256  # memo entries below this are kept: names, dtypes and words come first in a stream
_STATE = (5, 6)  # an array's state up to its dictionary: (version,) shape, dtype, order, [, {

# Length of each instruction's argument; negative: lines of text, or a length of another layout before it.
_ARGUMENTS = {ord(op.code): op.arg.n if op.arg else 0 for op in pickletools.opcodes if ord(op.code) in OPCODES}
_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: struct.Struct("<B"),
    pickletools.TAKEN_FROM_ARGUMENT4: struct.Struct("<i"),
    pickletools.TAKEN_FROM_ARGUMENT4U: struct.Struct("<I"),
    pickletools.TAKEN_FROM_ARGUMENT8U: struct.Struct("<Q"),
}
_GET, _LONG_BINGET, _STOP, _TWO_LINES = ord("g"), ord("j"), ord("."), b"ci"
_FIXED = {n: bytes(code for code, length in _ARGUMENTS.items() if length == n and code not in b"j.") for n in range(9)}
_PATTERN = b"|".join(b"[%s].{%d}" % (re.escape(codes), n) for n, codes in _FIXED.items() if codes)
_RUN = re.compile(b"(?:%s)*+" % _PATTERN, re.DOTALL)  # instructions that fetch none but the always kept


def safe_load_npz(
    path: str | Path,
    keys: Collection[str] | None = None,
    allow: Allowlist = NUMPY_ONLY,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Arrays of an npz file, key -> array; 0-d object arrays, numpy's way to store one object, of shape ().

    Args:
        keys: read only these; None = all. A key that is not there is left out.
        limits: `max_array_bytes` also bounds what the read members claim to unpack to, together.

    Raises:
        UnsafePickle, BrokenPickle: as `safe_loads`; also for a damaged archive, members with a path in their name,
            members that occur twice, and archives that unpack to too much.
        OSError: the file cannot be read.
    """
    npz = MappedNpz(path)
    wanted = [key for key in npz.keys if keys is None or key in keys]
    total = sum(npz.members[key].file_size for key in wanted)
    if total > limits.max_array_bytes:
        raise BrokenPickle(f"{path}: unpacks to {total} bytes, at most {limits.max_array_bytes} are read")
    return {key: npz.read(key, allow, limits) for key in wanted}


@dataclass(frozen=True)
class _Npy:
    """One array in a map."""

    data: mmap.mmap
    begin: int  # of its contents
    end: int
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


class MappedNpz:
    """An npz whose arrays are views of memory maps; nothing has to be closed.

    Raises:
        BrokenPickle: not a whole zip file. UnsafePickle: a member with a path in its name. FileNotFoundError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            check_regular(self.path)
            with zipfile.ZipFile(self.path) as archive:
                found = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        except FileNotFoundError:
            raise
        except IrregularFile as error:
            raise BrokenPickle(f"{self.path}: {error.strerror}") from error
        except (OSError, ValueError, *BROKEN) as error:
            raise BrokenPickle(f"{self.path} is not a whole npz file ({error}); download it again") from error
        for member in found:
            name = member.filename
            if any(sign in name for sign in "/\\:\0") or name.startswith("."):
                raise UnsafePickle(f"{path}: refuses the member {shown(name)}: expected plain names")
            if member.header_offset < 0 or member.compress_type not in _COMPRESSIONS or member.flag_bits & 1:
                raise BrokenPickle(
                    f"{path}: member {shown(name)} is encrypted, or as numpy writes none; fetch it again"
                )
        self.members = {member.filename.removesuffix(".npy"): member for member in found}
        self.keys = list(self.members)  # names of the arrays, in file order
        if len(self.keys) != len(found):
            raise BrokenPickle(f"{path}: two members of one name; one of them would be lost")

    def array(self, key: str) -> np.ndarray:
        """One array, read-only, its bytes not compared with the archive's checksum.

        Raises:
            BrokenPickle: the member is missing, damaged, an object array, or longer or shorter than its header says.
        """
        with self._errors_named(key):
            return _view(self._open(key))

    def read(self, key: str, allow: Allowlist, limits: Limits) -> np.ndarray:
        """One array in memory, its bytes compared; of objects through the inert unpickler. Raises: PickleRefused."""
        with self._errors_named(key):
            npy = self._open(key)
            self._compare(key)
            if npy.dtype.kind == "O":
                found = safe_loads(npy.data[npy.begin : npy.end], allow, limits, "its pickle", object_arrays=True)
                if not isinstance(found, np.ndarray) or found.dtype != object or found.shape != npy.shape:
                    raise BrokenPickle(f"the header announces an object array {npy.shape}, the contents are another")
                return found
            if npy.dtype.kind not in "biufcSU":
                raise UnsafePickle(f"refuses the dtype {shown(str(npy.dtype))}: only numbers and strings are read")
            array = _view(npy)
            return checked_values(np.array(array, order="C").reshape(-1)).reshape(array.shape)

    def dictionary(self, key: str, compare: bool) -> _Npy:
        """A 0-d object array, whose contents are a pickle; `compare` the bytes with their checksum."""
        with self._errors_named(key):
            npy = self._open(key)
            if npy.shape != () or npy.dtype != np.dtype(object):
                raise BrokenPickle(f"is {npy.dtype} {npy.shape}; expected one object, as a dictionary is stored")
            if compare:
                self._compare(key)
            return npy

    def _compare(self, key: str) -> None:
        """Read a member through zipfile, which compares the bytes with their checksum, as a map does not."""
        with zipfile.ZipFile(self.path) as archive, archive.open(self.members[key]) as stream:
            while stream.read(_CHUNK):
                pass

    @contextmanager
    def _errors_named(self, key: str) -> Iterator[None]:
        if key not in self.members:
            raise BrokenPickle(f"{self.path} has no array {key!r}; it holds {self.keys}")
        try:
            yield
        except (OSError, ValueError, *BROKEN) as error:
            if getattr(error, "errno", None) in NO_ROOM:  # of the temporary folder
                raise
            kind = UnsafePickle if isinstance(error, UnsafePickle) else BrokenPickle
            raise kind(f"{self.path}, array {key!r}: {error}") from error

    @cached_property
    def _whole(self) -> mmap.mmap | None:
        """The file, mapped; None where its mount refuses maps."""
        with open_regular(self.path) as stream:
            try:
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                if error.errno not in NO_MAPS:
                    raise
                return None

    def _open(self, key: str) -> _Npy:
        entry = self.members[key]
        if entry.compress_type == zipfile.ZIP_STORED and self._whole is not None:
            data, start = self._whole, entry.header_offset + _LOCAL_HEADER
            start += sum(struct.unpack_from("<HH", data, entry.header_offset + 26))  # lengths of name and extra
        else:
            data, start = self._unpack(entry), 0
        if start + entry.file_size > len(data):
            raise BrokenPickle("ends before its header says; download it again")
        data.seek(start)
        header = read_header(data)
        return _Npy(data, data.tell(), start + entry.file_size, *header)

    def _unpack(self, entry: zipfile.ZipInfo) -> mmap.mmap:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if entry.file_size > free:
            raise BrokenPickle(f"unpacks to {entry.file_size} bytes, {free} are free; set TMPDIR to a larger disk")
        with naming_full_disk(tempfile.gettempdir()), scratch_file() as plain:
            with zipfile.ZipFile(self.path) as archive, archive.open(entry) as packed:
                shutil.copyfileobj(packed, plain, _CHUNK)
            plain.flush()
            return mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ)


def _view(npy: _Npy) -> np.ndarray:
    if npy.dtype.hasobject:
        raise BrokenPickle("is an object array, a pickle in disguise, which is not opened; convert it")
    expected = npy.dtype.itemsize * math.prod(npy.shape)
    if npy.begin + expected != npy.end or npy.dtype.itemsize == 0 or min(npy.shape, default=0) < 0:
        found = npy.end - npy.begin
        raise BrokenPickle(f"holds {found} bytes; its header {npy.shape} {npy.dtype} expects {expected}")
    return np.ndarray(npy.shape, npy.dtype, npy.data, npy.begin, order="F" if npy.fortran else "C")


def release(data: mmap.mmap, released: int, at: int) -> int:
    """Free the pages of a map before `at` if there are many; returns the position up to which they are free."""
    if at - released < _RELEASED:
        return released
    data.madvise(mmap.MADV_DONTNEED, 0, at - at % mmap.PAGESIZE)
    return at


@contextmanager
def open_member(
    archive: zipfile.ZipFile, key: str, dtype: np.dtype, shape: tuple[int, ...], packed: bool = False
) -> Iterator[IO[bytes]]:
    """A stream for the contents of array `key` of a new npz, its npy header written.

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


class _Enough(Exception):
    """The reader of the items needs no more."""


def read_items(path: str | Path, key: str, take: Callable[[Any, Any], object], look: bool = False) -> None:
    """Call a function with each key and value of the dictionary that a member (a 0-d array) holds.

    Args:
        path: the npz.
        take: called with each key and value; run `inert_pickle.check_values` before walking through a value.
        look: read only the beginning, until `take` returns something true: bytes are not compared with the archive's
            checksum, there is no first pass and every object stays in memory.

    Raises:
        UnsafePickle, BrokenPickle, FileNotFoundError: as `safe_load_npz`; also an array of another kind.
    """
    npy = MappedNpz(path).dictionary(key, compare=not look)
    stream = Stream(npy.data, npy.begin, npy.end, ITEM_LIMITS.max_bytes)
    with suppress(_Enough), stream.errors_named(f"{path}: {key}"):
        items = _Items(stream, take)
        if not look:
            fetched = np.frombuffer(_fetches(Stream(npy.data, npy.begin, npy.end, npy.end << 8)), np.uint32)
            items.memo = _Memo(*(part.tolist() for part in np.unique(fetched, return_counts=True)))
        items.load()


def _fetches(walk: Stream) -> array[int]:
    """Every memo entry that an instruction fetches, but for those always kept; the stream is walked, not run."""
    fetched, released, code = array("I"), walk.at, 0
    while code != _STOP:
        run = _RUN.match(walk.data, walk.at, walk.end)
        walk.at = run.end() if run else walk.end + 1  # a length led beyond the end
        code = walk.read(1)[0]
        length = _ARGUMENTS.get(code, -1)
        if code == _LONG_BINGET:
            fetched.append(*struct.unpack("<I", walk.read(4)))
        elif length in _LENGTHS:
            (count,) = _LENGTHS[length].unpack(walk.read(_LENGTHS[length].size))
            walk.at += max(0, count)
        elif length < 0:
            OPCODES[code]  # refused by name where there is none
            lines = [walk.readline() for _ in range(2 if code in _TWO_LINES else 1)]
            fetched.extend([int(lines[0])] if code == _GET else [])
        else:
            walk.read(length)
        if len(fetched) > _MAX_FETCHES:
            raise BrokenPickle(f"fetches more than {_MAX_FETCHES} objects again; at most so many are read")
        released = release(walk.data, released, walk.at)
    return fetched


class _Memo(dict[int, Any]):
    """The memo of a stream; entries that are never fetched are not kept, the others until they were fetched last."""

    def __init__(self, fetched: list[int], times: list[int]) -> None:
        self.left = dict(zip(fetched, times, strict=True))  # entry -> fetches to come
        self.stored = 0

    def __len__(self) -> int:  # MEMOIZE counts the entries
        return self.stored

    def __setitem__(self, index: int, value: Any) -> None:
        self.stored += 1
        if index < _ALWAYS_KEPT or index in self.left:
            super().__setitem__(index, value)

    def __getitem__(self, index: int) -> Any:
        if index < _ALWAYS_KEPT:
            return super().__getitem__(index)
        self.left[index] -= 1
        return super().__getitem__(index) if self.left[index] else super().pop(index)


class _Items(InertUnpickler):
    """Gives away the items of the one dictionary, and forgets them."""

    def __init__(self, stream: Stream, take: Callable[[Any, Any], object]) -> None:
        super().__init__(stream, NUMPY_ONLY, ITEM_LIMITS, object_arrays=True)
        self._take, self._released = take, stream.at

    def set_items(self, items: list[Any]) -> None:
        super().set_items(items)
        if not (len(self.metastack) == 1 and len(self.stack) in _STATE and type(self.stack[-2]) is list):
            return
        if len(self.unfilled) > 1:  # more than the array around the dictionary
            raise BrokenPickle("an array, a dtype or an object without contents")
        target = self.stack[-1]
        for key, value in target.items():
            if self._take(key, value):
                raise _Enough
        target.clear()
        self.array_bytes, self._stream.left = 0, self._stream.max_bytes
        self._released = release(self._stream.data, self._released, self._stream.at)
