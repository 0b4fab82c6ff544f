"""Pickle streams for tests, written opcode by opcode: hostile ones, malformed ones, and the parts to build more.

The hostile ones are armed: those that call something would leave `SENTINEL` in the current folder under `pickle.loads`.
"""

from __future__ import annotations

import os
import pickle
import struct
from typing import Any, NamedTuple

import numpy as np

from dto_pipeline.data.inert_pickle import Allowlist, BrokenPickle, PickleRefused, UnsafePickle
from dto_pipeline.data.safe_pickle import NUMPY_ONLY, SMPL_FILE

SENTINEL = "it_ran"
COMMAND = f"touch {SENTINEL}"


class Stream(NamedTuple):
    """One stream with what must come of it."""

    name: str
    data: bytes
    error: type[PickleRefused]
    mentions: str
    allow: Allowlist = NUMPY_ONLY


class Armed:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (COMMAND,)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def stack_name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def call(module: str, attribute: str, *args: bytes) -> bytes:
    """Protocol 2: call of a global, left on the stack."""
    return name(module, attribute) + b"(" + b"".join(args) + b"tR"


def dtype(code: bytes, order: str = "<", fields: bytes = b"NNN", item_size: bytes = b"J\xff\xff\xff\xff") -> bytes:
    made = name("numpy", "dtype") + code + b"\x89\x88\x87R"
    return made + b"(K\x03" + text(order) + fields + item_size + b"J\xff\xff\xff\xffK\x00tb"


def array(shape: bytes, kind: bytes, contents: bytes) -> bytes:
    """numpy's array pickle up to protocol 4; `shape`, `kind` and `contents` are opcodes."""
    empty = name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    return empty + b"(K\x01" + shape + kind + b"\x89" + contents + b"tb"


