"""The one door for pickles from the internet: nothing inside them is ever imported or called.

`inert_pickle` makes records of a pickle, and here they become values: containers, numpy arrays, and the arrays inside
chumpy and scipy objects. What may appear is an allowlist of names. Every array is rebuilt from a dtype on a short list,
a checked shape and exactly as many bytes as they need; nothing is taken from the pickle's word. Shared objects stay
shared and are built once; objects that contain themselves are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from dto_pipeline.data.inert_pickle import (
    Allowlist,
    BrokenPickle,
    Global,
    Limits,
    PickleRefused,
    Record,
    UnsafePickle,
    load_records,
    only_named,
    shown,
)

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes})
_CONTAINERS = frozenset({list, tuple, set, frozenset})
# booleans, integers, floats, complex numbers, byte strings, text: kind and bytes (characters for text)
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(?:8|16)|[SU][0-9]{1,7}")
_OBJECT_DTYPE = re.compile(r"O[48]?")
_MAX_DIMENSIONS = 32
_MAX_DENSE_BYTES = 2**26  # a sparse matrix is written out densely up to this size
_LAST_CHARACTER = 0x10FFFF


def build_values(records: object, limits: Limits, object_arrays: bool = False) -> Any:
    """Plain values for what `inert_pickle.load_records` returned.

    Args:
        object_arrays: allow numpy arrays of Python objects, whose items are rebuilt by the same rules.

    Returns:
        None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset and writable numpy arrays in
        native byte order. numpy scalars come back as Python numbers; chumpy and sparse objects as dense arrays.

    Raises:
        UnsafePickle: a dtype that is not a number, boolean or string; an array of objects where not allowed.
        BrokenPickle: contents that contradict each other, or more than the limits allow.
    """
    try:
        return Builder(limits, object_arrays).value(records, 0)
    except PickleRefused:
        raise
    except (ArithmeticError, LookupError, MemoryError, RecursionError, TypeError, ValueError) as error:
        raise BrokenPickle(f"malformed contents ({type(error).__name__}: {shown(str(error))})") from error


def checked_values(flat: np.ndarray) -> np.ndarray:
    """A flat array straight from foreign bytes: no impossible booleans or characters, native byte order.

    Raises:
        BrokenPickle: bytes that no writer of this dtype leaves (they would crash or mislead later).
    """
    if flat.dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
        raise BrokenPickle("a boolean array with other values than 0 and 1")
    if flat.dtype.kind == "U" and flat.view(f"{flat.dtype.str[0]}u4").max(initial=0) > _LAST_CHARACTER:
        raise BrokenPickle("a text array with impossible characters")
    return flat if flat.dtype.isnative else flat.astype(flat.dtype.newbyteorder("="))


class Builder:
    """Builds one graph; owns the memory of what was built and the counts against the limits."""

    def __init__(self, limits: Limits, object_arrays: bool) -> None:
        self._limits = limits
        self._object_arrays = object_arrays
        self._items = self._array_bytes = 0  # of the result, as if nothing were shared; of arrays built
        self._built: dict[int, tuple[Any, int]] = {}  # id of a node -> value, its items

    def value(self, node: Any, depth: int) -> Any:
        """The value of any node; atoms are themselves. What contains itself is too deep."""
        kind = type(node)
        if kind in _ATOMS:
            return node
        if (known := self._built.get(id(node))) is not None:
            self._count(known[1])
            return known[0]
        if depth >= self._limits.max_depth:
            raise BrokenPickle(f"more than {self._limits.max_depth} containers inside each other")
        before = self._items
        if kind is Record:
            result = node.what.make(self, node, depth + 1)
        elif kind is dict:
            result = dict(zip(self._values(node, depth + 1), self._values(node.values(), depth + 1), strict=True))
            if len(result) != len(node):
                raise BrokenPickle("a dict in which two keys become one")
        elif kind in _CONTAINERS:
            result = kind(self._values(node, depth + 1))
        else:
            raise BrokenPickle(f"the name {node} where a value is expected")
        self._count(1)
        self._built[id(node)] = (result, self._items - before)
        return result

    def shape(self, node: Any) -> tuple[int, ...]:
        good = type(node) in (tuple, list) and all(type(side) is int and side >= 0 for side in node)
        if not good or len(node) > _MAX_DIMENSIONS:
            raise BrokenPickle(f"an array of shape {shown(node)}")
        return tuple(node)

    def _values(self, nodes: Iterable[Any], depth: int) -> list[Any]:
        items = [item if type(item) in _ATOMS else self.value(item, depth) for item in nodes]
        self._count(len(items))
        return items

    def _count(self, items: int, array_bytes: int = 0) -> None:
        self._items += items
        self._array_bytes += array_bytes
        if self._items > self._limits.max_items:
            raise BrokenPickle(f"more than {self._limits.max_items} items, shared ones counted each time")
        if self._array_bytes > self._limits.max_array_bytes:
            raise BrokenPickle(f"more than {self._limits.max_array_bytes} bytes of arrays")

    # numpy

    def _plain_array(
        self, dtype: np.dtype, shape: tuple[int, ...], order: str, contents: Any, depth: int
    ) -> np.ndarray:
        """An array whose shape and dtype need exactly the bytes there are, however the protocol spelled them."""
        raw = self.value(contents, depth)
        if type(raw) is str:
            raw = raw.encode("latin1")
        if type(raw) is not bytes:
            raise BrokenPickle("array contents that are not bytes")
        needed = math.prod(shape) * dtype.itemsize
        if needed != len(raw) or dtype.itemsize == 0:
            raise BrokenPickle(f"an array {shape} of {dtype.str} needs {needed} bytes and has {len(raw)}")
        self._count(0, needed)
        flat = np.frombuffer(raw, dtype).copy() if raw else np.zeros(0, dtype)
        return checked_values(flat).reshape(shape, order="F" if order == "F" else "C")

    def reconstructed(self, node: Record, depth: int) -> np.ndarray:
        """`_reconstruct(ndarray, (0,), b"b")` followed by a state: how numpy pickles arrays up to protocol 4."""
        cls = node.args[0] if node.args else None
        if type(cls) is not Global or str(cls) != "numpy.ndarray":
            raise BrokenPickle(f"an array of class {shown(cls)}, expected numpy.ndarray")
        if type(node.state) is not tuple or len(node.state) not in (4, 5):
            raise BrokenPickle("an array without contents")
        shape, dtype, fortran, contents = node.state[-4:]
        shape, dtype = self.shape(shape), _checked_dtype(dtype)
        if not dtype.hasobject:
            return self._plain_array(dtype, shape, "F" if fortran else "C", contents, depth)
        if not self._object_arrays:
            raise UnsafePickle("refuses the dtype 'object': only numbers, booleans and strings are read here")
        if type(contents) is not list or len(contents) != math.prod(shape):
            raise BrokenPickle(f"an object array {shape} whose contents are not {math.prod(shape)} items")
        self._count(0, 8 * len(contents))
        flat = np.empty(len(contents), object)
        for index, item in enumerate(self._values(contents, depth)):
            flat[index] = item
        return flat.reshape(shape)

    def frombuffer(self, node: Record, depth: int) -> np.ndarray:
        """`_frombuffer(buffer, dtype, shape, order[, axes])`: how numpy pickles arrays in protocol 5."""
        raw, dtype, shape, order, *axes = node.args
        dtype, shape = _checked_dtype(dtype), self.shape(shape)
        if dtype.hasobject or order not in ("C", "F", "K"):
            raise BrokenPickle(f"a buffer of {dtype} in order {shown(order)}")
        array = self._plain_array(dtype, shape, order, raw, depth)
        return array.transpose(self.shape(axes[0])) if order == "K" else array

    def scalar(self, node: Record, depth: int) -> Any:
        """`scalar(dtype, bytes)` as a Python number or string."""
        dtype, raw = _checked_dtype(node.args[0]), node.args[1]
        if dtype.hasobject:
            raise UnsafePickle("refuses a scalar of the dtype 'object': only numbers, booleans and strings are read")
        if dtype.itemsize == 0 and self.value(raw, depth) in ("", b""):
            return "" if dtype.kind == "U" else b""
        return self._plain_array(dtype, (1,), "C", raw, depth)[0].item()

    # small calls

    def encoded(self, node: Record, depth: int) -> bytes:
        """`_codecs.encode(text, "latin1")`: how Python 3 writes bytes in protocols 0 to 2."""
        text, encoding = node.args
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise BrokenPickle(f"bytes encoded as {shown(encoding)}, expected latin1")
        self._count(0, len(text))
        return text.encode("latin1")

    def empty_bytes(self, node: Record, depth: int) -> bytes:
        """`bytes()`: how Python 3 writes b"" in protocols 0 to 2."""
        if node.args:
            raise BrokenPickle("bytes() with arguments")
        return b""

    def set_of(self, node: Record, depth: int) -> set[Any]:
        (members,) = node.args
        if type(members) is not list:
            raise BrokenPickle("a set made from something that is not a list")
        return set(self._values(members, depth))

    def instance(self, node: Record, depth: int) -> Any:
        """`_reconstructor(cls, object, None)` followed by a state: protocols 0 and 1."""
        cls, base, seed = node.args
        known = type(cls) is Global and cls.make in (Builder.chumpy, Builder.selected, Builder.sparse)
        if not known or type(base) is not Global or base.name != "object" or seed is not None:
            raise BrokenPickle(f"an instance of {shown(cls)}")
        return cls.make(self, Record(cls, (), node.state), depth)

    # chumpy and scipy

    def chumpy(self, node: Record, depth: int) -> np.ndarray:
        """`chumpy.ch.Ch`: its values are in the state's `x`."""
        return self._arrays(node, depth, "x")[0]

    def selected(self, node: Record, depth: int) -> np.ndarray:
        """`chumpy.reordering.Select`: a.ravel()[idxs], reshaped to preferred_shape where there is one."""
        source, index = self._arrays(node, depth, "a", "idxs")
        self._count(0, index.size * source.itemsize)
        chosen, shape = source.ravel()[index.ravel()], node.state.get("preferred_shape")
        return chosen if shape is None else chosen.reshape(self.shape(self.value(shape, depth)))

    def sparse(self, node: Record, depth: int) -> np.ndarray:
        """A column-compressed matrix, written out; entries that occur twice add up."""
        from scipy.sparse import csc_matrix  # of body files only: its import takes time and memory

        data, rows, starts = self._arrays(node, depth, "data", "indices", "indptr")
        shape = self.shape(self.value(node.state["_shape"], depth))
        dense_bytes = math.prod(shape) * data.itemsize
        if len(shape) != 2 or dense_bytes > _MAX_DENSE_BYTES:
            raise BrokenPickle(f"a sparse matrix of shape {shown(shape)}")
        self._count(0, dense_bytes)
        matrix = csc_matrix((data, rows, starts), shape)
        matrix.check_format(full_check=True)
        return matrix.toarray()

    def _arrays(self, node: Record, depth: int, *keys: str) -> list[np.ndarray]:
        """Attributes of a class instance, all of them arrays of numbers."""
        if node.args or type(node.state) is not dict or any(key not in node.state for key in keys):
            raise BrokenPickle(f"a {node.what} object without {', '.join(keys)}")
        found = [self.value(node.state[key], depth) for key in keys]
        for array in found:
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
                raise BrokenPickle(f"{shown(type(array).__name__)} where an array of numbers is expected")
        return found


