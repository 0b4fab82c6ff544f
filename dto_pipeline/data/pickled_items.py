"""A huge pickled dictionary, item by item: what `np.savez(file, annots=dictionary)` leaves, read without holding it.

The inert machine of `inert_pickle` reads straight from the mapped member and hands out the dictionary's items as they
are set, so that memory is that of one batch (Python's pickler sets a thousand items at once). Two passes: the first
only notes which memo entries are fetched again, because a pickle remembers every object it ever made and almost none
of them is asked for; the second keeps those alone, until their last use. Knows opcodes and numpy's spelling of an
array; knows nothing of what the items mean. Nothing is run, by the rules of `safe_pickle`.
"""

from __future__ import annotations

import mmap
import re
import struct
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.inert_pickle import OPCODES, Machine
from dto_pipeline.data.inert_records import (
    Allowlist,
    BrokenPickle,
    Global,
    Limits,
    PickleRefused,
    Record,
    Role,
    UnsafePickle,
    shown,
)
from dto_pipeline.data.npz import MappedNpz, NpzError, release
from dto_pipeline.data.safe_pickle import NUMPY_ONLY

ITEM_LIMITS = Limits()
"""What may lie between two deliveries: bytes, instructions; and what one item may cost when it is built."""

_MAX_FETCHES = 100_000_000  # memo entries fetched again, 4 bytes each; 20 times those of 560,000 images
_ALWAYS_KEPT = 256  # memo entries below this are kept: names, dtypes and words come first in a stream
_STATE = (5, 6)  # an array's state up to its dictionary: (version,) shape, dtype, order, [, {
_MALFORMED = (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, MemoryError, RecursionError)

# Opcodes whose argument has a fixed length and that fetch nothing from beyond the always kept part of the memo.
_RUN = re.compile(
    rb"(?:[(012N\x88\x89)\]}\x8f\x85\x86\x87tldaesu\x90\x91\x93\x94R\x81\x92ob]|[Khq\x80].|C\x01.|M..|[Jr].{4}|[G\x95].{8})*+",
    re.DOTALL,
)
_COUNTED = {b"\x8a"[0]: "<B", b"\x8b"[0]: "<i", ord("T"): "<i", ord("U"): "<B", ord("X"): "<I", ord("B"): "<I"}
_COUNTED |= {0x8C: "<B", ord("C"): "<B", 0x8D: "<Q", 0x8E: "<Q", 0x96: "<Q"}
_LENGTHS = {code: struct.Struct(layout) for code, layout in _COUNTED.items()}
_LINES = {**dict.fromkeys(b"ILFSVpgP", 1), ord("c"): 2, ord("i"): 2}  # opcodes followed by lines of text

# One array as numpy's pickle spells it once its words are in the memo, from behind the fetched `_reconstruct` to the
# length of its bytes; groups: what is put into the memo (first to fifth), the fetches and the shape between them.
_PUT, _GET = rb"(r.{4}|\x94)?+", rb"(h.|j.{4})"
_HEAD = re.compile(
    _GET + rb"K\x00\x85" + _PUT + rb"(?:" + _GET + rb"|C\x01b)\x87" + _PUT + rb"R" + _PUT + rb"\(K\x01"
    rb"(?:K(.)\x85" + _PUT + rb"|" + _GET + rb")" + _GET + rb"\x89(?:C(.)|B(.{4}))",
    re.DOTALL,
)
_TAIL = re.compile(_PUT + rb"t" + _PUT + rb"b", re.DOTALL)


