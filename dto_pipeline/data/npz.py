"""Arrays of npz files that somebody else wrote: read with bounds, mapped without loading them, or item by item.

`safe_load_npz` reads members whose claims hold, object arrays (pickles) through the inert unpickler. `MappedNpz` makes
each array a read-only view of a memory map: of the file itself for members that were stored plainly, of a temporary
copy without a name for compressed ones, and for all where the file's mount refuses maps.

`read_items` reads a huge pickled dictionary, as `np.savez(file, annots=dictionary)` leaves it, without holding it: the
inert unpickler reads straight from the map and hands over the items as they are set, a thousand at a time. Two passes:
the first only notes which memo entries are fetched again, because a pickle remembers every object it ever made and
almost none is asked for; the second keeps those alone, until their last use.
"""

from __future__ import annotations

import mmap
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from dto_pipeline.array_files import BROKEN, read_header
from dto_pipeline.data.files import NO_MAPS
from dto_pipeline.data.inert_pickle import (
    Allowlist,
    BrokenPickle,
    InertUnpickler,
    Limits,
    Stream,
    UnsafePickle,
    shown,
)
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, checked_values, safe_loads
from dto_pipeline.data.scratch import naming_place, scratch_file
from dto_pipeline.errors import NO_ROOM
from dto_pipeline.reading import IrregularFile, check_regular, open_regular

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_CHUNK = 1 << 20  # bytes read at once
_RELEASED = 1 << 26  # bytes of a map that may stay in memory once they were read
_LOCAL_HEADER = 30  # bytes of a zip entry's own header before its name

ITEM_LIMITS = Limits()
"""What may lie between two deliveries: bytes, instructions; and what one item may cost when it is built."""

_MAX_FETCHES = 100_000_000  # memo entries fetched again, 4 bytes each; 20 times those of 560,000 images
_ALWAYS_KEPT = 256  # memo entries below this are kept: names, dtypes and words come first in a stream
_STATE = (5, 6)  # an array's state up to its dictionary: (version,) shape, dtype, order, [, {

# Opcodes whose argument has a fixed length and that fetch nothing from beyond the always kept part of the memo.
_RUN = re.compile(
    rb"(?:[(012N\x88\x89)\]}\x8f\x85\x86\x87tldaesu\x90\x91\x93\x94R\x81\x92ob]|[Khq\x80].|C\x01.|M..|[Jr].{4}|[G\x95].{8})*+",
    re.DOTALL,
)
_COUNTED = {0x8A: "<B", 0x8B: "<i", ord("T"): "<i", ord("U"): "<B", ord("X"): "<I", ord("B"): "<I"}
_COUNTED |= {0x8C: "<B", ord("C"): "<B", 0x8D: "<Q", 0x8E: "<Q", 0x96: "<Q"}
_LENGTHS = {code: struct.Struct(layout) for code, layout in _COUNTED.items()}
_LINES = {**dict.fromkeys(b"ILFSVpgP", 1), ord("c"): 2, ord("i"): 2}  # opcodes followed by lines of text


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


