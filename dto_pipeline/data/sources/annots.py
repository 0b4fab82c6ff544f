"""Metric-Aware HMR's training files, in which DTO-Humans is released: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``.

    annots -> {image key: [{"smpl_param": {"shape": (10,) or (11,), "pose": (72,), "trans": (3,)},
                            "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

The dictionary is read item by item and laid down as flat arrays in a temporary folder, which are mapped: memory is the
image names and a few numbers per person, not the 1.3 kB per person of the dictionary itself. A person that is not as
above is kept with NaN in the place of its numbers, and told with its reason; a file in which nobody can be used is
refused. The order of the people is the file's. Metres, radians, pixels; foreign names end here and in `exports.ma_hmr`.

As the start of a manifest, an image's name is its key in the file (`a/b/c.jpg` below `insta-train/` for INSTA, the base
name for the others), so `images` is the folder these keys are relative to, or `image_prefixes` leads there. Images that
list nobody have no row; they, and people that are not as documented, are told in the findings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import camera_matrices
from dto_pipeline.data.files import check_maps, temporary_folder
from dto_pipeline.data.inert_pickle import PickleRefused, Record
from dto_pipeline.data.pickled_items import ITEM_LIMITS, read_items
from dto_pipeline.data.safe_pickle import build_values
from dto_pipeline.data.sources.rows import Finding, LabelFileError, LabelRows, find_row_problems

ARRAY = "annots"
BODY, CAMERA = "smpl_param", "cam_param"
NEEDED = f"{BODY} with pose (72,), shape (10,) or (11,), trans (3,) and {CAMERA} with focal (2,), princpt (2,)"
NOBODY = "listed without people"
_TOLD = 1000  # people that are not as documented and are named one by one
_COLUMNS = {"pose": (72, "<f4"), "betas": (NUM_BETAS, "<f4"), "transl": (3, "<f4"), "camera": (4, "<f8")}
_INDEX = "index.json"
_FLUSHED = 4096  # people held before they are written


class Person(NamedTuple):
    """Bytes of one person's numbers, little-endian; the camera's in float32 or, from other types, float64."""

    pose: bytes
    betas: bytes
    transl: bytes
    camera: bytes


@dataclass(frozen=True)
class Annots:
    """N images and their n people; the arrays of people are maps of files."""

    path: Path
    names: np.ndarray  # (N,) object, image keys in file order, each once
    starts: np.ndarray  # (N + 1,) int64: people of image i are starts[i] .. starts[i + 1]
    pose: np.ndarray  # (n, 72) float32
    betas: np.ndarray  # (n, 11) float32, kid axis last (0 where the file has ten)
    transl: np.ndarray  # (n, 3) float32
    camera: np.ndarray  # (n, 4) float64 fx, fy, cx, cy
    findings: tuple[Finding, ...]  # people that are not as documented, images without people

    @property
    def owner(self) -> np.ndarray:
        """(n,) int64 image of each person."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.starts))

    def intrinsics(self, people: np.ndarray) -> np.ndarray:
        """(m, 3, 3) float64 [px] of some people."""
        return camera_matrices(np.asarray(self.camera[people]))


def open_annots(path: str | Path) -> Annots:
    """Read a whole file into maps of temporary files, which are gone when the result is.

    Raises:
        LabelFileError: the file is missing, not an npz, damaged, asks for something that is not allowed, or holds no
            person that can be used; with what was found.
    """
    with temporary_folder("dto-annots-") as folder:
        check_maps(folder)
        return unpack_annots(Path(path), Path(folder))  # a map outlives its file's name


def unpack_annots(path: Path, folder: Path) -> Annots:
    """As `open_annots`, the flat files lie in `folder`."""
    check_maps(folder)
    try:
        with _Writer(path, folder) as writer:
            read_items(path, ARRAY, lambda key, people: writer.add(str(key), people))
    except FileNotFoundError as error:
        raise LabelFileError(f"label file {path} does not exist; check the path") from error
    except PickleRefused as error:
        raise LabelFileError(f"{path} cannot be read: {error}") from error
    return writer.result()


def map_annots(path: Path, folder: Path) -> Annots:
    """What `unpack_annots` left in a folder. Raises: FileNotFoundError: nothing lies there any more."""
    index = json.loads((folder / _INDEX).read_text())
    starts = np.concatenate([[0], np.cumsum(np.array(index["counts"], np.int64))]).astype(np.int64)
    columns = {
        name: np.memmap(folder / name, dtype, "r", shape=(int(starts[-1]), width))
        for name, (width, dtype) in _COLUMNS.items()
    }
    names = np.array([*index["names"], None], dtype=object)[:-1]  # one more, or numpy looks into a single text
    return Annots(path, names, starts, **columns, findings=tuple(Finding(*pair) for pair in index["findings"]))