class PickledItems:
    """The items of one member; use as a context manager and read `items` once.

    Args:
        path: the npz.
        key: the member: a 0-d array holding one dictionary.
        compare: hold its bytes against the archive's checksum; not worth it for a look at the beginning.

    Raises:
        BrokenPickle: no such member, a damaged archive, or an array of another kind.
        FileNotFoundError: no such file.
    """

    def __init__(self, path: str | Path, key: str, compare: bool = True, allow: Allowlist = NUMPY_ONLY) -> None:
        self.where = f"{path}: {key}"
        self._allow = allow
        try:
            self._npz = MappedNpz(path)
        except NpzError as error:
            raise BrokenPickle(str(error)) from error
        try:
            self._data, self._start, self._end = self._npz.object_bytes(key, compare)
        except NpzError as error:
            self._npz.close()
            raise BrokenPickle(str(error)) from error

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Key and value of each item, as records for `pickled_arrays.build_values`.

        Raises:
            UnsafePickle, BrokenPickle: as `safe_pickle.safe_loads`; also bytes that are not those that were written.
        """
        return self._run(self._scan())

    def first_items(self) -> Iterator[tuple[Any, Any]]:
        """The same without the first pass: for a look at the beginning, every memo entry is kept."""
        return self._run(None)

    def __enter__(self) -> PickledItems:
        return self

    def __exit__(self, *_: object) -> None:
        self._data.close()
        self._npz.close()

    def _scan(self) -> dict[int, int]:
        """Memo entry -> how often it is fetched, of those that are fetched at all."""
        try:
            fetched = _fetches(self._data, self._start, self._end)
        except PickleRefused as error:
            raise type(error)(f"{self.where}: {error}") from error
        except _MALFORMED as error:
            raise BrokenPickle(f"{self.where}: malformed ({type(error).__name__}); fetch the file again") from error
        index, times = np.unique(np.frombuffer(fetched, np.uint32), return_counts=True)
        return dict(zip(index.tolist(), times.tolist(), strict=True))

    def _run(self, needed: dict[int, int] | None) -> Iterator[tuple[Any, Any]]:
        machine = _Streaming(self._data, self._start, self._end, self._allow, needed)
        try:
            yield from machine.items()
        except PickleRefused as error:
            raise type(error)(f"{self.where}: byte {machine.at}: {error}") from error
        except _MALFORMED as error:
            found = f"{type(error).__name__}: {shown(str(error))}"
            raise BrokenPickle(f"{self.where}: malformed at byte {machine.at} ({found}); fetch it again") from error


def _fetches(data: mmap.mmap, start: int, end: int) -> array[int]:
    """Every memo entry that an instruction fetches, but for those always kept; the stream is walked, not run."""
    fetched, at, released = array("I"), start, start
    while True:
        run = _RUN.match(data, at, end)
        assert run is not None  # the pattern matches nothing too
        at = run.end()
        if at >= end:
            raise BrokenPickle("the stream ends without STOP: it is truncated")
        code = data[at]
        if code == ord("."):
            return fetched
        at = _step(data, at, end, fetched)
        if len(fetched) > _MAX_FETCHES:
            raise BrokenPickle(f"fetches more than {_MAX_FETCHES} objects again; at most so many are read")
        released = release(data, released, at)


def _step(data: mmap.mmap, at: int, end: int, fetched: array[int]) -> int:
    """Past one instruction whose argument has no fixed length, or that fetches."""
    code = data[at]
    if code == ord("j"):
        fetched.append(struct.unpack_from("<I", data, at + 1)[0])
        return at + 5
    if code in _LENGTHS:
        form = _LENGTHS[code]
        (length,) = form.unpack_from(data, at + 1)
        after = at + 1 + form.size + max(0, length)
        if after > end:
            raise BrokenPickle(f"{length} bytes expected, {end - at} left: truncated")
        return int(after)
    if code in b"Khq\x80MJrG\x95":  # the run ends there because its argument does not fit
        raise BrokenPickle("the stream ends inside an instruction: it is truncated")
    if code not in _LINES:
        kind = UnsafePickle if code in OPCODES else BrokenPickle
        raise kind(f"byte {at}: 0x{code:02x} is not an instruction that such data needs; nothing was run")
    first = at + 1
    for _ in range(_LINES[code]):
        at = data.find(b"\n", at + 1, end)
        if at < 0:
            raise BrokenPickle("a text argument without end of line: truncated")
    if code == ord("g"):
        fetched.append(int(data[first:at]))
    return at + 1


class _Streaming(Machine):
    """The inert machine on a mapped stream: hands out the dictionary's items, forgets what nobody fetches."""

    def __init__(self, data: mmap.mmap, start: int, end: int, allow: Allowlist, needed: dict[int, int] | None) -> None:
        super().__init__(_Window(data, end), allow)  # type: ignore[arg-type]
        self.at = start
        self.map, self.end, self.start = data, end, start
        self.needed = needed  # memo entry -> fetches to come; None = keep all
        self.remembered = 0  # instructions that put something into the memo so far: MEMOIZE counts them
        self.ready: list[tuple[Any, Any]] = []

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Run the stream; see `PickledItems.items`."""
        data, end, budget = self.map, self.end, ITEM_LIMITS.max_opcodes
        delivered = released = self.at
        while True:
            if self.at >= end:
                raise BrokenPickle("the stream ends without STOP: it is truncated")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                break
            opcode = _STREAMING.get(code)
            if opcode is None:
                raise BrokenPickle(f"0x{code:02x} is not a pickle opcode")
            opcode(self)
            budget -= 1
            if self.ready:
                yield from self.ready
                self.ready, budget, delivered = [], ITEM_LIMITS.max_opcodes, self.at
                released = release(data, released, self.at)
            elif budget < 0 or self.at - delivered > ITEM_LIMITS.max_stream_bytes:
                raise BrokenPickle(
                    f"more than {ITEM_LIMITS.max_opcodes} instructions or {ITEM_LIMITS.max_stream_bytes} bytes between "
                    "two items of one dictionary: it is no dictionary of small items"
                )
        if self.at != end or len(self.stack) != 1 or self.marks:
            raise BrokenPickle("bytes or objects are left at STOP")

    # the memo: entries nobody fetches are not kept

    def _kept(self, index: int) -> bool:
        return self.needed is None or index < _ALWAYS_KEPT or index in self.needed

    def put(self, index: int) -> None:
        self.remembered += 1
        if self._kept(index):
            self.memo[index] = self.stack[-1]

    def memoize(self) -> None:
        self.put(self.remembered)

    def get(self, index: int) -> None:
        super().get(index)
        if self.needed is None or index < _ALWAYS_KEPT:
            return
        self.needed[index] -= 1
        if self.needed[index] <= 0:
            del self.needed[index], self.memo[index]

    def fetch(self, index: int) -> None:
        """`get`, and where it is numpy's `_reconstruct`, the whole array at once if it is spelled as numpy does."""
        found = self.memo.get(index)
        if type(found) is Global and found.role is Role.RECONSTRUCT and self._array(found):
            return
        self.get(index)

    def _array(self, reconstruct: Global) -> bool:
        """Take an array in one step; False and nothing changed where it is spelled otherwise or parts are shared."""
        head = _HEAD.match(self.map, self.at, self.end)
        if head is None:
            return False
        cls, put_zero, kind, put_args, put_self, length, put_shape, shape_at, dtype, short, long = head.groups()
        size = short[0] if short is not None else int.from_bytes(long, "little")
        after = head.end() + size
        tail = _TAIL.match(self.map, after, self.end) if after <= self.end and size > 1 else None
        if tail is None:
            return False
        inner = (put_zero, put_args, put_shape, *tail.groups())
        own = self._count_puts(inner, put_self)
        memo = self.memo
        fetched = [memo.get(_index(part)) for part in (cls, dtype) if part is not None]
        shape = (length[0],) if length is not None else memo.get(_index(shape_at))
        letter = b"b" if kind is None else memo.get(_index(kind))
        if own is None or len(fetched) != 2 or type(shape) is not tuple or letter != b"b" or not self._words(head):
            return False
        record = Record(reconstruct, (fetched[0], (0,), letter))
        record.state = (1, shape, fetched[1], False, self.map[head.end() : after])
        self.remembered += sum(part is not None for part in (*inner, put_self))
        self.at = tail.end()
        self.stack.append(record)
        if own >= 0:
            self.memo[own] = record
        return True

    def _words(self, head: re.Match[bytes]) -> bool:
        """Everything the array fetches is of the part that is always kept, so nothing is to be counted."""
        return not any(part is not None and part[0] == ord("j") for part in head.group(1, 3, 8, 9))

    def _count_puts(self, inner: tuple[bytes | None, ...], own: bytes | None) -> int | None:
        """Memo entry of the array, -1 where nobody fetches it; None where somebody fetches a part of it."""
        if self.needed is None:
            return None
        if own is not None and len(own) > 1:
            if any(part is not None and self._kept(_index(part)) for part in inner):
                return None
            place = _index(own)
            return place if self._kept(place) else -1
        if own is None and not any(inner):
            return -1
        # MEMOIZE: entries are numbered as they come, the array's third of (0,), its arguments, itself
        first, many = self.remembered, sum(part is not None for part in (*inner, own))
        if first < _ALWAYS_KEPT or any(place in self.needed for place in range(first, first + many)):
            return None
        return -1

    # the dictionary whose items are handed out

    def set_items(self, items: list[Any]) -> None:
        if not (len(self.marks) == 1 and len(self.stack) in _STATE and type(self.stack[-2]) is list):
            super().set_items(items)
            return
        super().set_items(items)
        if len(self.stack[-1]) != len(items) // 2:
            raise BrokenPickle("a key occurs twice")
        self.ready.extend(self.stack[-1].items())
        self.stack[-1].clear()


