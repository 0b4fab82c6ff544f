"""Arrays of npz files that somebody else wrote: read whole with bounds, or item by item.

`NpzFile` reads arrays into memory and compares their checksums; object arrays (pickles) go through the inert unpickler.

`read_items` reads a huge pickled dictionary, as `np.savez(file, annots=dictionary)` writes it, without holding it in
memory: items are passed to a function as they are read, a thousand at a time. It makes two passes, because a pickle
puts every object into its memo and fetches almost none again. The first pass counts how often each entry of the memo is
fetched; the second keeps only those entries, until they are fetched last.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from dto_pipeline.array_files import BROKEN, read_flat, read_header
from dto_pipeline.data.inert_pickle import (
    Allowlist,
    BrokenPickle,
    InertUnpickler,
    Limits,
    PickleRefused,
    Stream,
    UnsafePickle,
    shown,
)
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, checked_values, safe_loads
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import IrregularFile, open_regular
from dto_pipeline.terminal import progress_bar

ITEM_LIMITS = Limits()
"""What the items that are set at once may cost together."""

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what numpy writes
_BUFFER = 1 << 20  # bytes read at once
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date a zip can hold: equal arrays give equal bytes
_MOST_SHARED = 10_000_000  # memo entries fetched again, about 0.1 kB each; an image has one or two
_FETCH = ("GET", "BINGET", "LONG_BINGET")
_OBJECTS = "is an object array (a pickle), which is not opened; convert it to numbers or text"
_STATE = (5, 6)  # an array's state up to its dictionary: (version,) shape, dtype, order, [, {


class NpzFile:
    """The arrays of an npz, each read when it is asked for; nothing has to be closed.

    Args:
        most: bytes of an array of numbers or text; 44 keypoints of 2.7 million people in float64 take 2.9 GB.

    Raises:
        BrokenPickle: not a whole zip file. UnsafePickle: a member with a path in its name. FileNotFoundError.
    """

    def __init__(self, path: str | Path, most: int = 1 << 33) -> None:
        self.path, self._most = Path(path), most
        try:
            with open_regular(self.path) as file, zipfile.ZipFile(file) as archive:
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
                    f"{path}: member {shown(name)} is encrypted, or packed as numpy never does; fetch it again"
                )
        self.members = {member.filename.removesuffix(".npy"): member for member in found}
        self.keys = list(self.members)  # names of the arrays, in file order
        if len(self.keys) != len(found):
            raise BrokenPickle(f"{path}: two members of one name; one of them would be lost")

    def header(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array, from its header alone. Raises: PickleRefused, also for an object array."""
        with self._open(key) as stream:
            shape, _, dtype = read_header(stream)
            if dtype.kind == "O":
                raise BrokenPickle(_OBJECTS)
        return shape, dtype

    def array(self, key: str, allow: Allowlist | None = None, limits: Limits = ITEM_LIMITS) -> np.ndarray:
        """One array in memory.

        Args:
            allow: what an object array may hold; None = there must be none.
            limits: of an object array.

        Raises:
            UnsafePickle, BrokenPickle: the member is missing, damaged, too long, of another length than its header
                says, or of a type that `safe_loads` does not read.
        """
        with self._contents(key) as (stream, size, shape, fortran, dtype):
            if dtype.kind == "O" and allow is not None:
                found = safe_loads(stream.read(limits.max_bytes), allow, limits, "its pickle", object_arrays=True)
                if not isinstance(found, np.ndarray) or found.dtype != object or found.shape != shape:
                    raise BrokenPickle(f"the header says an object array {shape}, the contents are something else")
                return found
            if dtype.kind == "O":
                raise BrokenPickle(_OBJECTS)
            if dtype.kind not in "biufcSU":
                raise UnsafePickle(f"refuses the dtype {shown(str(dtype))}: only numbers and strings are read")
            if size > self._most:
                raise BrokenPickle(f"unpacks to {size} bytes, at most {self._most} are read")
            return checked_values(read_flat(stream, size, shape, dtype)).reshape(shape, order="F" if fortran else "C")

    @contextmanager
    def pickle(self, key: str) -> Iterator[Stream]:
        """The pickle of a member that holds one object, to be read to its end. Raises: PickleRefused."""
        with self._contents(key) as (stream, size, shape, _, dtype):
            if shape != () or dtype != np.dtype(object):
                raise BrokenPickle(f"is {dtype} {shape}; expected one object, as a dictionary is stored")
            pickled = Stream(stream, size, ITEM_LIMITS.max_bytes)
            with pickled.errors_named("its pickle"):
                yield pickled

    @contextmanager
    def _contents(self, key: str) -> Iterator[tuple[IO[bytes], int, tuple[int, ...], bool, np.dtype]]:
        """A member's contents, their length, and its header; zipfile compares the checksum at the end."""
        with self._open(key) as stream:
            header = read_header(stream)
            yield stream, self.members[key].file_size - stream.tell(), *header
            if stream.read(1):
                raise BrokenPickle("holds more bytes than its header expects; download it again")

    @contextmanager
    def _open(self, key: str) -> Iterator[IO[bytes]]:
        """A member from its beginning; errors inside the block name file and array."""
        if key not in self.members:
            raise BrokenPickle(f"{self.path} has no array {key!r}; it holds {self.keys}")
        try:
            with (
                open_regular(self.path) as file,
                zipfile.ZipFile(file) as archive,
                io.BufferedReader(cast(Any, archive.open(self.members[key])), _BUFFER) as stream,
            ):
                yield stream
        except (OSError, ValueError, *BROKEN) as error:
            if isinstance(error, DtoError) and not isinstance(
                error, PickleRefused
            ):  # of the function that takes the items
                raise
            kind = UnsafePickle if isinstance(error, UnsafePickle) else BrokenPickle
            raise kind(f"{self.path}, array {key!r}: {error}") from error


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
    """The function that takes the items needs no more."""