def first_people(path: Path, most: int = 1000) -> list[Any]:
    """What the first people of a file hold, as plain values; of images that list nobody, nothing.

    Raises:
        PickleRefused: damaged, or not allowed. FileNotFoundError.
    """
    found: list[Any] = []

    def take(_: Any, people: Any) -> bool:
        found.extend(_listed(people))
        return len(found) >= most

    read_items(path, ARRAY, take, look=True)
    return [_built(person) for person in found[:most]]


@dataclass
class _Writer:
    """People on their way to the flat files."""

    path: Path
    folder: Path
    names: dict[str, None] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    untold: int = 0
    usable: int = 0
    sample: Any = None  # a person that is not as documented

    def __enter__(self) -> _Writer:
        self._held: list[Person] = []
        self._sinks: dict[str, BinaryIO] = {name: (self.folder / name).open("wb") for name in _COLUMNS}
        self._dtypes: dict[int, tuple[bool, Any]] = {}
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        for sink in self._sinks.values():
            sink.close()

    def add(self, name: str, people: Any) -> None:
        """One image."""
        if name in self.names:
            raise LabelFileError(f"{self.path}: image {name} is listed twice; expected every image once")
        self.names[name] = None
        listed = _listed(people)
        self.counts.append(len(listed))
        if not listed:
            self._tell(name, NOBODY)
        for place, person in enumerate(listed):
            self._held.append(self._quick(person) or self._slow(name, place, person))
        if len(self._held) >= _FLUSHED:
            self._flush()

    def result(self) -> Annots:
        """Everything, mapped."""
        if not self.usable:
            raise LabelFileError(f"{self.path} {describe_unusable(len(self.names), sum(self.counts), self.sample)}")
        if self.untold:
            self.findings.append(Finding("", f"{self.untold} more people or images that are not as documented"))
        index = {
            "names": [*self.names],
            "counts": self.counts,
            "findings": [(f.image, f.reason) for f in self.findings],
        }
        (self.folder / _INDEX).write_text(json.dumps(index))
        return map_annots(self.path, self.folder)

    def _tell(self, name: str, reason: str) -> None:
        if len(self.findings) < _TOLD:
            self.findings.append(Finding(name, reason))
        else:
            self.untold += 1

    def _quick(self, person: Any) -> Person | None:
        """A person all of whose arrays are float32 of the published shapes, without building an array."""
        try:
            body, camera = person[BODY], person[CAMERA]
            pose = self._bytes(body["pose"], 72)
            betas = self._bytes(body["shape"], NUM_BETAS) or self._bytes(body["shape"], NUM_BETAS - 1)
            transl = self._bytes(body["trans"], 3)
            focal, princpt = self._bytes(camera["focal"], 2), self._bytes(camera["princpt"], 2)
        except (AttributeError, IndexError, KeyError, TypeError):
            return None
        if not (pose and betas and transl and focal and princpt):
            return None
        return Person(pose, betas.ljust(4 * NUM_BETAS, b"\0"), transl, focal + princpt)

    def _bytes(self, array: Any, length: int) -> bytes | None:
        """The bytes of a little-endian float32 vector; None for anything else."""
        if type(array) is not Record or array.what.name != "_reconstruct":
            return None
        _, shape, dtype, fortran, raw = array.state
        if shape != (length,) or fortran or type(raw) is not bytes or len(raw) != 4 * length:
            return None
        if id(dtype) not in self._dtypes:
            self._dtypes[id(dtype)] = _is_float32(dtype), dtype  # held, so that no other gets its id
        return raw if self._dtypes[id(dtype)][0] else None

    def _slow(self, name: str, place: int, person: Any) -> Person:
        """Any other person: numbers of other types and layouts are converted, anything else becomes NaN."""
        try:
            found = _built(person)
            body, camera = found[BODY], found[CAMERA]
            betas = _numbers(body, "shape", (NUM_BETAS - 1, NUM_BETAS))
            lens = np.concatenate([_numbers(camera, "focal", (2,)), _numbers(camera, "princpt", (2,))])
            pose, transl = _numbers(body, "pose", (72,)), _numbers(body, "trans", (3,))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, PickleRefused) as error:
            what = f"{error}" if isinstance(error, PickleRefused | ValueError) else f"{type(error).__name__}: {error}"
            self._tell(name, f"person {place}: {what}; expected {NEEDED}")
            self.sample = person if self.sample is None else self.sample
            betas, lens, pose, transl = (np.full(width, np.nan) for width in (NUM_BETAS, 4, 72, 3))
        padded = np.zeros(NUM_BETAS)
        padded[: betas.size] = betas
        with np.errstate(over="ignore"):
            parts = [values.astype("<f4").tobytes() for values in (pose, padded, transl)]
        return Person(parts[0], parts[1], parts[2], lens.astype("<f8").tobytes())

    def _flush(self) -> None:
        people, self._held = self._held, []
        if not people:
            return
        for name in ("pose", "betas", "transl"):
            self._sinks[name].write(b"".join([getattr(person, name) for person in people]))
        cameras = [np.frombuffer(p.camera, "<f4" if len(p.camera) == 16 else "<f8") for p in people]
        self._sinks["camera"].write(np.stack(cameras).astype("<f8").tobytes())
        blocks = {
            name: np.frombuffer(b"".join([getattr(person, name) for person in people]), "<f4").reshape(len(people), -1)
            for name in ("pose", "betas", "transl")
        }
        self.usable += int((find_row_problems(**blocks) == 0).sum())