class _Window:
    """A mapped stream up to its end, as `Machine` reads it."""

    def __init__(self, data: mmap.mmap, end: int) -> None:
        self._data, self._end = data, end

    def __len__(self) -> int:
        return self._end

    def __getitem__(self, place: Any) -> Any:
        return self._data[place]

    def find(self, text: bytes, start: int) -> int:
        return self._data.find(text, start, self._end)


def _index(part: bytes) -> int:
    """The memo entry of a PUT or GET as it is spelled."""
    return part[1] if len(part) == 2 else int.from_bytes(part[1:], "little")


def _operand(layout: str, use: Any) -> Any:
    form = struct.Struct(layout)

    def opcode(machine: _Streaming) -> None:
        use(machine, form.unpack(machine.take(form.size))[0])

    return opcode


_STOP = ord(".")
_STREAMING: dict[int, Any] = {
    **OPCODES,
    ord("p"): lambda m: m.put(int(m.line()[:20])),
    ord("q"): _operand("<B", _Streaming.put),
    ord("r"): _operand("<I", _Streaming.put),
    0x94: _Streaming.memoize,
    ord("g"): lambda m: m.get(int(m.line()[:20])),
    ord("h"): _operand("<B", _Streaming.fetch),
    ord("j"): _operand("<I", _Streaming.get),
    ord("s"): lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.set_items(m.pop_mark()),
}
