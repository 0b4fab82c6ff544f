"""A huge pickled dictionary, item by item: what `np.savez(file, annots=dictionary)` leaves, read without holding it.

The inert unpickler reads straight from the mapped member and hands over the dictionary's items as they are set, so that
memory is that of one batch (Python's pickler sets a thousand items at once). Two passes: the first only notes which
memo entries are fetched again, because a pickle remembers every object it ever made and almost none of them is asked
for; the second keeps those alone, until their last use. Nothing is run, by the rules of `safe_pickle`.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.inert_pickle import (
    BrokenPickle,
    InertUnpickler,
    Limits,
    Stream,
    UnsafePickle,
)
from dto_pipeline.data.npz import MappedNpz, NpzError, release
from dto_pipeline.data.safe_pickle import NUMPY_ONLY

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
        UnsafePickle, BrokenPickle: as `safe_pickle.safe_loads`; also no such member, a damaged archive, an array of
            another kind, or bytes that are not those that were written.
        FileNotFoundError: no such file.
    """
    try:
        data, start, end = MappedNpz(path).object_bytes(key, compare=not look)
    except NpzError as error:
        raise BrokenPickle(str(error)) from error
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
        """As much as may lie before the next delivery."""
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
