"""What an inert pickle holds: names, calls that are never made, the reasons to refuse, and what reading may cost.

Plain values only; knows neither opcodes (`inert_pickle`) nor arrays (`pickled_arrays`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dto_pipeline.errors import DtoError

_SHOWN = 120  # characters of hostile text that may reach a message


class PickleRefused(DtoError, ValueError):
    """A pickle that was not read. Nothing of it was run."""


class UnsafePickle(PickleRefused):
    """The pickle asks for something that is not on the allowlist; the message names it."""


class BrokenPickle(PickleRefused):
    """The pickle is truncated, malformed or larger than the limits allow."""


class Role(Enum):
    """What an allowed global means to `pickled_arrays`; many names may share one role."""

    RECONSTRUCT = "empty numpy array, filled by its state"
    FROMBUFFER = "numpy array over bytes"
    NDARRAY = "the class numpy.ndarray"
    DTYPE = "numpy dtype"
    SCALAR = "numpy scalar"
    ENCODE = "text to bytes"
    BYTES = "empty bytes"
    SET = "set"
    OBJECT = "the class object"
    RECONSTRUCTOR = "empty instance of a class, filled by its state"
    CHUMPY = "chumpy array"
    SELECT = "chumpy selection"
    CSC = "scipy sparse matrix, column-compressed"
    DICT = "the class collections.OrderedDict"
    PERSISTENT = "something the file holds outside the pickle"
    STORAGE = "kind of a torch storage"
    TENSOR = "torch tensor over a storage"
    PARAMETER = "torch parameter around a tensor"
    SIZE = "torch size"


Allowlist = Mapping[tuple[str, str], Role]
PERSISTENT_ID = ("", "persistent id")  # the key under which an allowlist lets a stream name what lies beside it


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
    role: Role

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Record:
    """A call the pickle asks for and that is never made: who, with what, and the state set afterwards."""

    __slots__ = ("args", "state", "what")

    def __init__(self, what: Global, args: tuple[Any, ...]) -> None:
        self.what = what
        self.args = args
        self.state: Any = None


def shown(value: object) -> str:
    """Printable form of something hostile, for messages: text shortened, containers (which may share) not followed."""
    if type(value) is str or isinstance(value, Global):
        return ascii(str(value)[:_SHOWN])
    if type(value) in (int, float, bool, type(None)):
        return repr(value)
    if type(value) is tuple and all(type(item) is int for item in value[:_SHOWN]):
        return repr(value[:_SHOWN])
    return f"a {type(value).__name__}"
