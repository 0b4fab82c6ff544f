"""Pickles that every reader can open: protocol 3, plain containers and numpy arrays, equal bytes for equal values.

Written opcode by opcode because numpy 2's own pickles name modules that numpy 1 does not have (`numpy._core`), while
numpy 2 reads the old names. Writes nothing that runs code beyond rebuilding arrays; reads nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

_PROTOCOL_3, _STOP = b"\x80\x03", b"."
_DTYPE_KINDS = "biufc"
_LARGEST = 2**32  # bytes of one text or array that protocol 3 can hold


def portable_dumps(value: Any) -> bytes:
    """Pickle of None, bool, int, float, str, bytes, list, tuple, dict and numeric numpy arrays, nested.

    The bytes depend on the values only. An object that appears twice is written twice.

    Raises:
        TypeError: any other type, named; OverflowError: an int beyond 64 bits, or 4 GiB in one array.
    """
    writer = _Writer()
    writer.value(value)
    return b"".join([_PROTOCOL_3, *writer.parts, _STOP])


class _Writer:
    """Opcodes of one stream, and the memo that lets names and dtypes be spelled once."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.memo: dict[str, int] = {}

    def value(self, value: Any) -> None:
        write = _WRITERS.get(type(value))
        if write is None:
            raise TypeError(f"a {type(value).__name__} has no portable pickle; convert it to plain values or arrays")
        write(self, value)

    def emit(self, *parts: bytes) -> None:
        self.parts.extend(parts)

    def once(self, key: str, write: Callable[[], None]) -> None:
        """Write something, or refer to where it was written before."""
        if key in self.memo:
            self.emit(struct.pack("<cI", b"j", self.memo[key]))
            return
        write()
        self.memo[key] = len(self.memo)
        self.emit(struct.pack("<cI", b"r", self.memo[key]))

    def name(self, module: str, name: str) -> None:
        self.once(f"{module}.{name}", lambda: self.emit(f"c{module}\n{name}\n".encode()))

    def counted(self, opcode: bytes, raw: bytes) -> None:
        if len(raw) >= _LARGEST:
            raise OverflowError(f"{len(raw)} bytes in one piece; a portable pickle holds less than 4 GiB")
        self.emit(struct.pack("<cI", opcode, len(raw)), raw)

    def integer(self, value: int) -> None:
        self.emit(b"\x8a\x08", value.to_bytes(8, "little", signed=True))

    def sequence(self, values: list[Any] | tuple[Any, ...], start: bytes, end: bytes) -> None:
        self.emit(start)
        for value in values:
            self.value(value)
        self.emit(end)

    def dictionary(self, values: dict[Any, Any]) -> None:
        self.sequence([part for pair in values.items() for part in pair], b"}(", b"u")

    def array(self, array: np.ndarray) -> None:
        """`_reconstruct(ndarray, (0,), b"b")` with the state (1, shape, dtype, fortran order, bytes)."""
        if array.dtype.kind not in _DTYPE_KINDS:
            raise TypeError(f"an array of {array.dtype} has no portable pickle; expected numbers or booleans")
        self.name("numpy.core.multiarray", "_reconstruct")
        self.name("numpy", "ndarray")
        self.emit(b"K\x00\x85C\x01b\x87R(K\x01")
        self.sequence(array.shape, b"(", b"t")
        little = array.dtype.newbyteorder("<")
        self.once(f"dtype {little.str}", lambda: self.dtype(little))
        self.emit(b"\x89")
        self.counted(b"B", array.astype(little, order="C", copy=False).tobytes())
        self.emit(b"tb")

    def dtype(self, dtype: np.dtype) -> None:
        """`dtype(code, False, True)` with the state (3, order, None, None, None, -1, -1, 0)."""
        self.name("numpy", "dtype")
        self.value(dtype.str[1:])
        self.emit(b"\x89\x88\x87R(K\x03")
        self.value(dtype.str[0])
        self.emit(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb")


_WRITERS: dict[type, Callable[[_Writer, Any], None]] = {
    type(None): lambda w, value: w.emit(b"N"),
    bool: lambda w, value: w.emit(b"\x88" if value else b"\x89"),
    int: _Writer.integer,
    float: lambda w, value: w.emit(struct.pack(">cd", b"G", value)),
    str: lambda w, value: w.counted(b"X", value.encode()),
    bytes: lambda w, value: w.counted(b"B", value),
    list: lambda w, value: w.sequence(value, b"](", b"e"),
    tuple: lambda w, value: w.sequence(value, b"(", b"t"),
    dict: _Writer.dictionary,
    np.ndarray: _Writer.array,
}
