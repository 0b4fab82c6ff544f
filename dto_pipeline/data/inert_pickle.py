"""Reads a pickle without the power to run anything: the standard unpickler, its dangerous part replaced.

`InertUnpickler` is Python's own (`pickle._Unpickler`), but a global becomes a `Global` (a name from the allowlist,
never looked up), a call a `Record` of what would have been called with what, and a state is noted in the record.
`safe_pickle` makes values of records afterwards, by the function that the allowlist gives for each name.

Not the unpickler in C, which calls whatever REDUCE, OBJ, INST and BUILD find on its stack, takes extension codes from a
cache of live objects, allocates what a length claims, grows its memo to any index, and hashes tuples without end.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

from dto_pipeline.errors import DtoError

_SHOWN = 120  # characters of hostile text or of a Python error that may reach a message
_MAX_INT_BITS = 64
_KEY_TYPES = (str, int, float, bytes, bool, type(None))


class PickleRefused(DtoError, ValueError):
    """A pickle that was not read. Nothing of it was run."""


class UnsafePickle(PickleRefused):
    """The pickle asks for something that is not on the allowlist; the message names it."""


class BrokenPickle(PickleRefused):
    """The pickle is truncated, malformed or larger than the limits allow."""


Make = Callable[[Any, "Record", int], Any]
"""What becomes of the call of an allowed name: builder, record and depth -> value (see `safe_pickle.Builder`)."""

Allowlist = Mapping[tuple[str, str], Make]  # (module, name) of every global that may appear
PERSISTENT_ID = ("", "persistent id")  # the key under which an allowlist lets a stream name what lies beside it


def only_named(builder: Any, record: Record, depth: int) -> Any:
    """For names that stand for themselves: `numpy.ndarray`, `object`, kinds of torch's storages."""
    raise BrokenPickle(f"{record.what} is called as a function")


def new_dict(builder: Any, record: Record, depth: int) -> Any:
    """For `collections.OrderedDict`: without arguments the unpickler itself makes a dict, which SETITEMS fills."""
    raise BrokenPickle(f"{record.what} with arguments")


@dataclass(frozen=True)
class Limits:
    """How much one pickle may cost. A stream beyond any of them is a `BrokenPickle`."""

    max_stream_bytes: int = 2**30  # length of the stream [bytes]
    max_opcodes: int = 20_000_000  # instructions: bounds time (about half a minute) and small objects
    max_depth: int = 64  # containers inside containers
    max_items: int = 50_000_000  # items of the result, shared ones counted each time they are seen
    max_array_bytes: int = 2**31  # all rebuilt arrays together [bytes]


@dataclass(frozen=True)
class Global:
    """A name the pickle refers to. Only a name: what it stands for in Python is never looked up."""

    module: str
    name: str
    make: Make

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """A call the pickle asks for and that is never made: who, with what, and the state set afterwards."""

    what: Global
    args: tuple[Any, ...]
    state: Any = None


def shown(value: object) -> str:
    """Printable form of something hostile, for messages: text shortened, containers (which may share) not followed."""
    if type(value) is str or isinstance(value, Global):
        return ascii(str(value)[:_SHOWN])
    if type(value) in (int, float, bool, type(None)):
        return repr(value)
    if type(value) is tuple and all(type(item) is int for item in value[:_SHOWN]):
        return repr(value[:_SHOWN])
    return f"a {type(value).__name__}"


# what the machine raises on a malformed stream: missing stack items, bad numbers, bad text, too much memory
_MALFORMED = (
    *(pickle.UnpicklingError, AttributeError, LookupError, TypeError, ValueError, OverflowError, EOFError),
    *(struct.error, MemoryError, RecursionError),
)


def load_records(data: bytes, allow: Allowlist, limits: Limits, where: str) -> object:
    """The objects of a pickle stream, nothing run; `where` is file and member, for messages.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, `Global` and `Record`, nested.
        Python-2 strings are decoded as latin1; a bytearray comes back as bytes.

    Raises:
        UnsafePickle: a global that is not allowed, a persistent id, an extension code or an out-of-band buffer.
        BrokenPickle: anything else that is wrong.
    """
    if len(data) > limits.max_stream_bytes:
        raise BrokenPickle(f"{where}: {len(data)} bytes of pickle, at most {limits.max_stream_bytes} are read")
    stream = Stream(data, 0, len(data))
    with stream.told(where):
        return InertUnpickler(stream, allow, limits.max_opcodes).load()


