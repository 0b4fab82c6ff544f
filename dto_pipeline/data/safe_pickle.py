"""Read pickles from the internet: plain containers, numpy arrays, and the arrays inside chumpy and scipy objects.

`inert_pickle` reads the stream; this module holds the allowlists and the functions behind their names. Every array is
made from a dtype on a short list, a checked shape and exactly as many bytes as these need. Shared objects stay shared;
objects that contain themselves are refused.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from dto_pipeline.data.inert_pickle import (
    Allowlist,
    BrokenPickle,
    InertUnpickler,
    Limits,
    Make,
    Name,
    StandIn,
    Stream,
    UnsafePickle,
    check_values,
    checked_key,
    shown,
)

# booleans, integers, floats, complex numbers, byte strings, text, objects: kind and bytes (characters for text)
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(?:8|16)|[SU][0-9]{1,7}|O[48]?")
_MAX_DIMENSIONS = 32
_MAX_SIDE = 2**63 - 1  # of a shape: products of larger integers may take hours
_MAX_DENSE_BYTES = 2**26  # of a sparse matrix made dense
_LAST_CHARACTER = 0x10FFFF


def safe_loads(
    data: bytes,
    allow: Allowlist | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    where: str = "pickle",
    object_arrays: bool = False,
) -> Any:
    """The plain values of a pickle stream; nothing in it is run.

    Args:
        allow: the names that may appear; None = `NUMPY_ONLY`.
        where: file and member, for messages.
        object_arrays: allow numpy arrays of Python objects, whose items are read by the same rules.

    Returns:
        None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset and writable numpy arrays in
        native byte order. Python-2 strings are decoded as latin1, a bytearray comes back as bytes, numpy scalars as
        Python numbers, chumpy and sparse objects as dense arrays.

    Raises:
        UnsafePickle: a global that is not allowed, a persistent id, an extension code or an out-of-band buffer; a dtype
            that is not a number, boolean or string; an array of objects where not allowed.
        BrokenPickle: anything else that is wrong, or more than the limits allow.
    """
    stream = Stream(io.BytesIO(data), len(data), limits.max_bytes)
    with stream.errors_named(where):
        value = InertUnpickler(stream, NUMPY_ONLY if allow is None else allow, limits, object_arrays).load()
        check_values(value, limits)
    return value


def checked_values(flat: np.ndarray) -> np.ndarray:
    """A flat array made from foreign bytes, checked and in native byte order.

    Raises:
        BrokenPickle: a boolean other than 0 and 1, or a number that is no character; both would mislead later.
    """
    if flat.dtype.kind == "b" and flat.view(np.uint8).max(initial=0) > 1:
        raise BrokenPickle("a boolean array with other values than 0 and 1")
    if flat.dtype.kind == "U":
        codes = flat.view(f"{flat.dtype.str[0]}u4")
        if codes.max(initial=0) > _LAST_CHARACTER:  # numpy makes broken text of it
            at = int(codes.argmax())
            raise BrokenPickle(f"item {at // (codes.size // flat.size)} of a text: 0x{codes[at]:x} is no character")
    return flat if flat.dtype.isnative else flat.astype(flat.dtype.newbyteorder("="))


def checked_shape(value: Any) -> tuple[int, ...]:
    """A shape, or another tuple of sizes. Raises: BrokenPickle."""
    good = type(value) in (tuple, list) and all(type(side) is int and 0 <= side <= _MAX_SIDE for side in value)
    if not good or len(value) > _MAX_DIMENSIONS:
        raise BrokenPickle(f"an array of shape {shown(value)}")
    return tuple(value)


# dtypes


class _Dtype(StandIn):
    def __init__(self, dtype: np.dtype) -> None:
        self.dtype = dtype


def _make_dtype(unpickler: InertUnpickler, code: Any, *_: Any) -> _Dtype:
    """`dtype(code, ...)`, then a state (version, byte order, subarray, names, fields, item size, ...)."""
    if type(code) is not str or not _PLAIN_DTYPE.fullmatch(code):
        raise UnsafePickle(f"refuses the dtype {shown(code)}: only numbers, booleans and strings are read")
    return unpickler.fill_later(_Dtype(np.dtype(code)), _fill_dtype)


def _fill_dtype(unpickler: InertUnpickler, target: _Dtype, state: Any) -> None:
    dtype = target.dtype
    if type(state) is not tuple or len(state) < 8 or state[1] not in ("<", ">", "|", "="):
        raise BrokenPickle(f"the dtype {dtype.str} with state {shown(state)}")
    if any(part is not None for part in state[2:5]):
        raise UnsafePickle(f"refuses the dtype {dtype.str} with fields or a subarray: only plain dtypes are read")
    if not dtype.hasobject and state[5] not in (-1, dtype.itemsize):
        raise BrokenPickle(f"the dtype {dtype.str} with an item size of {shown(state[5])} bytes")
    target.dtype = dtype.newbyteorder(state[1])


def _checked_dtype(unpickler: InertUnpickler, value: Any) -> np.dtype:
    if type(value) is not _Dtype or id(value) in unpickler.unfilled:
        raise BrokenPickle("an array without a dtype")
    if value.dtype.hasobject and not unpickler.object_arrays:
        raise UnsafePickle("refuses the dtype 'object': only numbers, booleans and strings are read here")
    return value.dtype


# arrays


def _flat_array(unpickler: InertUnpickler, dtype: np.dtype, shape: tuple[int, ...], raw: Any) -> np.ndarray:
    """(n,) values, read-only. Raises: BrokenPickle: shape and dtype need more or fewer bytes than there are."""
    if type(raw) is str:
        raw = raw.encode("latin1")
    if type(raw) is not bytes:
        raise BrokenPickle("array contents that are not bytes")
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(raw) or dtype.itemsize == 0:
        raise BrokenPickle(f"an array {shape} of {dtype.str} needs {needed} bytes and has {len(raw)}")
    unpickler.count_bytes(needed)
    return checked_values(np.frombuffer(raw, dtype) if raw else np.zeros(0, dtype))


def _turn_into(target: np.ndarray, shape: Any, dtype: np.dtype, contents: Any, fortran: bool = False) -> None:
    """Change an array in place: the stream may refer to it already."""
    state: Any = (1, shape, dtype, fortran, contents)
    target.__setstate__(state)


def _empty_array(unpickler: InertUnpickler, cls: Any, *_: Any) -> np.ndarray:
    """`_reconstruct(ndarray, (0,), b"b")`, then a state: how numpy pickles arrays up to protocol 4."""
    if type(cls) is not Name or str(cls) != "numpy.ndarray":
        raise BrokenPickle(f"an array of class {shown(cls)}, expected numpy.ndarray")
    return unpickler.fill_later(np.empty(0, np.uint8), _fill_array)


def _fill_array(unpickler: InertUnpickler, target: np.ndarray, state: Any) -> None:
    if type(state) is not tuple or len(state) not in (4, 5):
        raise BrokenPickle("an array without contents")
    shape, dtype, fortran, contents = state[-4:]
    shape, dtype = checked_shape(shape), _checked_dtype(unpickler, dtype)
    if not dtype.hasobject:
        flat = _flat_array(unpickler, dtype, shape, contents)
        _turn_into(target, shape, flat.dtype, flat.tobytes(), bool(fortran))
        return
    if type(contents) is not list or len(contents) != math.prod(shape):
        raise BrokenPickle(f"an object array {shape} whose contents are not {math.prod(shape)} items")
    unpickler.count_bytes(8 * len(contents))
    _turn_into(target, shape, dtype, contents)


def _array_of_buffer(unpickler: InertUnpickler, raw: Any, dtype: Any, shape: Any, order: Any, *axes: Any) -> np.ndarray:
    """`_frombuffer(buffer, dtype, shape, order[, axes])`: how numpy pickles arrays in protocol 5."""
    dtype, shape = _checked_dtype(unpickler, dtype), checked_shape(shape)
    if dtype.hasobject or order not in ("C", "F", "K"):
        raise BrokenPickle(f"a buffer of {dtype} in order {shown(order)}")
    array = _flat_array(unpickler, dtype, shape, raw).copy().reshape(shape, order="F" if order == "F" else "C")
    return array.transpose(checked_shape(axes[0])) if order == "K" else array


def _scalar(unpickler: InertUnpickler, dtype: Any, raw: Any) -> Any:
    """`scalar(dtype, bytes)` as a Python number or string."""
    dtype = _checked_dtype(unpickler, dtype)
    if dtype.hasobject:
        raise UnsafePickle("refuses a scalar of the dtype 'object': only numbers, booleans and strings are read")
    if dtype.itemsize == 0 and raw in ("", b""):
        return "" if dtype.kind == "U" else b""
    return _flat_array(unpickler, dtype, (1,), raw)[0].item()


# small calls


def _encoded(unpickler: InertUnpickler, text: Any, encoding: Any) -> bytes:
    """`_codecs.encode(text, "latin1")`: how Python 3 writes bytes in protocols 0 to 2."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise BrokenPickle(f"bytes encoded as {shown(encoding)}, expected latin1")
    unpickler.count_bytes(len(text))
    return text.encode("latin1")