def _checked_dtype(node: Any) -> np.dtype:
    """`dtype(code, ...)` with a state (version, byte order, subarray, names, fields, item size, ...)."""
    if type(node) is not Record or node.what.name != "dtype" or not node.args:
        raise BrokenPickle("an array without a dtype")
    code, state = node.args[0], node.state
    if type(code) is str and _OBJECT_DTYPE.fullmatch(code):
        return np.dtype(object)
    if type(code) is not str or not _PLAIN_DTYPE.fullmatch(code):
        raise UnsafePickle(f"refuses the dtype {shown(code)}: only numbers, booleans and strings are read")
    dtype = np.dtype(code)
    if state is None:
        return dtype
    if type(state) is not tuple or len(state) < 8 or state[1] not in ("<", ">", "|", "="):
        raise BrokenPickle(f"the dtype {dtype.str} with state {shown(state)}")
    if any(part is not None for part in state[2:5]):
        raise UnsafePickle(f"refuses the dtype {dtype.str} with fields or a subarray: only plain dtypes are read")
    if state[5] not in (-1, dtype.itemsize):
        raise BrokenPickle(f"the dtype {dtype.str} with an item size of {shown(state[5])} bytes")
    return dtype.newbyteorder(state[1])


_NUMPY_PACKAGES = ("numpy.core", "numpy._core")  # before and since numpy 2
_BUILTINS = ("__builtin__", "builtins")  # Python 2 and 3

