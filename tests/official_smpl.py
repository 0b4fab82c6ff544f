"""SMPL files in the layout of the official ones, made without chumpy, Python 2 or any licensed data.

Classes of the right names stand in for chumpy's and old scipy's while a file is written; `Python2Pickler` spells
strings and modules the way Python 2 with numpy 1 did.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

_MODULES = {"chumpy.ch": "Ch", "chumpy.reordering": "Select", "scipy.sparse.csc": "csc_matrix"}
_RECONSTRUCT = np.zeros(0).__reduce__()[0]


@contextmanager
def official_modules() -> Iterator[dict[str, type]]:
    """`Ch`, `Select` and `csc_matrix` under the module names that official files mention."""
    made: dict[str, type] = {}
    before = {module: sys.modules.get(module) for module in (*_MODULES, "chumpy")}
    sys.modules["chumpy"] = types.ModuleType("chumpy")
    for module, name in _MODULES.items():
        made[name] = type(name, (), {"__module__": module})
        sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, made[name])
    try:
        yield made
    finally:
        for module, old in before.items():
            sys.modules.pop(module)
            if old is not None:
                sys.modules[module] = old


def with_state(cls: type, **state: Any) -> Any:
    """An instance with these attributes and nothing else."""
    made: Any = object.__new__(cls)
    made.__dict__.update(state)
    return made


def chumpy_array(classes: dict[str, type], values: np.ndarray) -> Any:
    """`chumpy.ch.Ch` with the attributes that chumpy pickles."""
    bookkeeping: dict[str, Any] = {
        "_dirty_vars": {"x"},
        "_itr": None,
        "_depends_on_deps": {},
        "_make_dense": False,
        "_make_sparse": False,
    }
    return with_state(classes["Ch"], x=values, **bookkeeping)


def old_sparse(classes: dict[str, type], dense: np.ndarray) -> Any:
    """`scipy.sparse.csc.csc_matrix` with the attributes that scipy pickles."""
    matrix = sparse.csc_matrix(dense)
    parts = {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr}
    return with_state(classes["csc_matrix"], _shape=matrix.shape, maxprint=50, **parts)


def official_dict(classes: dict[str, type], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """What an official file holds, from plain arrays."""
    kintree = arrays["kintree_table"].astype(np.uint32)  # the root's parent becomes 4294967295
    regressor = arrays["J_regressor"].astype(np.float64)
    return {
        "J_regressor_prior": old_sparse(classes, regressor),
        "f": arrays["f"],
        "J_regressor": old_sparse(classes, regressor),
        "kintree_table": kintree,
        "J": chumpy_array(classes, regressor @ arrays["v_template"]),
        "weights": chumpy_array(classes, arrays["weights"].astype(np.float64)),
        "bs_style": "lbs",
        "bs_type": "lrotmin",
        "posedirs": arrays["posedirs"],
        "v_template": chumpy_array(classes, np.asfortranarray(arrays["v_template"].astype(np.float64))),
        "shapedirs": chumpy_array(classes, arrays["shapedirs"].astype(np.float64)),
    }


_PurePickler: Any = vars(pickle)["_Pickler"]  # the one whose opcodes can be replaced


class Python2Pickler(_PurePickler):
    """Protocols 0 to 2 with Python 2's opcodes for strings and numpy 1's module names."""

    dispatch: ClassVar[dict[type, Any]] = dict(_PurePickler.dispatch)

    def save_string(self, value: bytes) -> None:
        if self.proto == 0:
            self.write(b"S" + repr(value).encode()[1:] + b"\n")
        elif len(value) < 256:
            self.write(b"U" + bytes([len(value)]) + value)
        else:
            self.write(b"T" + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = save_string
    dispatch[str] = lambda self, value: self.save_string(value.encode("latin1"))

    def save_global(self, value: Any, name: str | None = None) -> None:
        if value is _RECONSTRUCT:
            self.write(b"cnumpy.core.multiarray\n_reconstruct\n")
        else:
            super().save_global(value, name)


def python2_dumps(value: Any, protocol: int) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol).dump(value)
    return stream.getvalue()
