"""MA-HMR's `annots` as a pickle stream: a dictionary of images that is never in memory.

Protocol 3 with the module names of numpy 1 (`numpy.core`), which numpy 2 also reads. Everything that repeats (names,
dtypes, shapes, keys) is put into the unpickler's memo once, so that each person is a fixed pattern of bytes into which
numpy copies the numbers of all people at once. Writes nothing that runs code beyond rebuilding arrays.

    {image key: [{"smpl_param": {"shape": (11,), "pose": (72,), "trans": (3,)},
                  "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

float32; `cam_param` is one object, shared by the people of an image. Where the solver tells how sure it is, a person
has two more entries, "z_sigma_m" (1,) and "height_sigma_m" (1,), which readers of the two above do not look at.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dto_pipeline.axes import NUM_BETAS

_RECONSTRUCT, _NDARRAY, _EMPTY, _B, _FLOAT, _CAMERA = range(6)  # places in the memo
_WORDS = ("smpl_param", "shape", "pose", "trans", "cam_param", "focal", "princpt", "z_sigma_m", "height_sigma_m")
_SHAPES = {NUM_BETAS: 6, 72: 7, 3: 8, 2: 9, 1: 10 + len(_WORDS)}
_KEYS = {word: 10 + i for i, word in enumerate(_WORDS)}
_NEW_ARRAY = b"h%ch%ch%ch%c\x87R" % (_RECONSTRUCT, _NDARRAY, _EMPTY, _B)  # _reconstruct(ndarray, (0,), b"b")


def start_stream() -> bytes:
    """From the stream's first byte to the empty dictionary; then `image_records`, then `END_STREAM`."""
    parts = [
        b"\x80\x03",
        _remember(_RECONSTRUCT, b"cnumpy.core.multiarray\n_reconstruct\n"),
        _remember(_NDARRAY, b"cnumpy\nndarray\n"),
        _remember(_EMPTY, b"K\x00\x85"),
        _remember(_B, b"C\x01b"),
        _remember(_FLOAT, _dtype(b"f4", b"<", -1, 0)),
        *(_remember(place, b"K%c\x85" % length) for length, place in _SHAPES.items()),
        *(_remember(place, _text(name)) for name, place in _KEYS.items()),
    ]
    object_array = _NEW_ARRAY + b"(K\x01)" + _dtype(b"O8", b"|", -1, 63) + b"\x89]}"  # state 1, (), dtype, C, [{
    return b"".join(parts) + object_array


END_STREAM = b"atb."
"""The dictionary into the array's list, the state into the array, stop."""


@dataclass(frozen=True)
class ImagePeople:
    """m images and their n people, image by image; float32."""

    keys: list[str]  # m
    counts: np.ndarray  # (m,) int, people of each image
    focal: np.ndarray  # (m, 2) [px]
    princpt: np.ndarray  # (m, 2) [px]
    betas: np.ndarray  # (n, 11)
    pose: np.ndarray  # (n, 72) [rad]
    transl: np.ndarray  # (n, 3) [m]
    sigmas: tuple[np.ndarray, np.ndarray] | None = field(
        default=None, kw_only=True
    )  # (n, 1) of z and of the height [m]; None = not told


def image_records(people: ImagePeople) -> bytes:
    """The part of the stream that adds these images to the dictionary."""
    record = _PERSON if people.sigmas is None else _SURE_PERSON
    persons = memoryview(_fill(record, (people.betas, people.pose, people.transl, *(people.sigmas or ()))))
    cameras = memoryview(_fill(_CAMERA_RECORD, (people.focal, people.princpt)))
    ends = np.cumsum(people.counts) * record.length
    starts = ends - people.counts * record.length
    parts: list[bytes | memoryview] = []
    for image, (key, start, end) in enumerate(zip(people.keys, starts.tolist(), ends.tolist(), strict=True)):
        camera = image * _CAMERA_RECORD.length
        parts += [cameras[camera : camera + _CAMERA_RECORD.length], _text(key), b"](", persons[start:end], b"es"]
    return b"".join(parts)


@dataclass(frozen=True)
class _Record:
    """A pattern of bytes with gaps for float32 vectors."""

    pattern: bytes
    gaps: tuple[tuple[int, int], ...]  # (first byte, bytes) of each

    @property
    def length(self) -> int:
        return len(self.pattern)


def _fill(record: _Record, vectors: Sequence[np.ndarray]) -> bytes:
    """One record after the other, the k-th gap of record r holding ``vectors[k][r]``."""
    filled = np.tile(np.frombuffer(record.pattern, np.uint8), (len(vectors[0]), 1))
    for (start, size), values in zip(record.gaps, vectors, strict=True):
        filled[:, start : start + size] = np.ascontiguousarray(values, "<f4").view(np.uint8)
    return filled.tobytes()


def _record(parts: list[bytes | int]) -> _Record:
    """A record from bytes and, where a vector goes, its length."""
    pattern, gaps = b"", []
    for part in parts:
        if isinstance(part, bytes):
            pattern += part
            continue
        # _reconstruct(...) with the state (1, shape, dtype, not fortran, bytes)
        pattern += _NEW_ARRAY + b"(K\x01h%ch%c\x89" % (_SHAPES[part], _FLOAT) + struct.pack("<cI", b"B", 4 * part)
        gaps.append((len(pattern), 4 * part))
        pattern += bytes(4 * part) + b"tb"
    return _Record(pattern, tuple(gaps))


def _key(name: str) -> bytes:
    return b"h%c" % _KEYS[name]


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<cI", b"X", len(raw)) + raw


def _remember(place: int, value: bytes) -> bytes:
    """Build a value, put it into the memo, and take it off the stack."""
    return value + b"q%c0" % place


def _dtype(code: bytes, order: bytes, size: int, flags: int) -> bytes:
    """`dtype(code, False, True)` with the state (3, order, None, None, None, size, size, flags)."""
    state = b"(K\x03" + _text(order.decode()) + b"NNN" + struct.pack("<ci", b"J", size) * 2 + b"K%ctb" % flags
    return b"cnumpy\ndtype\n" + _text(code.decode()) + b"\x89\x88\x87R" + state


_BODY: list[bytes | int] = [
    *(b"}(", _key("smpl_param"), b"}("),
    *(_key("shape"), NUM_BETAS, _key("pose"), 72, _key("trans"), 3, b"u"),
    *(_key("cam_param"), b"h%c" % _CAMERA),
]
_PERSON = _record([*_BODY, b"u"])
_SURE_PERSON = _record([*_BODY, _key("z_sigma_m"), 1, _key("height_sigma_m"), 1, b"u"])
_CAMERA_RECORD = _record([b"}(", _key("focal"), 2, _key("princpt"), 2, b"uq%c0" % _CAMERA])