class MappedNpz:
    """An npz whose arrays are handed out as views of memory maps; nothing has to be closed.

    Raises:
        BrokenPickle: not a whole zip file. UnsafePickle: a member with a path in its name. FileNotFoundError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            check_regular(self.path)
            with zipfile.ZipFile(self.path) as archive:
                found = archive.infolist()
        except FileNotFoundError:
            raise
        except IrregularFile as error:
            raise BrokenPickle(f"{self.path}: {error.strerror}") from error
        except (OSError, ValueError, *BROKEN) as error:
            raise BrokenPickle(f"{self.path} is not a whole npz file ({error}); download it again") from error
        found = [member for member in found if member.filename.endswith(".npy")]
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
        with self._told(key):
            data, _, begin, end, shape, fortran, dtype = self._open(key)
            if dtype.hasobject:
                raise BrokenPickle("is an object array, a pickle in disguise, which is not opened; convert it")
            expected = dtype.itemsize * int(np.prod(shape, dtype=object))
            if begin + expected != end or dtype.itemsize == 0 or min(shape, default=0) < 0:
                raise BrokenPickle(f"holds {end - begin} bytes; its header {shape} {dtype} expects {expected}")
            return np.ndarray(shape, dtype, data, begin, order="F" if fortran else "C")

    def read(self, key: str, allow: Allowlist, limits: Limits) -> np.ndarray:
        """One array in memory, its bytes compared; of objects through the inert unpickler. Raises: PickleRefused."""
        with self._told(key):
            data, start, begin, end, shape, _, dtype = self._open(key)
            self._compare(key, data, start, end)
        if dtype.kind == "O":
            where = f"{self.path}: {key}.npy"
            found = safe_loads(data[begin:end], allow, limits, object_arrays=True, where=where)
            if not isinstance(found, np.ndarray) or found.dtype != object or found.shape != tuple(shape):
                raise BrokenPickle(f"{where}: the header announces an object array {shape}, the contents are another")
            return found
        if dtype.kind not in "biufcSU":
            refused = f"refuses the dtype {shown(str(dtype))}: only numbers and strings are read"
            raise UnsafePickle(f"{self.path}: {key}.npy: {refused}")
        array = self.array(key)
        with self._told(key):
            return checked_values(np.array(array, order="C").reshape(-1)).reshape(array.shape)

    def object_bytes(self, key: str, compare: bool = True) -> tuple[mmap.mmap, int, int]:
        """The pickle inside a 0-d object array: a read-only map, and the stream's first byte and end in it.

        Args:
            compare: hold the bytes against the archive's checksum.

        Raises:
            BrokenPickle: the member is missing, damaged, or an array of another kind.
        """
        with self._told(key):
            data, start, begin, end, shape, _, dtype = self._open(key)
            if shape != () or dtype != np.dtype(object):
                raise BrokenPickle(f"is {dtype} {shape}; expected one object, as a dictionary is stored")
            if compare:
                self._compare(key, data, start, end)
            return data, begin, end

    def _compare(self, key: str, data: mmap.mmap, start: int, end: int) -> None:
        """Hold bytes of the file itself against its checksum, which a map does not do; unpacking does."""
        found, released = 0, start
        for at in range(start, end if start else 0, _CHUNK):
            found = zlib.crc32(data[at : min(end, at + _CHUNK)], found)
            released = release(data, released, at)
        if start and found != self.members[key].CRC:
            raise BrokenPickle("its bytes are not those that were written (CRC-32); download it again")

    @contextmanager
    def _told(self, key: str) -> Iterator[None]:
        if key not in self.members:
            raise BrokenPickle(f"{self.path} has no array {key!r}; it holds {self.keys}")
        try:
            yield
        except (OSError, ValueError, *BROKEN) as error:
            if getattr(error, "errno", None) in NO_ROOM:  # of the temporary folder
                raise
            raise BrokenPickle(f"{self.path}, array {key!r}: {error}") from error

    @cached_property
    def _whole(self) -> mmap.mmap | None:
        """The file; None where its mount refuses maps, which says nothing about the file."""
        with open_regular(self.path) as stream:
            try:
                return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                if error.errno not in NO_MAPS:
                    raise
                return None

    def _open(self, key: str) -> tuple[mmap.mmap, int, int, int, tuple[int, ...], bool, np.dtype]:
        """A map, where an array's npy begins in it (in a copy at 0), its contents begin and end, and its header."""
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
        return data, start, data.tell(), start + entry.file_size, *header

    def _unpack(self, entry: zipfile.ZipInfo) -> mmap.mmap:
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if entry.file_size > free:
            raise BrokenPickle(f"unpacks to {entry.file_size} bytes, {free} are free; set TMPDIR to a larger disk")
        with naming_place(), scratch_file() as plain:
            with zipfile.ZipFile(self.path) as archive, archive.open(entry) as packed:
                shutil.copyfileobj(packed, plain, _CHUNK)
            plain.flush()
            return mmap.mmap(plain.fileno(), 0, access=mmap.ACCESS_READ)


def release(data: mmap.mmap, released: int, at: int) -> int:
    """Give back the pages of a map behind `at` where many are left; returns up to where they were given back."""
    if at - released < _RELEASED:
        return released
    data.madvise(mmap.MADV_DONTNEED, 0, at - at % mmap.PAGESIZE)
    return at


_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can tell: equal arrays give equal bytes


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
    """The reader of the items has seen what it wanted."""