def _set_of(unpickler: InertUnpickler, members: Any) -> set[Any]:
    if type(members) is not list:
        raise BrokenPickle("a set made from something that is not a list")
    return set(map(checked_key, members))


def _instance(unpickler: InertUnpickler, cls: Any, base: Any, seed: Any) -> Any:
    """`_reconstructor(cls, object, None)`, then a state: how Python pickles objects in protocols 0 and 1."""
    known = type(cls) is Name and cls.make in _INSTANCES.values()
    if not known or type(base) is not Name or base.name != "object" or seed is not None:
        raise BrokenPickle(f"an instance of {shown(cls)}")
    return cls.make(unpickler)


# chumpy and scipy: objects made without arguments; each becomes an array when its state sets the attributes


def _chumpy(unpickler: InertUnpickler, state: Any) -> np.ndarray:
    """`chumpy.ch.Ch`: its values are in `x`."""
    (values,) = _arrays(unpickler, state, "x")
    unpickler.count_bytes(values.nbytes)
    return values


def _selected(unpickler: InertUnpickler, state: Any) -> np.ndarray:
    """`chumpy.reordering.Select`: a.ravel()[idxs], reshaped to preferred_shape where there is one."""
    source, index = _arrays(unpickler, state, "a", "idxs")
    unpickler.count_bytes(index.size * source.itemsize)
    chosen, shape = source.ravel()[index.ravel()], state.get("preferred_shape")
    return chosen if shape is None else chosen.reshape(checked_shape(shape))


