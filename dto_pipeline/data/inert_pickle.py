"""Inert pickle machine: reads a pickle stream of protocol 0-5 without the power to run anything.

A pickle is a program for a small stack machine. This one knows the opcodes and nothing else: a global becomes a
`Global` (a name from the allowlist), a call becomes a `Record` of what would have been called with what. It never
imports, never calls, never sets an attribute, and knows no numpy: `pickled_arrays` makes values of records afterwards.

It is written out rather than derived from `pickle.Unpickler` because the library's opcodes call what they find (REDUCE,
NEWOBJ, INST, OBJ, BUILD on a class), look extension codes up in a cache of live objects, allocate what a length
field claims, and grow the memo to any index. Here an opcode that is not in the table below does not exist.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Callable
from typing import Any

from dto_pipeline.data.inert_records import (
    PERSISTENT_ID,
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

_KEY_TYPES = (str, int, float, bytes, bool, type(None))
_MAX_INT_BITS = 64
_MAX_NUMBER_TEXT = 64  # characters of a number written as text (protocol 0)
_MAX_REASON = 120  # characters of a Python error that reach a message


def load_records(data: bytes, allow: Allowlist, limits: Limits, where: str) -> object:
    """Run a pickle stream on the inert machine.

    Args:
        data: the whole stream.
        allow: (module, name) -> role of every global that may appear.
        where: file and member, for messages.

    Returns:
        None, bool, int, float, str, bytes, list, tuple, dict, set, frozenset, `Global` and `Record`, nested.
        Python-2 strings are decoded as latin1; a bytearray comes back as bytes.

    Raises:
        UnsafePickle: a global that is not allowed, a persistent id, an extension code or an out-of-band buffer.
        BrokenPickle: anything else that is wrong.
    """
    value, end = load_first_records(data, 0, allow, limits, where)
    if end != len(data):
        raise BrokenPickle(f"{where}: byte {end}: {len(data) - end} bytes follow the end of the pickle")
    return value


def load_first_records(data: bytes, start: int, allow: Allowlist, limits: Limits, where: str) -> tuple[object, int]:
    """As `load_records`, for a stream that begins at byte `start` and is followed by others; also where it ends."""
    if len(data) > limits.max_stream_bytes:
        raise BrokenPickle(f"{where}: {len(data)} bytes of pickle, at most {limits.max_stream_bytes} are read")
    machine = _Machine(data, allow)
    machine.at = start
    try:
        return machine.run(limits.max_opcodes), machine.at
    except PickleRefused as error:
        raise type(error)(f"{where}: byte {machine.at}: {error}") from error
    except _MALFORMED as error:
        found = f"{type(error).__name__}: {error}"[:_MAX_REASON]
        raise BrokenPickle(f"{where}: malformed at byte {machine.at} ({found}); fetch the file again") from error


# what the opcodes below raise on a malformed stream: missing stack items, bad numbers, bad text, too much memory
_MALFORMED = (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error, MemoryError, RecursionError)


class _Machine:
    """Stack, marks and memo of one stream. Every method is one opcode or reads its argument."""

    def __init__(self, data: bytes, allow: Allowlist) -> None:
        self.data = data
        self.allow = allow
        self.at = 0  # next byte to read
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []  # stacks set aside by MARK
        self.memo: dict[int, Any] = {}
        self.has_ordered = Role.DICT in allow.values()

    def run(self, max_opcodes: int) -> object:
        data = self.data
        for _ in range(max_opcodes):
            if self.at >= len(data):
                raise BrokenPickle("the stream ends without STOP: it is truncated")
            code = data[self.at]
            self.at += 1
            if code == _STOP:
                return self._finish()
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise BrokenPickle(f"0x{code:02x} is not a pickle opcode")
            opcode(self)
        raise BrokenPickle(f"more than {max_opcodes} instructions")

    def _finish(self) -> object:
        value = self.stack.pop()
        if self.stack or self.marks:
            raise BrokenPickle("objects are left on the stack at STOP")
        return value

    # reading arguments

    def take(self, count: int) -> bytes:
        """The next `count` bytes; a claim beyond the end costs nothing."""
        end = self.at + count
        if count < 0 or end > len(self.data):
            raise BrokenPickle(f"{count} bytes expected, {len(self.data) - self.at} left: truncated")
        chunk = self.data[self.at : end]
        self.at = end
        return chunk

    def line(self) -> bytes:
        """The bytes up to the next newline, which is consumed."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise BrokenPickle("a text argument without end of line: truncated")
        chunk = self.data[self.at : end]
        self.at = end + 1
        return chunk

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    # the stream itself

    def proto(self) -> None:
        version = self.take(1)[0]
        if version > 5:
            raise BrokenPickle(f"pickle protocol {version}; 0 to 5 are read")

    def frame(self) -> None:
        (length,) = struct.unpack("<Q", self.take(8))
        if length > len(self.data) - self.at:
            raise BrokenPickle(f"a frame of {length} bytes, {len(self.data) - self.at} left: truncated")

    # stack

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def dup(self) -> None:
        self.stack.append(self.stack[-1])

    # memo: a dict, so an index is only a key and costs nothing

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise BrokenPickle(f"memo entry {index} was never stored")
        self.stack.append(self.memo[index])

    # containers

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise BrokenPickle(f"a tuple of {count} from a stack of {len(self.stack)}")
        start = len(self.stack) - count
        self.stack[start:] = [tuple(self.stack[start:])]

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise BrokenPickle(f"items appended to {_kind(target)}, which is not a list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise BrokenPickle(f"{len(items)} keys and values for {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def add_items(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        if type(target) is not set:
            raise BrokenPickle(f"members added to {_kind(target)}, which is not a set")
        target.update(_checked_key(item) for item in items)

    def dict_from_mark(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    # names and calls: recorded, never looked up, never made

    def name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise BrokenPickle(f"a global named by {_kind(module)} and {_kind(name)}")
        self.stack.append(self._allowed(module, name))

    def global_lines(self) -> None:
        module, name = self.line(), self.line()
        self.name(module.decode("utf-8"), name.decode("utf-8"))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def _allowed(self, module: str, name: str) -> Global:
        role = self.allow.get((module, name))
        if role is None:
            raise UnsafePickle(f"refuses {shown(f'{module}.{name}')}: such data does not need it; nothing was run")
        return Global(module, name, role)

    def call(self, what: object, args: object) -> None:
        if type(what) is not Global or type(args) is not tuple:
            raise BrokenPickle(f"a call of {_kind(what)} with {_kind(args)}")
        ordered = what.role is Role.DICT and args == ()  # filled by SETITEMS afterwards, as any dict
        self.stack.append({} if ordered else Record(what, args))

    def persistent(self) -> None:
        role = self.allow.get(PERSISTENT_ID)
        if role is None:
            raise UnsafePickle(
                f"refuses a persistent id {_kind(self.stack[-1])}: it points outside the file; nothing was run"
            )
        self.stack.append(Record(Global(*PERSISTENT_ID, role), (self.stack.pop(),)))

    def reduce(self) -> None:
        args, what = self.stack.pop(), self.stack.pop()
        self.call(what, args)

    def newobj_ex(self) -> None:
        keywords = self.stack.pop()
        if keywords != {}:
            raise BrokenPickle(f"an object made with keyword arguments ({_kind(keywords)})")
        self.reduce()

    def obj(self) -> None:
        items = self.pop_mark()
        self.call(items[0], tuple(items[1:]))

    def inst(self) -> None:
        args = tuple(self.pop_mark())
        self.global_lines()
        self.call(self.stack.pop(), args)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is dict and self.has_ordered:
            return  # attributes of an OrderedDict, such as the versions that torch notes: not kept
        if type(target) is not Record or target.state is not None or state is None:
            raise BrokenPickle(f"a state ({_kind(state)}) set on {_kind(target)}")
        target.state = state


def _kind(value: object) -> str:
    """What a stack item is, without its content."""
    if isinstance(value, Record):
        return f"a {value.what} object"
    return f"the name {value}" if isinstance(value, Global) else f"a {type(value).__name__}"


def _checked_key(key: object) -> object:
    """Keys are plain values (hash attacks need tuples or huge integers) or numpy scalars, still as records."""
    if type(key) in _KEY_TYPES or (type(key) is Record and key.what.role is Role.SCALAR):
        return key
    raise BrokenPickle(f"{_kind(key)} used as a key")


# Python 2's repr of a str: the only escapes it writes, so that decoding is exact and never warns
_PYTHON2_TEXT = re.compile(rb"""(?:[^\\]++|\\[\\'"nrt]|\\x[0-9a-fA-F]{2})*+""")


def _python2_text(line: bytes) -> str:
    if len(line) < 2 or line[0] != line[-1] or line[:1] not in (b"'", b'"'):
        raise BrokenPickle("a text argument without quotes")
    if not _PYTHON2_TEXT.fullmatch(line, 1, len(line) - 1):
        raise BrokenPickle("a text argument with an unknown escape")
    return codecs.escape_decode(line[1:-1])[0].decode("latin1")


def _number_text(line: bytes) -> str:
    if len(line) > _MAX_NUMBER_TEXT:
        raise BrokenPickle(f"a number of {len(line)} characters")
    return line.decode("ascii")


def _integer_line(line: bytes) -> int:
    return _bounded(int(_number_text(line).removesuffix("L")))


def _integer_or_bool_line(line: bytes) -> int:
    return line == b"01" if line in (b"00", b"01") else _integer_line(line)


def _long(raw: bytes) -> int:
    if len(raw) > 1 + _MAX_INT_BITS // 8:
        raise BrokenPickle(f"an integer of {len(raw)} bytes")
    return _bounded(int.from_bytes(raw, "little", signed=True))


def _bounded(value: int) -> int:
    if value.bit_length() > _MAX_INT_BITS:
        raise BrokenPickle(f"an integer of {value.bit_length()} bits")
    return value


_Opcode = Callable[[_Machine], object]


def _fixed(layout: str, use: Callable[[_Machine, Any], None]) -> _Opcode:
    """An opcode with one number of fixed size as its argument."""
    form = struct.Struct(layout)

    def opcode(machine: _Machine) -> None:
        use(machine, form.unpack(machine.take(form.size))[0])

    return opcode


def _counted(layout: str, convert: Callable[[bytes], Any]) -> _Opcode:
    """An opcode with a length and that many bytes, pushed after conversion."""
    return _fixed(layout, lambda machine, length: machine.stack.append(convert(machine.take(length))))


def _line(convert: Callable[[bytes], Any]) -> _Opcode:
    """An opcode with one line of text, pushed after conversion."""
    return lambda machine: machine.stack.append(convert(machine.line()))


def _push(machine: _Machine, value: object) -> None:
    machine.stack.append(value)


def _refused(what: str, show: Callable[[_Machine], object]) -> _Opcode:
    """An opcode that reaches outside the stream."""

    def opcode(machine: _Machine) -> None:
        raise UnsafePickle(f"refuses {what} {shown(show(machine))}: it points outside the file; nothing was run")

    return opcode


def _number(layout: str) -> Callable[[_Machine], object]:
    form = struct.Struct(layout)
    return lambda machine: form.unpack(machine.take(form.size))[0]


_utf8 = bytes.decode
_STOP = ord(".")
_BY_NAME: dict[bytes, _Opcode] = {
    # protocol and stack
    b"\x80": _Machine.proto,
    b"\x95": _Machine.frame,
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.pop_mark,
    b"2": _Machine.dup,
    # constants and numbers
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"I": _line(_integer_or_bool_line),
    b"L": _line(_integer_line),
    b"F": _line(lambda line: float(_number_text(line))),
    b"J": _fixed("<i", _push),
    b"K": _fixed("<B", _push),
    b"M": _fixed("<H", _push),
    b"G": _fixed(">d", _push),
    b"\x8a": _counted("<B", _long),
    b"\x8b": _counted("<i", _long),
    # text and bytes
    b"S": _line(_python2_text),
    b"T": _counted("<i", lambda raw: raw.decode("latin1")),
    b"U": _counted("<B", lambda raw: raw.decode("latin1")),
    b"V": _line(lambda line: line.decode("raw-unicode-escape")),
    b"X": _counted("<I", _utf8),
    b"\x8c": _counted("<B", _utf8),
    b"\x8d": _counted("<Q", _utf8),
    b"B": _counted("<I", bytes),
    b"C": _counted("<B", bytes),
    b"\x8e": _counted("<Q", bytes),
    b"\x96": _counted("<Q", bytes),
    # containers
    b")": lambda m: m.stack.append(()),
    b"]": lambda m: m.stack.append([]),
    b"}": lambda m: m.stack.append({}),
    b"\x8f": lambda m: m.stack.append(set()),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"t": lambda m: _push(m, tuple(m.pop_mark())),
    b"l": lambda m: _push(m, m.pop_mark()),
    b"d": _Machine.dict_from_mark,
    b"a": lambda m: m.extend([m.stack.pop()]),
    b"e": lambda m: m.extend(m.pop_mark()),
    b"s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    b"u": lambda m: m.set_items(m.pop_mark()),
    b"\x90": _Machine.add_items,
    b"\x91": lambda m: _push(m, frozenset([_checked_key(item) for item in m.pop_mark()])),
    # memo
    b"p": lambda m: m.put(int(_number_text(m.line()))),
    b"q": _fixed("<B", _Machine.put),
    b"r": _fixed("<I", _Machine.put),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(int(_number_text(m.line()))),
    b"h": _fixed("<B", _Machine.get),
    b"j": _fixed("<I", _Machine.get),
    # names and calls, recorded
    b"c": _Machine.global_lines,
    b"\x93": _Machine.stack_global,
    b"R": _Machine.reduce,
    b"\x81": _Machine.reduce,
    b"\x92": _Machine.newobj_ex,
    b"o": _Machine.obj,
    b"i": _Machine.inst,
    b"b": _Machine.build,
    # what reaches outside the stream
    b"P": _refused("the persistent id", lambda m: m.line().decode("latin1")),
    b"Q": _Machine.persistent,
    b"\x82": _refused("the extension code", _number("<B")),
    b"\x83": _refused("the extension code", _number("<H")),
    b"\x84": _refused("the extension code", _number("<i")),
    b"\x97": _refused("an out-of-band buffer", lambda m: "NEXT_BUFFER"),
    b"\x98": _refused("an out-of-band buffer", lambda m: "READONLY_BUFFER"),
}
_OPCODES: dict[int, _Opcode] = {name[0]: opcode for name, opcode in _BY_NAME.items()}

Machine = _Machine  # for `pickled_items`, which runs the same instructions on a mapped stream
OPCODES = _OPCODES
