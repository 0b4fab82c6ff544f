"""MA-HMR's training labels: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``, one array `annots`.

insta1 and insta2 become one file, keys with ``insta-train/`` before them; an image of both keeps the people of insta1.
Foreign names (smpl_param, trans, focal, princpt ...) end here. Memory: one row group, and the keys of an earlier subset
of the same file (about 100 bytes an image).

The dictionary is a pickle stream of protocol 3 with the module names of numpy 1 (`numpy.core`), which numpy 2 also
reads, and is never in memory: everything that repeats (names, dtypes, shapes, keys) is put into the unpickler's memo
once, so that each person is a fixed pattern of bytes into which numpy copies the numbers of all people at once.

    {image key: [{"smpl_param": {"shape": (11,), "pose": (72,), "trans": (3,)},
                  "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

float32; `cam_param` is one object, shared by the people of an image. Where the solver tells how sure it is, a person
has two more entries, "z_sigma_m" (1,) and "height_sigma_m" (1,), which readers of the two above do not look at.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.columns import read_vectors, single_array
from dto_pipeline.data.exports.inputs import read_footer
from dto_pipeline.data.exports.job import ExportedFile, ExportJob, SubsetPlan
from dto_pipeline.data.exports.provenance import describe_making
from dto_pipeline.data.npz import open_member

_COLUMNS = (
    *("image_path", "fx", "fy", "cx", "cy", "persons.list.element.pose.list.element"),
    *("persons.list.element.betas.list.element", "persons.list.element.transl.list.element"),
)
_SIGMAS = ("persons.list.element.z_sigma_m", "persons.list.element.height_sigma_m")
REPEATED = "images already taken from an earlier subset of the same file"


def write_ma_hmr(job: ExportJob, folder: Path) -> list[ExportedFile]:
    """One npz per data set that has images."""
    names = list(dict.fromkeys(file_name(subset.subset) for subset in job.subsets))
    return [
        _write_file(job, folder, name, [subset for subset in job.subsets if file_name(subset.subset) == name])
        for name in names
    ]


def file_name(subset: str) -> str:
    """The npz a subset goes to."""
    return f"{'INSTA' if _is_insta(subset) else subset.upper()}_CHMR_SMPL_OPT.npz"


def image_key(subset: str, image_path: str) -> str:
    """The key of an image in its npz."""
    return f"insta-train/{image_path}" if _is_insta(subset) else image_path


def _is_insta(subset: str) -> bool:
    return subset in ("insta", "insta1", "insta2")


def _write_file(job: ExportJob, folder: Path, name: str, subsets: list[SubsetPlan]) -> ExportedFile:
    images = persons = 0
    with zipfile.ZipFile(folder / name, "w") as archive, open_member(archive, "annots", np.dtype(object), ()) as stream:
        stream.write(start_stream())
        for people in _all_people(job, subsets):
            stream.write(image_records(people))
            images += len(people.keys)
            persons += int(people.counts.sum())
        stream.write(END_STREAM)
    return ExportedFile(name, images, persons)


def _all_people(job: ExportJob, subsets: list[SubsetPlan]) -> Iterator[ImagePeople]:
    taken: set[str] = set()
    for number, subset in enumerate(subsets):
        fresh: set[str] = set()
        sure = any(describe_making(read_footer(run))["solver"] == "joint" for run in subset.runs)
        for table in job.tables(subset, (*_COLUMNS, *(_SIGMAS if sure else ()))):
            keys = [image_key(subset.subset, path) for path in table["image_path"].to_pylist()]
            new = np.array([key not in taken for key in keys], dtype=bool)
            job.notes[REPEATED] += int((~new).sum())
            if number < len(subsets) - 1:
                fresh.update(keys)
            if new.any():
                yield _people(table.filter(pa.array(new)), list(compress(keys, new)), sure)
        taken |= fresh


def _people(table: pa.Table, keys: list[str], sure: bool) -> ImagePeople:
    people = single_array(table["persons"]).flatten()
    return ImagePeople(
        keys=keys,
        counts=table["num_persons"].to_numpy(),
        focal=np.stack([table["fx"].to_numpy(), table["fy"].to_numpy()], axis=1),
        princpt=np.stack([table["cx"].to_numpy(), table["cy"].to_numpy()], axis=1),
        betas=read_vectors(people.field("betas")),
        pose=read_vectors(people.field("pose")),
        transl=read_vectors(people.field("transl")),
        sigmas=(_column(people, "z_sigma_m"), _column(people, "height_sigma_m")) if sure else None,
    )


def _column(people: pa.StructArray, name: str) -> np.ndarray:
    """(n, 1) of one number per person."""
    return people.field(name).to_numpy(zero_copy_only=False).reshape(-1, 1)


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