def read_items(path: str | Path, key: str, take: Callable[[Any, Any], object], look: bool = False) -> None:
    """Hand over key and value of each item of a member, a 0-d array holding one dictionary.

    Args:
        path: the npz.
        take: gets them as records for `safe_pickle.build_values`.
        look: only a look at the beginning: bytes are not compared with the archive's checksum, there is no first pass
            and every object stays in memory, until `take` returns something true.

    Raises:
        UnsafePickle, BrokenPickle, FileNotFoundError: as `safe_load_npz`; also an array of another kind.
    """
    data, start, end = MappedNpz(path).object_bytes(key, compare=not look)
    stream = Stream(data, start, end)
    with suppress(_Enough), stream.told(f"{path}: {key}"):
        needed = None
        if not look:  # memo entry -> how often it is fetched, of those that are fetched and not always kept
            fetched = np.frombuffer(_fetches(Stream(data, start, end)), np.uint32)
            needed = dict(zip(*(part.tolist() for part in np.unique(fetched, return_counts=True)), strict=True))
        _Items(stream, take, needed).load()


def _fetches(walk: Stream) -> array[int]:
    """Every memo entry that an instruction fetches, but for those always kept; the stream is walked, not run."""
    fetched, released = array("I"), walk.at
    while True:
        run = _RUN.match(walk.data, walk.at, walk.end)
        if run is None:  # the pattern matches nothing too: a length led beyond the end
            raise BrokenPickle("the stream ends inside an instruction: it is truncated")
        walk.at = run.end()
        code = walk.read(1)[0]
        if code == ord("."):
            return fetched
        if code == ord("j"):
            fetched.append(*struct.unpack("<I", walk.read(4)))
        elif code in _LENGTHS:
            (length,) = _LENGTHS[code].unpack(walk.read(_LENGTHS[code].size))
            walk.at += max(0, length)
        elif code in _LINES:
            lines = [walk.readline() for _ in range(_LINES[code])]
            fetched.extend([int(lines[0])] if code == ord("g") else [])
        elif code in b"Khq\x80MJrG\x95":  # the run ends there because its argument does not fit
            raise BrokenPickle("the stream ends inside an instruction: it is truncated")
        else:
            raise UnsafePickle(f"0x{code:02x} is not an instruction that such data needs; nothing was run")
        if len(fetched) > _MAX_FETCHES:
            raise BrokenPickle(f"fetches more than {_MAX_FETCHES} objects again; at most so many are read")
        released = release(walk.data, released, walk.at)


class _Memo:
    """The memo of a stream; entries that nobody fetches are not kept, the others until they were fetched last."""

    def __init__(self, needed: dict[int, int] | None) -> None:
        self.needed = needed  # entry -> fetches to come, of those that are not always kept; None = all are
        self.stored = 0  # MEMOIZE counts the entries
        self.kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.stored

    def __setitem__(self, index: int, value: Any) -> None:
        self.stored += 1
        if self.needed is None or index < _ALWAYS_KEPT or index in self.needed:
            self.kept[index] = value

    def __getitem__(self, index: int) -> Any:
        found = self.kept[index]
        if self.needed is not None and index >= _ALWAYS_KEPT:
            self.needed[index] -= 1
            if self.needed[index] <= 0:
                del self.needed[index], self.kept[index]
        return found


class _Items(InertUnpickler):
    """Hands over the items of the one dictionary, and forgets them."""

    def __init__(self, stream: Stream, take: Callable[[Any, Any], object], needed: dict[int, int] | None) -> None:
        super().__init__(stream, NUMPY_ONLY, ITEM_LIMITS.max_opcodes)
        self._take = take
        self.memo = _Memo(needed)
        self._released = stream.at
        self._renew()

    def _renew(self) -> None:
        self.dispatch.left = ITEM_LIMITS.max_opcodes  # type: ignore[attr-defined]
        self._stream.bound = self._stream.at + ITEM_LIMITS.max_stream_bytes

    def set_items(self, items: list[Any]) -> None:
        super().set_items(items)
        if not (len(self.metastack) == 1 and len(self.stack) in _STATE and type(self.stack[-2]) is list):
            return
        target = self.stack[-1]
        if len(target) != len(items) // 2:
            raise BrokenPickle("a key occurs twice")
        for key, value in target.items():
            if self._take(key, value):
                raise _Enough
        target.clear()
        self._renew()
        self._released = release(self._stream.data, self._released, self._stream.at)