def buffer(raw: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def whole(body: bytes, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def instance(module: str, attribute: str, state: bytes) -> bytes:
    """Protocol 2: object made without arguments, with a state."""
    return name(module, attribute) + b")\x81" + state + b"b"


def attributes(**values: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


F8 = dtype(text("f8"))
I4 = dtype(text("i4"))
THREE = b"K\x03\x85"  # the shape (3,)


def _laughs(start: bytes, end: bytes) -> bytes:
    """Thirty containers, each holding the one before ten times: 10 ** 30 items in 800 bytes."""
    body = b"N"
    for index in range(30):
        stored = bytes([index])
        body += b"q" + stored + b"0" + start + (b"h" + stored) * 10 + end
    return body


# module:attribute of what strangers' pickles call, of attribute chains from allowed names, and of harmless strangers
_STRANGERS = """
os:system posix:system nt:system os:execv subprocess:Popen builtins:eval builtins:exec __builtin__:eval
builtins:getattr builtins:__import__ builtins:type builtins:open builtins:object builtins:bytearray
importlib:import_module runpy:run_path pickle:loads marshal:loads types:CodeType ctypes:CDLL shutil:rmtree
webbrowser:open site:main functools:partial operator:attrgetter copyreg:__newobj__ copyreg:_reconstructor
codecs:decode _codecs:decode collections:OrderedDict numpy:load numpy:matrix numpy:memmap numpy:fromfile numpy:void
numpy.rec:recarray numpy.core.multiarray:fromfile numpy.testing._private.utils:runstring torch:load
torch._utils:_rebuild_tensor_v2 torch.storage:_load_from_bytes numpy:os.system numpy:core.multiarray.os
numpy:ndarray.__class__ numpy.core.multiarray:_reconstruct.__globals__ numpy: :ndarray numpy.:dtype NUMPY:ndarray
os:path.join
"""


def _refused_globals() -> list[Stream]:
    streams = []
    for stranger in _STRANGERS.split():
        module, attribute = stranger.split(":")
        full = f"{module}.{attribute}"
        streams.append(Stream(f"global-{full}", whole(call(module, attribute, text(COMMAND)), 2), UnsafePickle, full))
        body = stack_name(module, attribute) + text(COMMAND) + b"\x85R"
        streams.append(Stream(f"stack-global-{full}", whole(body), UnsafePickle, full))
    return streams


def _real_reductions() -> list[Stream]:
    expected = f"{os.system.__module__}.system"
    dumped = [(number, pickle.dumps({"a": [Armed()]}, number)) for number in range(6)]
    return [Stream(f"reduce-protocol-{number}", data, UnsafePickle, expected) for number, data in dumped]


def _other_ways_to_call() -> list[Stream]:
    command = text(COMMAND)
    unsafe = {
        "inst": (b"(" + command + b"ios\nsystem\n.", "os.system"),
        "obj": (b"(" + name("os", "system") + command + b"o.", "os.system"),
        "newobj": (whole(name("subprocess", "Popen") + command + b"\x85\x81"), "subprocess.Popen"),
        "newobj-ex": (whole(name("subprocess", "Popen") + command + b"\x85}\x92"), "subprocess.Popen"),
        "keyword-arguments": (whole(name("numpy", "ndarray") + b")}NNs\x92"), "instruction 0x92"),
        "protocol-0-text": (b"cos\nsystem\n(S'" + COMMAND.encode() + b"'\ntR.", "os.system"),
        "unused-name": (whole(name("os", "system") + b"0N"), "os.system"),
        "name-in-memo-only": (whole(name("os", "system") + b"q\x000N"), "os.system"),
        "name-with-escape-sequence": (whole(stack_name("os\x1b[2J", "system")), r"os\x1b[2J.system"),
        "class-as-argument": (whole(call("numpy.core.multiarray", "_reconstruct", name("os", "_Environ"))), "os._Env"),
        "extension-1": (whole(b"\x82\x07"), "instruction 0x82"),
        "extension-2": (whole(b"\x83\x07\x01"), "instruction 0x83"),
        "extension-4": (whole(b"\x84\x07\x00\x00\x01"), "instruction 0x84"),
        "persistent-id": (b"Pa secret file\n.", "a secret file"),
        "binary-persistent-id": (whole(text("id") + b"Q"), "persistent id"),
        "next-buffer": (whole(b"\x97", 5), "instruction 0x97"),
        "read-only-buffer": (whole(b"C\x01a\x98", 5), "instruction 0x98"),
    }
    return [Stream(key, data, UnsafePickle, mentions) for key, (data, mentions) in unsafe.items()]


def _hostile_arrays() -> list[Stream]:
    raw, big = buffer(bytes(24)), integer(2**62)
    from_buffer = ("numpy._core.numeric", "_frombuffer")
    unsafe = {
        "object-pointers": (array(THREE, dtype(text("O8"), "|"), raw), "object"),
        "object-items": (array(b"K\x01\x85", dtype(text("O8"), "|"), b"]K\x01a"), "object"),
        "void": (array(THREE, dtype(text("V8"), "|"), raw), "V8"),
        "datetime": (array(THREE, dtype(text("M8")), raw), "M8"),
        "record-fields": (array(THREE, dtype(text("f8"), fields=b"N)}"), raw), "fields"),
        "subarray": (array(THREE, dtype(text("f8"), fields=b"(" + F8 + b"K\x03tNN"), raw), "subarray"),
        "long-double": (array(THREE, dtype(text("f16")), buffer(bytes(48))), "f16"),
        "comma-dtype": (array(THREE, dtype(text("f8,f8")), raw), "f8,f8"),
        "dtype-from-object": (array(THREE, dtype(b"]"), raw), "a list"),
        "dtype-from-laughter": (array(THREE, dtype(_laughs(b"](", b"e")), raw), "a list"),
        "buffer-of-objects": (call(*from_buffer, raw, dtype(text("O8"), "|"), THREE, text("C")), "object"),
        "object-scalar": (call("numpy.core.multiarray", "scalar", dtype(text("O8"), "|"), text("x")), "object"),
    }
    broken = {
        "huge-shape": (array(big + b"\x85", F8, raw), "needs"),
        "overflowing-shape": (array(big + b"K\x04\x86", F8, b"C\x00"), "needs"),
        "negative-shape": (array(b"J\xfd\xff\xff\xff\x85", F8, raw), "(-3,)"),
        "two-negative-sides": (array(b"J\xfd\xff\xff\xffJ\xff\xff\xff\xff\x86", F8, raw), "(-3, -1)"),
        "shape-of-bool": (array(b"\x88\x85", F8, raw), "shape"),
        "shape-of-text": (array(text("3"), F8, raw), "shape"),
        "too-many-dimensions": (array(b"(" + b"K\x01" * 40 + b"t", F8, buffer(bytes(8))), "shape"),
        "too-few-bytes": (array(THREE, F8, buffer(bytes(23))), "needs 24 bytes and has 23"),
        "too-many-bytes": (array(THREE, F8, buffer(bytes(25))), "needs 24 bytes and has 25"),
        "no-item-size": (array(big + b"\x85", dtype(text("U0")), b"C\x00"), "needs 0 bytes"),
        "wrong-item-size": (array(THREE, dtype(text("f8"), item_size=b"K\x04"), raw), "item size"),
        "wrong-byte-order": (array(THREE, dtype(text("f8"), order="?"), raw), "f8"),
        "contents-not-bytes": (array(THREE, F8, b"]"), "not bytes"),
        "text-beyond-latin1": (array(b"K\x01\x85", dtype(text("i1"), "|"), text("\u20ac")), "malformed"),
        "impossible-boolean": (array(b"K\x01\x85", dtype(text("b1"), "|"), buffer(b"\x07")), "boolean"),
        "impossible-character": (array(b"K\x01\x85", dtype(text("U1")), buffer(b"\xff" * 4)), "no character"),
        "no-dtype": (array(THREE, text("f8"), raw), "dtype"),
        "no-contents": (
            name("numpy.core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"\x85R",
            "contents",
        ),
        "array-of-dtype-class": (call("numpy.core.multiarray", "_reconstruct", name("numpy", "dtype")), "numpy.dtype"),
        "array-class-called": (call("numpy", "ndarray", big + b"\x85"), "numpy.ndarray"),
        "bare-name": (name("numpy", "ndarray"), "numpy.ndarray"),
        "odd-encoding": (call("_codecs", "encode", text("x"), text("rot13")), "rot13"),
        "encoding-a-number": (call("_codecs", "encode", b"K\x01", text("latin1")), "latin1"),
        "buffer-order": (call(*from_buffer, raw, F8, THREE, text("X")), "'X'"),
        "buffer-axes": (call(*from_buffer, raw, F8, THREE, text("K"), b"K\x07\x85"), "malformed"),
        "big-bytes": (call("__builtin__", "bytes", integer(2**40)), "malformed"),
    }
    body = [Stream(key, whole(data), UnsafePickle, mentions) for key, (data, mentions) in unsafe.items()]
    return body + [Stream(key, whole(data), BrokenPickle, mentions) for key, (data, mentions) in broken.items()]


def _malformed() -> list[Stream]:
    """Streams that end too early, promise too much, or hold bytes that mean nothing."""
    streams = {
        "empty": (b"", "truncated"),
        "only-a-protocol": (b"\x80\x04", "truncated"),
        "no-stop": (b"\x80\x02K\x01", "truncated"),
        "stop-at-once": (b".", "malformed"),
        "protocol-6": (whole(b"N", 6), "pickle protocol: 6"),
        "protocol-255": (whole(b"N", 255), "pickle protocol: 255"),
        "unknown-opcode": (whole(b"\xff"), "0xff"),
        "not-a-pickle": (b"\x93NUMPY\x01\x00v\x00{'descr'", "malformed"),
        "second-pickle": (whole(b"N") * 2, "follow"),
        "left-on-the-stack": (whole(b"NN"), "left on the stack"),
        "open-mark": (whole(b"(N"), "left on the stack"),
        "laughing-lists": (whole(_laughs(b"](", b"e")), "items"),
        "laughing-tuples": (whole(_laughs(b"(", b"t")), "items"),
        "list-in-itself": (whole(b"]q\x00h\x00a"), "inside each other"),
        "dict-in-itself": (whole(b"}q\x00K\x01h\x00s"), "inside each other"),
        "deep-lists": (whole(b"]" * 200_000 + b"a" * 199_999), "inside each other"),
        "deep-tuples": (whole(b")" + b"\x85" * 200_000), "inside each other"),
        "memo-never-stored": (whole(b"h\x05"), "not found at index 5"),
        "text-memo-never-stored": (b"g-1\n.", "not found at index -1"),
        "memo-of-nothing": (whole(b"q\x00"), "malformed"),
        "endless-bytes": (whole(b"\x8e" + struct.pack("<Q", 2**62)), "truncated"),
        "endless-bytearray": (whole(b"\x96" + struct.pack("<Q", 2**40), 5), "truncated"),
        "endless-text": (whole(b"\x8d" + struct.pack("<Q", 2**63)), "maximum size"),
        "endless-frame": (whole(b"\x95" + struct.pack("<Q", 2**63)), "frame"),
        "negative-string": (b"T\xff\xff\xff\xff.", "negative byte count"),
        "negative-long": (whole(b"\x8b\xff\xff\xff\xff"), "negative byte count"),
        "huge-long": (whole(b"\x8a\xff" + b"\x01" * 255), "integer"),
        "65-bit-long": (whole(integer(2**64)), "bits"),
        "endless-digits": (b"I" + b"9" * 100_000 + b"\n.", "100000 digits"),
        "not-a-number": (b"Iabc\n.", "malformed"),
        "not-a-float": (b"Fabc\n.", "malformed"),
        "unquoted-string": (b"Sabc\n.", "quoted"),
        "half-escape": (b"S'a\\'\n.", "malformed"),
        "bad-utf8": (whole(b"\x8c\x02\xff\xfe"), "UnicodeDecodeError"),
        "bad-unicode-escape": (b"V\\u12\n.", "UnicodeDecodeError"),
    }
    return [Stream(key, data, BrokenPickle, mentions) for key, (data, mentions) in streams.items()]


def _misapplied() -> list[Stream]:
    """Opcodes that find the wrong things on the stack, or nothing."""
    ndarray = name("numpy", "ndarray")
    record = name("numpy", "dtype") + text("f8") + b"\x85R"
    streams = {
        "append-to-dict": (whole(b"}Na"), "'dict' object has no"),
        "append-to-name": (whole(ndarray + b"Na"), "'Name' object has no"),
        "items-of-list": (whole(b"](NNu"), "a list"),
        "odd-items": (whole(b"}(Nu"), "1 keys and values"),
        "members-of-list": (whole(b"](N\x90"), "not a set"),
        "list-as-key": (whole(b"}]Ns"), "a list used as a key"),
        "tuple-as-key": (whole(b"})Ns"), "() used as a key"),
        "tuple-as-member": (whole(b"\x8f()\x90"), "() used as a key"),
        "call-of-text": (whole(text("os") + b")R"), "a call of 'os'"),
        "call-of-record": (whole(record + b")R"), "a call of a _Dtype"),
        "call-with-list": (whole(ndarray + b"]R"), "with a list"),
        "state-of-a-class": (whole(ndarray + b"N}\x86b"), "a state (a tuple) set on 'numpy.ndarray'"),
        "state-of-a-dict": (whole(b"}" + attributes(a=b"N") + b"b"), "a dict"),
        "state-twice": (whole(F8 + b"}b"), "a state (a dict) set on a _Dtype"),
        "name-of-number": (whole(b"K\x01K\x02\x93"), "STACK_GLOBAL requires str"),
        "pop-of-nothing": (whole(b"0"), "malformed"),
        "build-on-nothing": (whole(b"}b"), "malformed"),
        "tuple-of-nothing": (whole(b"\x87"), "malformed"),
        "object-without-class": (whole(b"(o"), "malformed"),
    }
    return [Stream(key, data, BrokenPickle, mentions) for key, (data, mentions) in streams.items()]


def _hostile_bodies() -> list[Stream]:
    """Streams against the longer list of names that SMPL files need."""
    values = array(THREE, F8, buffer(bytes(24)))
    columns = array(b"K\x02\x85", I4, buffer(struct.pack("<2i", 0, 3)))
    rows = array(THREE, I4, buffer(struct.pack("<3i", 0, 1, 2)))
    csc = ("scipy.sparse.csc", "csc_matrix")
    good = {"data": values, "indices": rows, "indptr": columns, "_shape": b"K\x03K\x01\x86"}
    unsafe = {
        "chumpy-lambda": (name("chumpy.ch", "ChLambda"), "chumpy.ch.ChLambda"),
        "other-sparse": (name("scipy.sparse.csr", "csr_matrix"), "scipy.sparse.csr.csr_matrix"),
        "reconstruct-popen": (
            call("copy_reg", "_reconstructor", name("subprocess", "Popen"), name("__builtin__", "object"), b"N"),
            "subprocess.Popen",
        ),
    }
    select = ("chumpy.reordering", "Select")
    broken = {
        "chumpy-without-values": (instance("chumpy.ch", "Ch", attributes(y=values)), "without x"),
        "chumpy-with-arguments": (
            name("chumpy.ch", "Ch") + values + b"\x85\x81" + attributes(x=values) + b"b",
            "malformed",
        ),
        "chumpy-of-text": (instance("chumpy.ch", "Ch", attributes(x=text("boo"))), "array of numbers"),
        "chumpy-of-itself": (
            name("chumpy.ch", "Ch") + b")\x81q\x00" + attributes(x=b"h\x00") + b"b",
            "holds itself",
        ),
        "select-outside": (instance(*select, attributes(a=values, idxs=columns)), "malformed"),
        "select-by-floats": (instance(*select, attributes(a=values, idxs=values)), "malformed"),
        "select-shape": (instance(*select, attributes(a=values, idxs=rows, preferred_shape=b"K\x07\x85")), "malformed"),
        "huge-sparse": (instance(*csc, attributes(**{**good, "_shape": integer(2**40) + b"K\x01\x86"})), "shape"),
        "negative-sparse": (instance(*csc, attributes(**{**good, "_shape": b"J\xff\xff\xff\xffK\x01\x86"})), "shape"),
        "sparse-columns": (instance(*csc, attributes(**{**good, "_shape": b"K\x03K\x02\x86"})), "malformed"),
        "sparse-rows": (instance(*csc, attributes(**{**good, "_shape": b"K\x02K\x01\x86"})), "malformed"),
        "sparse-without-data": (instance(*csc, attributes(indices=rows, indptr=columns)), "without"),
        "set-of-lists": (call("__builtin__", "set", b"]]a"), "a list used as a key"),
        "set-of-text": (call("__builtin__", "set", text("ab")), "set"),
        "plain-object": (call("copy_reg", "_reconstructor", *[name("__builtin__", "object")] * 2, b"N"), "instance"),
        "object-called": (call("__builtin__", "object"), "object"),
    }
    body = [Stream(key, whole(data, 2), UnsafePickle, mentions, SMPL_FILE) for key, (data, mentions) in unsafe.items()]
    body += [Stream(key, whole(data), BrokenPickle, mentions, SMPL_FILE) for key, (data, mentions) in broken.items()]
    return body


HOSTILE: list[Stream] = [
    *_refused_globals(),
    *_real_reductions(),
    *_other_ways_to_call(),
    *_hostile_arrays(),
    *_malformed(),
    *_misapplied(),
    *_hostile_bodies(),
]


def same(found: Any, expected: Any) -> bool:
    """Equal values of equal types, arrays in native byte order, keys in the same order; NaN equals NaN."""
    if isinstance(expected, np.ndarray):
        same_kind = isinstance(found, np.ndarray) and found.dtype == expected.dtype.newbyteorder("=")
        return bool(same_kind and np.array_equal(found, expected, equal_nan=expected.dtype.kind in "fc"))
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        return list(found) == list(expected) and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected or found != found)
