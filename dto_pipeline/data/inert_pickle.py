"""Read a pickle without running anything in it: Python's own unpickler with its dangerous instructions replaced.

A global becomes a `Name` from an allowlist; the Python object of that name is never looked up. A call runs the function
of this project that the allowlist gives for the name (`safe_pickle` has numpy's), and nothing else. A state (BUILD) is
passed to the function registered for its object.

The unpickler written in C cannot be used: it calls whatever REDUCE, OBJ, INST and BUILD find on its stack, takes
extension codes from a cache of live objects, allocates what a length claims, grows its memo to any index, and hashes
nested tuples, which may never end.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from dto_pipeline.errors import DtoError

_SHOWN = 120  # characters of hostile text or of a Python error that may reach a message
_MAX_INT_BITS = 64
_READ_COST = 64  # bytes added for each instruction or argument: about what a small object takes
_PLAIN = frozenset({str, float, complex, bytes, bool, type(None)})


class PickleRefused(DtoError, ValueError):
    """A pickle that was not read. Nothing of it was run."""


class UnsafePickle(PickleRefused):
    """The pickle needs something that is not on the allowlist; the message names it."""


class BrokenPickle(PickleRefused):
    """The pickle is truncated, malformed or larger than the limits allow."""


@dataclass(frozen=True)
class Limits:
    """How much one pickle may cost. A stream beyond any of them is a `BrokenPickle`."""

    max_bytes: int = 2**30  # of the stream, plus 64 for each instruction and argument: bounds time and small objects
    max_depth: int = 64  # containers inside containers
    max_items: int = 50_000_000  # of all containers; shared ones count as often as they occur
    max_array_bytes: int = 2**31  # all arrays together [bytes]


Make = Callable[..., Any] | None
"""Makes the result of a call from the unpickler and the call's arguments; None = the name is never called."""

Allowlist = Mapping[tuple[str, str], Make]
"""(module, name) of every global that may appear."""

PERSISTENT_ID = ("", "persistent id")  # the key under which an allowlist takes what lies outside the stream


class StandIn:
    """Something a stream refers to that is not a value itself, such as a name or a dtype."""


@dataclass(frozen=True)
class Name(StandIn):
    """A global of the stream. The Python object of that name is never looked up."""

    module: str
    name: str
    make: Make

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def shown(value: object) -> str:
    """Printable form of anything in a hostile pickle, for messages: short, and without walking through containers."""
    if type(value) is str or isinstance(value, Name):
        return ascii(str(value)[:_SHOWN])
    if type(value) in (int, float, bool, type(None)):
        return repr(value)
    if type(value) is tuple and all(type(item) is int for item in value[:_SHOWN]):
        return repr(value[:_SHOWN])
    return f"a {type(value).__name__}"


# What the unpickler raises on a malformed stream: items missing on the stack, bad numbers or text, too much memory.
_MALFORMED = (
    *(pickle.UnpicklingError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError, EOFError),
    *(struct.error, MemoryError, RecursionError),
)