def read_items(path: str | Path, key: str, take: Callable[[Any, Any], object], look: bool = False) -> None:
    """Call a function with each key and value of the dictionary that a member (a 0-d array) holds.

    Args:
        path: the npz.
        take: called with each key and value; run `inert_pickle.check_values` before walking through a value.
        look: read only the beginning, until `take` returns something true: in one pass that keeps every object, and
            without comparing the archive's checksum.

    Raises:
        UnsafePickle, BrokenPickle, FileNotFoundError: as `NpzFile.array`; also an array of another kind.
    """
    npz, memo = NpzFile(path), dict[int, Any]()
    if not look:
        with npz.pickle(key) as stream:
            memo = _Memo(_count_fetches(stream))
    with suppress(_Enough), npz.pickle(key) as stream, progress_bar(None, "B", stream.size) as bar:
        items = _Items(stream, take, bar)
        items.memo = memo
        items.load()


def _count_fetches(stream: Stream) -> Counter[int]:
    """How often each entry of the memo is fetched; no instruction is carried out."""
    fetches = Counter[int]()
    with progress_bar(None, "B", stream.size) as bar:
        for code, argument, _ in pickletools.genops(cast(IO[bytes], stream)):
            stream.left = stream.max_bytes
            if code.name in _FETCH and type(argument) is int:
                fetches[argument] += 1
                if len(fetches) > _MOST_SHARED:
                    raise BrokenPickle(f"fetches more than {_MOST_SHARED} objects again; at most so many are read")
            elif code.name == "SETITEMS":
                bar.update(stream.at - bar.n)
    return fetches


class _Memo(dict[int, Any]):
    """The memo of a pickle. An entry is kept until it is fetched for the last time, and not at all if it never is."""

    def __init__(self, fetches: Counter[int]) -> None:
        self._left = fetches  # entry -> fetches to come
        self._stored = 0

    def __len__(self) -> int:  # MEMOIZE counts the entries
        return self._stored

    def __setitem__(self, index: int, value: Any) -> None:
        self._stored += 1
        if index in self._left:
            super().__setitem__(index, value)

    def __getitem__(self, index: int) -> Any:
        self._left[index] -= 1
        return super().__getitem__(index) if self._left[index] else super().pop(index)


class _Items(InertUnpickler):
    """Passes the items of the one dictionary on, and forgets them."""

    def __init__(self, stream: Stream, take: Callable[[Any, Any], object], bar: Any) -> None:
        super().__init__(stream, NUMPY_ONLY, ITEM_LIMITS, object_arrays=True)
        self._take, self._bar = take, bar

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
        self._bar.update(self._stream.at - self._bar.n)
        self.array_bytes, self._stream.left = 0, self._stream.max_bytes