class Stream:
    """Bytes, or a map of a file, from one place to another; a claim beyond the end costs nothing."""

    def __init__(self, data: Any, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end
        self.bound = end  # as far as may be read for now

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Raises: BrokenPickle: there are fewer, or they are beyond the bound."""
        start, at = self.at, self.at + count
        if at > self.bound:
            if at > self.end:
                raise BrokenPickle(f"{count} bytes expected, {self.end - start} left: truncated")
            raise BrokenPickle(f"byte {self.bound} is passed before an item of the dictionary: they are not small")
        self.at = at
        return self.data[start:at]

    def readline(self) -> bytes:
        found = self.data.find(b"\n", self.at, self.end)
        if found < 0:
            raise BrokenPickle("a text argument without end of line: truncated")
        return self.read(found + 1 - self.at)

    @contextmanager
    def told(self, where: str) -> Iterator[None]:
        """Says of what is wrong with the stream in which file and at which byte; what follows its end is wrong too."""
        try:
            yield
            if self.at != self.end:
                raise BrokenPickle(f"{self.end - self.at} bytes follow the end of the pickle")
        except PickleRefused as error:
            raise type(error)(f"{where}: byte {self.at}: {error}") from error
        except _MALFORMED as error:
            found = f"{type(error).__name__}: {ascii(str(error))[1:-1]}"[:_SHOWN]
            raise BrokenPickle(f"{where}: malformed at byte {self.at} ({found}); fetch the file again") from error


class Opcodes:
    """What `pickle._Unpickler` looks its instructions up in: the table below, for a number of look-ups."""

    def __init__(self, most: int) -> None:
        self.left = self.most = most

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self.left -= 1
        if self.left < 0:
            raise BrokenPickle(f"more than {self.most} instructions")
        if code not in _OPCODES:
            raise BrokenPickle(f"0x{code:02x} is not a pickle opcode")
        return _OPCODES[code]


class InertUnpickler(pickle._Unpickler):
    """The standard unpickler, from whose opcodes those that act or hash were taken. Memo and stacks are its own."""

    # what the standard class sets when it begins to load
    stack: list[Any]
    metastack: list[list[Any]]  # stacks set aside by MARK
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: Stream, allow: Allowlist, max_opcodes: int) -> None:
        super().__init__(stream, encoding="latin1")
        self._allow, self._stream = allow, stream
        self.dispatch = Opcodes(max_opcodes)  # type: ignore[assignment, misc]

    def load(self) -> Any:
        value = super().load()
        if self.stack or self.metastack:
            raise BrokenPickle("objects are left on the stack at STOP")
        return value

    # names: recorded, never looked up

    def find_class(self, module: str, name: str) -> Any:
        make = self._allow.get((module, name))
        if make is None:
            raise UnsafePickle(f"refuses {shown(f'{module}.{name}')}: such data does not need it; nothing was run")
        return Global(module, name, make)

    def persistent_load(self, pid: Any) -> Any:
        if PERSISTENT_ID not in self._allow:
            self._outside(f"the persistent id {shown(pid)}")
        return Record(Global(*PERSISTENT_ID, only_named), (pid,))

    def get_extension(self, code: int) -> None:
        self._outside(f"the extension code {code}")

    def buffer(self) -> None:
        self._outside("NEXT_BUFFER or READONLY_BUFFER")

    def _outside(self, what: str) -> NoReturn:
        raise UnsafePickle(f"refuses {what}: it points outside the file; nothing was run")

    # calls: recorded, never made

    def call(self, what: object, args: object) -> None:
        if type(what) is not Global or type(args) is not tuple:
            raise BrokenPickle(f"a call of {_kind(what)} with {_kind(args)}")
        self.append({} if what.make is new_dict and args == () else Record(what, args))

    def _instantiate(self, klass: object, args: list[Any]) -> None:
        self.call(klass, tuple(args))

    def reduce(self) -> None:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    def newobj_ex(self) -> None:
        if (keywords := self.stack.pop()) != {}:
            raise BrokenPickle(f"an object made with keyword arguments ({_kind(keywords)})")
        self.reduce()

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is dict and new_dict in self._allow.values():
            return  # attributes of an OrderedDict, such as the versions that torch notes: not kept
        if type(target) is not Record or target.state is not None or state is None:
            raise BrokenPickle(f"a state ({_kind(state)}) set on {_kind(target)}")
        target.state = state

    # what hashes: only plain keys, into what the stream itself made

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise BrokenPickle(f"{len(items)} keys and values for {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def dict_of(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is not set:
            raise BrokenPickle(f"members added to {_kind(target)}, which is not a set")
        target.update(map(_checked_key, items))

    def frame(self) -> None:
        (length,) = struct.unpack("<Q", self.read(8))
        if length > self._stream.end - self._stream.at:
            raise BrokenPickle(f"a frame of {length} bytes, longer than the file: truncated")


def _kind(value: object) -> str:
    if isinstance(value, Record):
        return f"a {value.what} object"
    return f"the name {value}" if isinstance(value, Global) else f"a {type(value).__name__}"


def _checked_key(key: object) -> object:
    """Keys are plain values (hash attacks need tuples or huge integers) or numpy scalars, still as records."""
    if type(key) in _KEY_TYPES or (type(key) is Record and key.what.name == "scalar"):
        return key
    raise BrokenPickle(f"{_kind(key)} used as a key")


_Opcode = Callable[[Any], None]


def _bounded(load: _Opcode) -> _Opcode:
    def opcode(machine: InertUnpickler) -> None:
        load(machine)
        if (bits := machine.stack[-1].bit_length()) > _MAX_INT_BITS:
            raise BrokenPickle(f"an integer of {bits} bits, at most {_MAX_INT_BITS} are read")

    return opcode


def _counted(layout: str, convert: Callable[[bytes], object]) -> _Opcode:
    form = struct.Struct(layout)
    return lambda machine: machine.append(convert(machine.read(form.unpack(machine.read(form.size))[0])))


_utf8 = bytes.decode  # strict: the standard opcodes let lone surrogates pass, which no file can be written with
_STANDARD = b"\x80(.012N\x88\x89FJKMGSTUVBC\x8e)]}\x8ftl\x85\x86\x87aepqr\x94ghjc\x93ioPQ\x82\x83\x84"
# An opcode that is in neither part does not exist, so that what a later Python adds is not read unseen.
_OPCODES: dict[int, _Opcode] = {
    **{code: pickle._Unpickler.dispatch[code] for code in _STANDARD},
    **{code: _bounded(pickle._Unpickler.dispatch[code]) for code in b"IL\x8a\x8b"},
    pickle.BINUNICODE[0]: _counted("<I", _utf8),
    pickle.SHORT_BINUNICODE[0]: _counted("<B", _utf8),
    pickle.BINUNICODE8[0]: _counted("<Q", _utf8),
    pickle.BYTEARRAY8[0]: _counted("<Q", bytes),
    pickle.FRAME[0]: InertUnpickler.frame,
    pickle.DICT[0]: InertUnpickler.dict_of,
    pickle.SETITEM[0]: lambda machine: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    pickle.SETITEMS[0]: lambda machine: machine.set_items(machine.pop_mark()),
    pickle.ADDITEMS[0]: InertUnpickler.add_items,
    pickle.FROZENSET[0]: lambda machine: machine.append(frozenset(map(_checked_key, machine.pop_mark()))),
    pickle.REDUCE[0]: InertUnpickler.reduce,
    pickle.NEWOBJ[0]: InertUnpickler.reduce,
    pickle.NEWOBJ_EX[0]: InertUnpickler.newobj_ex,
    pickle.BUILD[0]: InertUnpickler.build,
    pickle.NEXT_BUFFER[0]: InertUnpickler.buffer,
    pickle.READONLY_BUFFER[0]: InertUnpickler.buffer,
}