class Stream:
    """A pickle of `size` bytes in a file, read in order. At most `max_bytes` are read before `left` is reset."""

    def __init__(self, source: IO[bytes], size: int, max_bytes: int) -> None:
        self._source, self.size, self.at = source, size, 0
        self.left = self.max_bytes = max_bytes

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Raises: BrokenPickle: there are fewer, or more was read than allowed."""
        if count > self.size - self.at:
            raise BrokenPickle(f"{count} bytes expected, {self.size - self.at} left: truncated")
        self.left -= count + _READ_COST
        if self.left < 0:
            raise self._too_much()
        found = self._source.read(count)
        self.at += len(found)
        if len(found) < count:
            raise BrokenPickle(f"{count} bytes expected, {len(found)} left: truncated")
        return found

    def readline(self) -> bytes:
        found = self._source.readline(self.left)
        self.at += len(found)
        self.left -= len(found) + _READ_COST
        if self.left < 0:
            raise self._too_much()
        if not found.endswith(b"\n"):
            raise BrokenPickle("a text argument without end of line: truncated")
        return found

    def _too_much(self) -> BrokenPickle:
        return BrokenPickle(f"more than {self.max_bytes} bytes, each instruction counted as {_READ_COST} more")

    @contextmanager
    def errors_named(self, where: str) -> Iterator[None]:
        """Add file and byte to errors inside the block, at whose end the stream must be at its own."""
        try:
            yield
            if self.at != self.size:
                raise BrokenPickle(f"{self.size - self.at} bytes follow the end of the pickle")
        except PickleRefused as error:
            raise type(error)(f"{where}: byte {self.at}: {error}") from error
        except DtoError:  # of the function that takes the values
            raise
        except _MALFORMED as error:
            found = f"{type(error).__name__}: {ascii(str(error))[1:-1]}"[:_SHOWN]
            raise BrokenPickle(f"{where}: malformed at byte {self.at} ({found}); fetch the file again") from error


class InertUnpickler(pickle._Unpickler):
    """The standard unpickler with checked versions of the instructions that call, set a state or hash.

    Args:
        object_arrays: whether numpy arrays of Python objects are allowed.
    """

    # What the standard class sets when it begins to load.
    stack: list[Any]
    metastack: list[list[Any]]  # stacks set aside by MARK
    memo: dict[int, Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, stream: Stream, allow: Allowlist, limits: Limits, object_arrays: bool) -> None:
        super().__init__(stream, encoding="latin1")  # of Python 2's strings
        self.limits, self.object_arrays = limits, object_arrays
        self.unfilled: dict[int, tuple[Any, Callable[..., None]]] = {}  # id -> object, what fills it from its state
        self.array_bytes = 0
        self._stream, self._allow = stream, allow

    def load(self) -> Any:
        value = super().load()
        if self.stack or self.metastack:
            raise BrokenPickle("objects are left on the stack at STOP")
        if self.unfilled:
            raise BrokenPickle("an array, a dtype or an object without contents")
        return value

    def fill_later(self, value: Any, fill: Callable[[InertUnpickler, Any, Any], None]) -> Any:
        """`value`, which `fill(unpickler, value, state)` completes when the stream sets its state."""
        self.unfilled[id(value)] = value, fill
        return value

    def count_bytes(self, count: int) -> None:
        """Count the memory of an array before it is made. Raises: BrokenPickle: it is too much."""
        self.array_bytes += count
        if self.array_bytes > self.limits.max_array_bytes:
            raise BrokenPickle(f"more than {self.limits.max_array_bytes} bytes of arrays")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allow:
            raise UnsafePickle(f"refuses {shown(f'{module}.{name}')}: such data does not need it; nothing was run")
        return Name(module, name, self._allow[module, name])

    def persistent_load(self, pid: Any) -> Any:
        make = self._allow.get(PERSISTENT_ID)
        if make is None:
            raise UnsafePickle(f"refuses the persistent id {shown(pid)}: it points outside the file; nothing was run")
        return make(self, pid)

    def call(self, what: object, args: object) -> None:
        if type(what) is not Name or what.make is None or type(args) is not tuple:
            raise BrokenPickle(f"a call of {shown(what)} with {shown(args)}")
        self.append(what.make(self, *args))

    def _instantiate(self, klass: object, args: list[Any]) -> None:
        self.call(klass, tuple(args))

    def reduce(self) -> None:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if id(target) in self.unfilled:
            self.unfilled[id(target)][1](self, target, state)
            del self.unfilled[id(target)]
        elif type(target) is not dict or ("collections", "OrderedDict") not in self._allow:  # its attributes: not kept
            raise BrokenPickle(f"a state ({shown(state)}) set on {shown(target)}")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise BrokenPickle(f"{len(items)} keys and values for {shown(target)}")
        expected = len(target) + len(items) // 2
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value
        if len(target) != expected:
            raise BrokenPickle("a key occurs twice")

    def dict_of(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is not set:
            raise BrokenPickle(f"members added to {shown(target)}, which is not a set")
        target.update(map(checked_key, items))

    def frame(self) -> None:  # the standard one would read ahead, past the count of bytes
        (length,) = struct.unpack("<Q", self.read(8))
        if length > self._stream.size - self._stream.at:
            raise BrokenPickle(f"a frame of {length} bytes, longer than the file: truncated")


class _Opcodes(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> Callable[[Any], None]:
        kind = UnsafePickle if code in pickle._Unpickler.dispatch else BrokenPickle
        raise kind(f"refuses the instruction 0x{code:02x}: such data does not need it; nothing was run")


# What is not here is refused: extension codes, buffers outside the stream, and what a later Python adds.
_STANDARD = b"\x80(.012N\x88\x89IFJKMLG\x8a\x8bSTUVX\x8c\x8dBC\x8e)]}\x8ftl\x85\x86\x87aepqr\x94ghjc\x93ioPQ"
OPCODES = _Opcodes({code: pickle._Unpickler.dispatch[code] for code in _STANDARD})
OPCODES |= {
    pickle.BYTEARRAY8[0]: pickle._Unpickler.dispatch[pickle.BINBYTES8[0]],  # the standard one allocates first
    pickle.FRAME[0]: InertUnpickler.frame,
    pickle.DICT[0]: InertUnpickler.dict_of,
    pickle.SETITEM[0]: lambda unpickler: unpickler.set_items([unpickler.stack.pop(-2), unpickler.stack.pop()]),
    pickle.SETITEMS[0]: lambda unpickler: unpickler.set_items(unpickler.pop_mark()),
    pickle.ADDITEMS[0]: InertUnpickler.add_items,
    pickle.FROZENSET[0]: lambda unpickler: unpickler.append(frozenset(map(checked_key, unpickler.pop_mark()))),
    pickle.REDUCE[0]: InertUnpickler.reduce,
    pickle.NEWOBJ[0]: InertUnpickler.reduce,
    pickle.BUILD[0]: InertUnpickler.build,
}
InertUnpickler.dispatch = OPCODES


def checked_key(key: Any) -> Any:
    """A key, or a member of a set, which must be a plain value: hashing tuples or huge integers may never end."""
    if type(key) in _PLAIN or (type(key) is int and key.bit_length() <= _MAX_INT_BITS):
        return key
    raise BrokenPickle(f"{shown(key)} used as a key")


def check_values(value: Any, limits: Limits) -> None:
    """Check what was read before anybody walks through it; shared parts count as often as they occur.

    Raises: BrokenPickle: nested too deep (also: containing itself), too many items, an integer of more than 64 bits, or
        a name in place of a value.
    """
    known: dict[int, int] = {}  # id of a container -> its items

    def count(node: Any, depth: int) -> int:
        kind, items = type(node), 1
        if kind is dict:
            parts, items = node.values(), 1 + len(node)
        elif kind in (list, tuple, set, frozenset):
            parts = node
        elif getattr(node, "dtype", None) == "O":
            parts = node.flat
        elif isinstance(node, StandIn):
            raise BrokenPickle(f"{shown(node)} where a value is expected")
        elif kind is int and node.bit_length() > _MAX_INT_BITS:
            raise BrokenPickle(f"an integer of {node.bit_length()} bits, at most {_MAX_INT_BITS} are read")
        else:
            return 1
        if depth >= limits.max_depth:
            raise BrokenPickle(f"more than {limits.max_depth} containers inside each other")
        if id(node) not in known:
            for part in parts:
                items += 1 if type(part) in _PLAIN else count(part, depth + 1)
            if items > limits.max_items:
                raise BrokenPickle(f"more than {limits.max_items} items, shared ones counted each time")
            known[id(node)] = items
        return known[id(node)]

    count(value, 0)