def describe_unusable(images: int, people: int, sample: Any) -> str:
    """What stands in a file that holds nobody of this layout, and what would."""
    if not people:
        return f"lists {images} images and nobody in them; expected people with {NEEDED}"
    held = "people with numbers that are not finite or behind the camera"
    if sample is not None:
        held = f"people with {sorted(map(str, sample))}" if isinstance(sample, dict) else f"{type(sample).__name__}"
    return f"lists {people} people and none can be used: it holds {held}; expected {NEEDED}"


def _listed(people: Any) -> list[Any]:
    """The people of an image as records: a list, a tuple or an object array of them; anything else is one person."""
    if isinstance(people, list | tuple):
        return list(people)
    if type(people) is Record and people.what.name == "_reconstruct":
        contents = people.state[-1] if isinstance(people.state, tuple) and people.state else None
        return list(contents) if isinstance(contents, list) else [people]
    return [people]


def _built(person: Any) -> Any:
    return build_values(person, ITEM_LIMITS, object_arrays=True)


def _numbers(holder: Any, key: str, lengths: tuple[int, ...]) -> np.ndarray:
    """(k,) float64 of one entry, k one of `lengths`. Raises: KeyError, TypeError, ValueError."""
    values = np.asarray(holder[key], np.float64).reshape(-1)
    if values.size not in lengths:
        raise ValueError(f"{key} holds {values.size} numbers, expected {' or '.join(map(str, lengths))}")
    return values


def _is_float32(dtype: Any) -> bool:
    """Whether a pickled dtype is little-endian float32, without fields."""
    return (
        type(dtype) is Record
        and dtype.what.name == "dtype"
        and dtype.args[:1] == ("f4",)
        and dtype.state is not None
        and tuple(dtype.state[1:5]) == ("<", None, None, None)
    )


class MaHmrLabels:
    """An open file: its people one after the other, mapped. Made by `open_ma_hmr`."""

    def __init__(self, annots: Annots) -> None:
        self.files = [annots.path]
        self.num_rows = int(annots.starts[-1])
        self.findings = annots.findings
        self._annots, self._owner = annots, annots.owner

    def image_names(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) str: image keys."""
        return self._annots.names[self._owner[start:stop]].astype(str)

    def rows(self, index: np.ndarray) -> LabelRows:
        """The people named by `index` (n,) int, in this order."""
        return LabelRows(
            pose=np.array(self._annots.pose[index]),
            betas=np.array(self._annots.betas[index]),
            transl=np.array(self._annots.transl[index]),
            bbox_xyxy=np.full((index.size, 4), np.nan, np.float32),
            intrinsics=self._annots.intrinsics(index),
        )

    def __enter__(self) -> MaHmrLabels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None  # the maps go with the last reference to them


def open_ma_hmr(path: Path) -> MaHmrLabels:
    """Open a ``*_CHMR_SMPL_OPT.npz``. Raises: LabelFileError, see `data.sources.annots.open_annots`."""
    return MaHmrLabels(open_annots(path))