def _sparse(unpickler: InertUnpickler, state: Any) -> np.ndarray:
    """A column-compressed matrix as a dense array; entries that occur twice are added."""
    from scipy.sparse import csc_matrix  # needed for body files only, and slow to import

    data, rows, starts = _arrays(unpickler, state, "data", "indices", "indptr")
    shape = checked_shape(state["_shape"])
    dense_bytes = math.prod(shape) * data.itemsize
    if len(shape) != 2 or dense_bytes > _MAX_DENSE_BYTES:
        raise BrokenPickle(f"a sparse matrix of shape {shown(shape)}")
    unpickler.count_bytes(dense_bytes)
    matrix = csc_matrix((data, rows, starts), shape)
    matrix.check_format(full_check=True)
    return matrix.toarray()


def _arrays(unpickler: InertUnpickler, state: Any, *keys: str) -> list[np.ndarray]:
    """Attributes of an object, all of them arrays of numbers."""
    if type(state) is not dict or any(key not in state for key in keys):
        raise BrokenPickle(f"an object without {', '.join(keys)}")
    found = [state[key] for key in keys]
    for array in found:
        if id(array) in unpickler.unfilled:
            raise BrokenPickle("an object that holds itself")
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
            raise BrokenPickle(f"{shown(array)} where an array of numbers is expected")
    return found


def _becoming(convert: Callable[[InertUnpickler, Any], np.ndarray]) -> Make:
    def fill(unpickler: InertUnpickler, target: np.ndarray, state: Any) -> None:
        array = convert(unpickler, state)
        _turn_into(target, array.shape, array.dtype, array.tobytes())

    return lambda unpickler: unpickler.fill_later(np.empty(0, np.uint8), fill)


_NUMPY_PACKAGES = ("numpy.core", "numpy._core")  # before and since numpy 2
_BUILTINS = ("__builtin__", "builtins")  # Python 2 and 3
_INSTANCES = {
    ("chumpy.ch", "Ch"): _becoming(_chumpy),
    ("chumpy.reordering", "Select"): _becoming(_selected),
    ("scipy.sparse.csc", "csc_matrix"): _becoming(_sparse),
    ("scipy.sparse._csc", "csc_matrix"): _becoming(_sparse),
    ("scipy.sparse._csc", "csc_array"): _becoming(_sparse),
}

NUMPY_ONLY: Allowlist = {
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _make_dtype,
    ("_codecs", "encode"): _encoded,
    **{(f"{package}.multiarray", "_reconstruct"): _empty_array for package in _NUMPY_PACKAGES},
    **{(f"{package}.multiarray", "scalar"): _scalar for package in _NUMPY_PACKAGES},
    **{(f"{package}.numeric", "_frombuffer"): _array_of_buffer for package in _NUMPY_PACKAGES},
    # how Python 3 writes b"" in protocols 0 to 2
    **{(module, "bytes"): lambda unpickler: b"" for module in _BUILTINS},
}
"""Plain containers and numpy arrays."""

SMPL_FILE: Allowlist = {
    **NUMPY_ONLY,
    **_INSTANCES,
    ("copy_reg", "_reconstructor"): _instance,
    ("copyreg", "_reconstructor"): _instance,
    **{(module, "object"): None for module in _BUILTINS},
    **{(module, "set"): _set_of for module in _BUILTINS},
}
"""The above and what the official SMPL files hold."""