NUMPY_ONLY: Allowlist = {
    ("numpy", "ndarray"): only_named,
    ("numpy", "dtype"): only_named,
    ("_codecs", "encode"): Builder.encoded,
    **{(f"{package}.multiarray", "_reconstruct"): Builder.reconstructed for package in _NUMPY_PACKAGES},
    **{(f"{package}.multiarray", "scalar"): Builder.scalar for package in _NUMPY_PACKAGES},
    **{(f"{package}.numeric", "_frombuffer"): Builder.frombuffer for package in _NUMPY_PACKAGES},
    **{(module, "bytes"): Builder.empty_bytes for module in _BUILTINS},
}
"""Plain containers and numpy arrays."""

SMPL_FILE: Allowlist = {
    **NUMPY_ONLY,
    ("chumpy.ch", "Ch"): Builder.chumpy,
    ("chumpy.reordering", "Select"): Builder.selected,
    ("scipy.sparse.csc", "csc_matrix"): Builder.sparse,
    ("scipy.sparse._csc", "csc_matrix"): Builder.sparse,
    ("scipy.sparse._csc", "csc_array"): Builder.sparse,
    ("copy_reg", "_reconstructor"): Builder.instance,
    ("copyreg", "_reconstructor"): Builder.instance,
    **{(module, "object"): only_named for module in _BUILTINS},
    **{(module, "set"): Builder.set_of for module in _BUILTINS},
}
"""The above and what the official SMPL files hold."""


def safe_loads(
    data: bytes,
    allow: Allowlist = NUMPY_ONLY,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    object_arrays: bool = False,
    where: str = "pickle",
) -> Any:
    """Values of a whole pickle of protocol 0-5, nothing run; returns and raises as `build_values`.

    Args:
        allow: the names that may appear.
        object_arrays: allow numpy arrays of Python objects, under the same rules.
        where: file and member, for messages.
    """
    records = load_records(data, allow, limits, where)
    try:
        return build_values(records, limits, object_arrays)
    except PickleRefused as error:
        raise type(error)(f"{where}: {error}") from error
