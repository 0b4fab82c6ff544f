"""Metric-Aware HMR's training files, in which DTO-Humans is released: ``{AIC,COCO,INSTA,MPII}_CHMR_SMPL_OPT.npz``.

    annots -> {image key: [{"smpl_param": {"shape": (10,) or (11,), "pose": (72,), "trans": (3,)},
                            "cam_param": {"focal": (2,), "princpt": (2,)}}, ...]}

The dictionary is read item by item into flat columns: memory is 0.4 kB per person and the image names, not the 1.3 kB
per person of the dictionary itself. A person that is not as above keeps its row, with NaN as numbers and a finding with
the reason; a file in which nobody can be used is refused. The order of the people is the file's. Metres, radians,
pixels.

As the start of a manifest, an image's name is its key in the file (`a/b/c.jpg` below `insta-train/` for INSTA, the base
name for the others), so `images` is the folder these keys are relative to, or `image_prefixes` leads there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import camera_matrices
from dto_pipeline.data.inert_pickle import PickleRefused, check_values
from dto_pipeline.data.npz import ITEM_LIMITS, read_items
from dto_pipeline.data.sources.rows import Finding, LabelFileError, LabelRows, LabelSource, find_row_problems, take_rows

ARRAY = "annots"
BODY, CAMERA = "smpl_param", "cam_param"
NEEDED = f"{BODY} with pose (72,), shape (10,) or (11,), trans (3,) and {CAMERA} with focal (2,), princpt (2,)"
_NAMED = 1000  # people that are not as documented and are named one by one
_COLUMNS = {"pose": (72, "<f4"), "betas": (NUM_BETAS, "<f4"), "transl": (3, "<f4"), "camera": (4, "<f8")}
_EDGES = np.cumsum([width for width, _ in _COLUMNS.values()])  # where each ends in a person's row of numbers
_PEOPLE_HELD = 4096  # people read before their numbers become columns


def open_ma_hmr(path: Path) -> LabelSource:
    """Open a ``*_CHMR_SMPL_OPT.npz`` and read it into columns.

    Raises:
        LabelFileError: it lists an image twice, or nobody that can be used; with its content.
        FileNotFoundError, PickleRefused: no such file; not an npz, damaged, or with something that is not allowed.
    """
    reader = _Reader(path)
    read_items(path, ARRAY, lambda key, people: reader.add(str(key), people))
    return reader.result()


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
    """Takes the images of a file one after the other, and keeps the numbers of their people in columns."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}  # in parts
        self._counts: dict[str, int] = {}  # image -> people
        self._findings: list[Finding] = []
        self._unnamed = self._usable = 0
        self._held: list[np.ndarray] = []  # people whose numbers are not in the columns yet

    def add(self, name: str, people: Any) -> None:
        if name in self._counts:
            raise LabelFileError(f"{self._path}: image {name} is listed twice; expected every image once")
        listed = _listed(people)
        self._counts[name] = len(listed)
        self._held += [self._read_person(name, place, person) for place, person in enumerate(listed)]
        if len(self._held) >= _PEOPLE_HELD:
            self._flush()

    def result(self) -> LabelSource:
        self._flush()
        if not self._usable:
            why = self._findings[0].reason if self._findings else "their numbers are not finite or behind the camera"
            raise LabelFileError(
                f"{self._path} lists {len(self._counts)} images with {sum(self._counts.values())} people, of whom none "
                f"can be used ({why}); expected {NEEDED}"
            )
        if self._unnamed:
            self._findings.append(Finding("", f"{self._unnamed} more people that are not as documented"))
        names = np.array([*self._counts, None], dtype=object)[:-1]  # one more, or numpy takes a single text apart
        image = np.repeat(np.arange(len(names)), list(self._counts.values()))
        columns = {name: np.concatenate(self._columns.pop(name)) for name in _COLUMNS}

        def rows(index: np.ndarray) -> LabelRows:
            return take_rows(columns, index, camera_matrices(np.asarray(columns["camera"][index])))

        def image_names(start: int, stop: int) -> np.ndarray:
            return names[image[start:stop]].astype(str)

        empty = [name for name, count in self._counts.items() if not count]
        return LabelSource([self._path], image.size, image_names, rows, self._findings, empty)

    def _read_person(self, name: str, place: int, person: Any) -> np.ndarray:
        """The numbers of `_COLUMNS` end to end; NaN, and a finding, where they are not as documented."""
        row = np.zeros(_EDGES[-1])
        try:
            check_values(person, ITEM_LIMITS)
            body, camera = person[BODY], person[CAMERA]
            betas = _numbers(body, "shape", (NUM_BETAS - 1, NUM_BETAS))
            row[_EDGES[0] : _EDGES[0] + betas.size] = betas
            row[: _EDGES[0]] = _numbers(body, "pose", (72,))
            row[_EDGES[1] : _EDGES[2]] = _numbers(body, "trans", (3,))
            row[-4:-2], row[-2:] = _numbers(camera, "focal", (2,)), _numbers(camera, "princpt", (2,))
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, PickleRefused) as error:
            what = f"{error}" if isinstance(error, PickleRefused | ValueError) else f"{type(error).__name__}: {error}"
            if len(self._findings) < _NAMED:
                self._findings.append(Finding(name, f"person {place}: {what}; expected {NEEDED}"))
            else:
                self._unnamed += 1
            row[:] = np.nan
        return row

    def _flush(self) -> None:
        if self._held:
            blocks = np.split(np.stack(self._held), _EDGES[:-1], axis=1)
            self._usable += int((find_row_problems(*blocks[:3]) == 0).sum())
            with np.errstate(over="ignore"):  # what is beyond float32 becomes infinite
                for (name, (_, dtype)), values in zip(_COLUMNS.items(), blocks, strict=True):
                    self._columns[name].append(values.astype(dtype))
            self._held.clear()


def _listed(people: Any) -> list[Any]:
    """The people of an image: a list, a tuple or an object array of them; anything else is one person."""
    is_array = type(people) is np.ndarray and people.dtype.hasobject
    return list(people.flat) if is_array else list(people) if isinstance(people, list | tuple) else [people]


def _numbers(holder: Any, key: str, lengths: tuple[int, ...]) -> np.ndarray:
    values = np.asarray(holder[key], np.float64).reshape(-1)
    if values.size not in lengths:
        raise ValueError(f"{key} holds {values.size} numbers, expected {' or '.join(map(str, lengths))}")
    return values
