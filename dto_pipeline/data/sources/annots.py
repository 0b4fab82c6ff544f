"""Metric-Aware HMR's training files, in which DTO-Humans is released: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``.

    annots -> {image key: [{"smpl_param": {"shape": (10,) or (11,), "pose": (72,), "trans": (3,)},
                            "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

The dictionary is read item by item and laid down as flat columns in temporary files, which are mapped: memory is the
image names and a few numbers per person, not the 1.3 kB per person of the dictionary itself. A person that is not as
above is kept with NaN in the place of its numbers, and told with its reason, as images that list nobody are; a file in
which nobody can be used is refused. The order of the people is the file's. Metres, radians, pixels.

As the start of a manifest, an image's name is its key in the file (`a/b/c.jpg` below `insta-train/` for INSTA, the base
name for the others), so `images` is the folder these keys are relative to, or `image_prefixes` leads there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import camera_matrices
from dto_pipeline.data.inert_pickle import PickleRefused, check_values
from dto_pipeline.data.npz import ITEM_LIMITS, read_items
from dto_pipeline.data.scratch import FlatColumn, map_numbers
from dto_pipeline.data.sources.rows import Finding, LabelFileError, LabelRows, LabelSource, find_row_problems, take_rows

ARRAY = "annots"
BODY, CAMERA = "smpl_param", "cam_param"
NEEDED = f"{BODY} with pose (72,), shape (10,) or (11,), trans (3,) and {CAMERA} with focal (2,), princpt (2,)"
NOBODY = "listed without people"
_TOLD = 1000  # people that are not as documented and are named one by one
_COLUMNS = {"pose": (72, "<f4"), "betas": (NUM_BETAS, "<f4"), "transl": (3, "<f4"), "camera": (4, "<f8")}
_F4 = np.dtype("<f4")
_INDEX = "index.json"
_FLUSHED = 1 << 17  # bytes of cameras held before they are written: 4096 people


@dataclass(frozen=True)
class Annots:
    """N images and their n people; the arrays of people are maps of files."""

    names: np.ndarray  # (N,) object, image keys in file order, each once
    starts: np.ndarray  # (N + 1,) int64: people of image i are starts[i] .. starts[i + 1]
    pose: np.ndarray  # (n, 72) float32
    betas: np.ndarray  # (n, 11) float32, kid axis last (0 where the file has ten)
    transl: np.ndarray  # (n, 3) float32
    camera: np.ndarray  # (n, 4) float64 fx, fy, cx, cy
    findings: tuple[Finding, ...]  # people that are not as documented, images without people

    @property
    def owner(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.names)), np.diff(self.starts))


def open_ma_hmr(path: Path) -> LabelSource:
    """A ``*_CHMR_SMPL_OPT.npz`` as a source. Raises: LabelFileError, see `open_annots`."""
    annots = open_annots(path)
    owner = annots.owner

    def rows(index: np.ndarray) -> LabelRows:
        return take_rows(vars(annots), index, camera_matrices(np.asarray(annots.camera[index])))

    def image_names(start: int, stop: int) -> np.ndarray:
        return annots.names[owner[start:stop]].astype(str)

    return LabelSource([path], owner.size, image_names, rows, annots.findings)


def open_annots(path: str | Path, folder: Path | None = None) -> Annots:
    """Read a whole file into mapped columns.

    Args:
        folder: where the columns lie, for other processes to `map_annots`; None = in files that go with the result.

    Raises:
        LabelFileError: the file is missing, not an npz, damaged, asks for something that is not allowed, or holds no
            person that can be used; with what was found.
    """
    path = Path(path)
    reader = _Reader(path, folder)
    try:
        read_items(path, ARRAY, lambda key, people: reader.add(str(key), people))
    except FileNotFoundError as error:
        raise LabelFileError(f"label file {path} does not exist; check the path") from error
    except PickleRefused as error:
        raise LabelFileError(f"{path} cannot be read: {error}") from error
    return reader.result()


def map_annots(folder: Path) -> Annots:
    """What `open_annots` left in a folder. Raises: FileNotFoundError: nothing lies there any more."""
    index = json.loads((folder / _INDEX).read_text())
    index["findings"] = [Finding(**finding) for finding in index["findings"]]
    columns = {}
    for name, (width, dtype) in _COLUMNS.items():
        with (folder / name).open("rb") as stream:
            columns[name] = map_numbers(stream, np.dtype(dtype), (sum(index["counts"]), width))
    return _annots(**index, columns=columns)


def _annots(names: list[str], counts: list[int], findings: list[Finding], columns: dict[str, np.ndarray]) -> Annots:
    starts = np.concatenate([[0], np.cumsum(np.array(counts, np.int64))]).astype(np.int64)
    keys = np.array([*names, None], dtype=object)[:-1]  # one more, or numpy looks into a single text
    return Annots(keys, starts, **columns, findings=tuple(findings))


def first_people(path: Path, most: int = 1000) -> list[Any]:
    """What the first people of a file hold, as plain values. Raises: PickleRefused, FileNotFoundError."""
    found: list[Any] = []

    def take(_: Any, people: Any) -> bool:
        found.extend(_listed(people))
        return len(found) >= most

    read_items(path, ARRAY, take, look=True)
    for person in found[:most]:
        check_values(person, ITEM_LIMITS)
    return found[:most]


class _Reader:
    def __init__(self, path: Path, folder: Path | None) -> None:
        self._path, self._folder = path, folder
        self._columns = {
            name: FlatColumn(dtype, (width,), folder and folder / name) for name, (width, dtype) in _COLUMNS.items()
        }
        self._counts: dict[str, int] = {}  # image -> people
        self._findings: list[Finding] = []
        self._untold = self._usable = 0
        self._sample: Any = None  # a person that is not as documented
        self._held = {name: bytearray() for name in _COLUMNS}  # of people that are not written yet

    def add(self, name: str, people: Any) -> None:
        if name in self._counts:
            raise LabelFileError(f"{self._path}: image {name} is listed twice; expected every image once")
        listed = _listed(people)
        self._counts[name] = len(listed)
        if not listed:
            self._tell(name, NOBODY)
        for place, person in enumerate(listed):
            numbers = self._quick(person) or self._slow(name, place, person)
            for column, raw in zip(self._held.values(), numbers, strict=True):
                column += raw
        if len(self._held["camera"]) >= _FLUSHED:
            self._flush()

    def result(self) -> Annots:
        self._flush()
        if not self._usable:
            raise LabelFileError(f"{self._path} {self._describe_unusable()}")
        if self._untold:
            self._findings.append(Finding("", f"{self._untold} more people or images that are not as documented"))
        index: dict[str, Any] = {
            "names": [*self._counts],
            "counts": [*self._counts.values()],
            "findings": self._findings,
        }
        if self._folder:
            (self._folder / _INDEX).write_text(json.dumps(index, default=vars))
        return _annots(**index, columns={name: column.mapped() for name, column in self._columns.items()})

    def _describe_unusable(self) -> str:
        people, sample = sum(self._counts.values()), self._sample
        if not people:
            return f"lists {len(self._counts)} images and nobody in them; expected people with {NEEDED}"
        held = "people with numbers that are not finite or behind the camera"
        if sample is not None:
            held = f"people with {sorted(map(str, sample))}" if isinstance(sample, dict) else f"{type(sample).__name__}"
        return f"lists {people} people and none can be used: it holds {held}; expected {NEEDED}"

    def _tell(self, name: str, reason: str) -> None:
        if len(self._findings) < _TOLD:
            self._findings.append(Finding(name, reason))
        else:
            self._untold += 1

    def _quick(self, person: Any) -> tuple[bytes, ...] | None:
        """A person all of whose arrays are float32 of the published shapes, without converting one."""
        try:
            body, camera = person[BODY], person[CAMERA]
            pose, transl = _bytes(body["pose"], 72), _bytes(body["trans"], 3)
            betas = _bytes(body["shape"], NUM_BETAS) or _bytes(body["shape"], NUM_BETAS - 1)
            focal, princpt = _bytes(camera["focal"], 2), _bytes(camera["princpt"], 2)
        except (IndexError, KeyError, TypeError):
            return None
        if not (pose and betas and transl and focal and princpt):
            return None
        camera = np.frombuffer(focal + princpt, "<f4").astype("<f8").tobytes()
        return pose, betas.ljust(4 * NUM_BETAS, b"\0"), transl, camera

    def _slow(self, name: str, place: int, person: Any) -> tuple[bytes, ...]:
        """Any other person: numbers of other types and layouts are converted, anything else becomes NaN."""
        try:
            check_values(person, ITEM_LIMITS)
            body, camera = person[BODY], person[CAMERA]
            betas = _numbers(body, "shape", (NUM_BETAS - 1, NUM_BETAS))
            lens = np.concatenate([_numbers(camera, "focal", (2,)), _numbers(camera, "princpt", (2,))])
            pose, transl = _numbers(body, "pose", (72,)), _numbers(body, "trans", (3,))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, PickleRefused) as error:
            what = f"{error}" if isinstance(error, PickleRefused | ValueError) else f"{type(error).__name__}: {error}"
            self._tell(name, f"person {place}: {what}; expected {NEEDED}")
            self._sample = person if self._sample is None else self._sample
            betas, lens, pose, transl = (np.full(width, np.nan) for width in (NUM_BETAS, 4, 72, 3))
        numbers = (pose, np.pad(betas, (0, NUM_BETAS - betas.size)), transl, lens)
        with np.errstate(over="ignore"):
            types = [dtype for _, dtype in _COLUMNS.values()]
            return tuple(values.astype(dtype).tobytes() for values, dtype in zip(numbers, types, strict=True))

    def _flush(self) -> None:
        blocks = {
            name: np.frombuffer(bytes(self._held[name]), dtype).reshape(-1, width)
            for name, (width, dtype) in _COLUMNS.items()
        }
        self._usable += int((find_row_problems(blocks["pose"], blocks["betas"], blocks["transl"]) == 0).sum())
        for name, values in blocks.items():
            self._columns[name].append(values)
            self._held[name].clear()


def _listed(people: Any) -> list[Any]:
    """The people of an image: a list, a tuple or an object array of them; anything else is one person."""
    is_array = type(people) is np.ndarray and people.dtype.hasobject
    return list(people.flat) if is_array else list(people) if isinstance(people, list | tuple) else [people]


def _bytes(array: Any, length: int) -> bytes | None:
    """The bytes of a float32 vector; None for anything else."""
    return array.tobytes() if type(array) is np.ndarray and array.shape == (length,) and array.dtype == _F4 else None


def _numbers(holder: Any, key: str, lengths: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(holder[key], np.float64).reshape(-1)
    if values.size not in lengths:
        raise ValueError(f"{key} holds {values.size} numbers, expected {' or '.join(map(str, lengths))}")
    return values
