"""People of whole files in one shape, whoever wrote them: what evaluations compare.

What is read and how it is recognised stands in `data.recognise`: everything there but RelativeHuman's annotations,
which hold no bodies. Images are called as the file calls them: image_path, imgname, image, image_name, or the keys of
`annots`.

Reading holds all people in memory (about 0.5 kB each; of released DTO-Humans 0.2 kB, the
rest is mapped). Knows files and columns, no body and no metric. Nobody is
dropped: a person with a number that is not finite, or behind the camera, is kept and not `usable`. Metres, camera
frame, pixels.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.columns import read_numbers, single_array
from dto_pipeline.data.label_files import LabelColumns, find_label_files, flatten_table, initial_betas, read_label_files
from dto_pipeline.data.parquet import READ_ERRORS, footer_text, open_parquet
from dto_pipeline.data.recognise import TRUTH_FILE, FileKind, UnknownFile, recognise
from dto_pipeline.data.sources.annots import NOBODY, open_annots
from dto_pipeline.data.sources.camerahmr import open_camerahmr
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.rows import LABEL_VALUES, LabelSource, find_row_problems
from dto_pipeline.data.storage import list_names
from dto_pipeline.errors import DtoError
from dto_pipeline.schema import PERSONS_SCHEMA_NAME

_PERSON = ("pose", "betas", "transl", "transl_init", "beta_index", "beta_init", "source_row", "status")
_UNKNOWN = float("nan")


class PeopleError(DtoError, ValueError):
    """A file that holds no people this project can read; the message names it, what was found and what is read."""


@dataclass(frozen=True)
class People:
    """n people of N images; read from files they are ordered by image."""

    source: str  # where they were read
    images: np.ndarray  # (N,) object, names as the file has them, each once
    owner: np.ndarray  # (n,) int64 image of each person
    row: np.ndarray  # (n,) int64 label row the person comes from (position in the file where it tells none)
    pose: np.ndarray  # (n, 72) float32 [rad]
    betas: np.ndarray  # (n, 11) float32
    transl: np.ndarray  # (n, 3) float32 [m]
    intrinsics: np.ndarray  # (n, 3, 3) float64 [px]; NaN = unknown
    size: np.ndarray  # (N, 2) float64 H, W [px]; NaN = unknown
    accepted: np.ndarray  # (N,) bool; True where the file knows no acceptance
    status: np.ndarray  # (n,) object: the person's status, "" where the file knows none
    height: np.ndarray | None = None  # (n,) in the rest pose [m], where the file says it besides the shape
    problems: tuple[str, ...] = ()  # what could not be understood, with its place

    @property
    def usable(self) -> np.ndarray:
        """(n,) bool: all numbers are finite and the person is in front of the camera."""
        return find_row_problems(self.pose, self.betas, self.transl) == 0

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images)

    @property
    def num_people(self) -> int:
        """n."""
        return len(self.owner)

    def take(self, people: np.ndarray) -> People:
        """The same images with some of the people: (m,) positions or (n,) bool."""
        kept = {
            name: getattr(self, name)[people]
            for name in ("owner", "row", "pose", "betas", "transl", "intrinsics", "status", "height")
            if getattr(self, name) is not None
        }
        return dataclasses.replace(self, **kept)

    def part(self, start: int, stop: int) -> People:
        """The images of a range, with their people, of a file as it was read: people ordered by image."""
        first, last = np.searchsorted(self.owner, (start, stop))
        some = self.take(np.arange(first, last))
        images = {name: getattr(self, name)[start:stop] for name in ("images", "size", "accepted")}
        return dataclasses.replace(some, owner=some.owner - start, **images)


def read_people(path: str | Path | Sequence[str | Path], values: str = "after") -> People:
    """Read a file or folder of any kind in the table of the module.

    Args:
        path: file or folder; a sequence of label files is read as one.
        values: labels of this project: people as the run left them, or ``before`` it (see `LABEL_VALUES`).

    Raises:
        PeopleError, LabelsError, LabelFileError: nothing that can be read, named.
    """
    if values not in LABEL_VALUES:
        raise ValueError(f"values is {values!r}; choose from {LABEL_VALUES}")
    if not isinstance(path, str | Path):
        return _read_labels(list(path), values, str(path[0]).rpartition("/")[0])
    path = Path(path)
    try:
        kind = recognise(path)
    except UnknownFile as error:
        raise PeopleError(str(error)) from error
    if kind is FileKind.DTO_LABELS:
        return _read_labels(find_label_files(path), values, str(path))
    if kind is FileKind.DTO_PERSONS:
        return _read_persons(_persons_files(path), values)
    if kind is FileKind.RELATIVE_HUMAN:
        raise PeopleError(f"{path} holds {kind.words}: people in the picture only, without bodies to compare")
    return _READERS[kind](path / TRUTH_FILE if path.is_dir() else path)


def _persons_files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else [path / name for name in sorted(list_names(path, (".parquet",)))]
    return [file for file in files if path.is_file() or _schema(file) == PERSONS_SCHEMA_NAME]


def _schema(path: Path) -> str:
    """What the footer calls the schema; "" if it says nothing."""
    with open_parquet(path, PeopleError) as file:
        return footer_text(file).get("schema", "")


def _read_labels(files: Sequence[str | Path], values: str, source: str) -> People:
    columns = flatten_table(read_label_files(files), _PERSON)
    owner = columns.owner
    return _from_columns(source, columns.images, columns, owner, columns.intrinsics[owner], values)


def _from_columns(
    source: str,
    images: Mapping[str, np.ndarray],
    columns: LabelColumns,
    owner: np.ndarray,
    intrinsics: np.ndarray,
    values: str,
) -> People:
    people = columns.people
    before = values == "before"
    size = np.stack([images["height"], images["width"]], axis=-1).astype(np.float64)
    return People(
        source=source,
        images=np.array(images["image_path"], dtype=object),
        owner=owner,
        row=people["source_row"].astype(np.int64),
        pose=people["pose"],
        betas=initial_betas(columns) if before else people["betas"],
        transl=people["transl_init"] if before else people["transl"],
        intrinsics=intrinsics,
        size=np.where(size > 0, size, _UNKNOWN),
        accepted=np.asarray(images["is_accepted"], bool),
        status=np.array(people["status"], dtype=object),
    )


def _read_persons(files: list[Path], values: str) -> People:
    """One row per person: the image's columns stand in every row."""
    wanted = ["image_path", "width", "height", "fx", "fy", "cx", "cy", "is_accepted", *_PERSON]
    parts: list[dict[str, Any]] = []
    for path in files:
        with open_parquet(path, PeopleError) as file:
            try:
                table = file.read(columns=wanted)
            except READ_ERRORS as error:
                raise PeopleError(f"{path} is damaged ({error}); export it again") from error
        parts.append({name: read_numbers(single_array(table.column(name))) for name in wanted})
    rows = {name: np.concatenate([part[name] for part in parts]) for name in wanted}
    names, owner, first = _group(rows["image_path"])
    order = np.argsort(owner, kind="stable")
    people = {name: rows[name][order] for name in _PERSON}
    starts = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(names)))])
    images = {name: rows[name][first] for name in ("width", "height", "fx", "fy", "cx", "cy", "is_accepted")}
    columns = LabelColumns({**images, "image_path": names}, people, starts)
    cameras = columns.intrinsics[owner[order]]
    return _from_columns(str(files[0]), columns.images, columns, owner[order], cameras, values)


def _read_camerahmr(path: Path) -> People:
    with open_camerahmr(path) as source:
        return _from_source(path, source)


def _read_predictions(path: Path) -> People:
    with open_predictions(path) as source:
        return _from_source(path, source)


def _from_source(path: Path, source: LabelSource) -> People:
    rows = source.rows(np.arange(source.num_rows))
    return _from_rows(
        path, source.image_names(0, source.num_rows), rows.pose, rows.betas, rows.transl, rows.intrinsics, None
    )


def _from_rows(
    path: Path,
    names: np.ndarray,
    pose: np.ndarray,
    betas: np.ndarray,
    transl: np.ndarray,
    intrinsics: np.ndarray,
    size: np.ndarray | None,
    problems: tuple[str, ...] = (),
) -> People:
    """People from one row each, in any order; size: (n, 2) or None."""
    images, owner, first = _group(names)
    order = np.argsort(owner, kind="stable")
    return People(
        source=str(path),
        images=images,
        owner=owner[order],
        row=order.astype(np.int64),
        pose=pose[order],
        betas=betas[order],
        transl=transl[order],
        intrinsics=np.asarray(intrinsics, np.float64)[order],
        size=np.full((len(images), 2), _UNKNOWN) if size is None else size[first].astype(np.float64),
        accepted=np.ones(len(images), bool),
        status=np.full(len(order), "", dtype=object),
        problems=problems,
    )


def _group(names: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images in order of their first row (N,), the image of each row (n,), and the first row of each image (N,)."""
    unique, first, inverse = np.unique(np.asarray(names, dtype=str), return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return unique[order].astype(object), place[inverse], first[order]


def _read_truth(path: Path) -> People:
    wanted = ("image_name", "pose", "betas", "transl", "intrinsics", "image_size", "height")
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in wanted if name not in archive.files]
            arrays = {name: archive[name] for name in archive.files if name in wanted}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise PeopleError(f"{path} is not a whole npz file ({error}); make it again with `dto synth`") from error
    if missing:
        raise PeopleError(
            f"{path} lacks {missing}: it is no truth of `dto synth` (the demo scores itself: summary.json)"
        )
    *rows, height = (arrays[name] for name in wanted)
    people = _from_rows(path, *rows)
    return dataclasses.replace(people, height=np.asarray(height, np.float64)[people.row])


def _read_annots(path: Path) -> People:
    """Released DTO-Humans: poses, shapes and translations stay on disk, mapped."""
    annots = open_annots(path)
    count = int(annots.starts[-1])
    return People(
        source=str(path),
        images=annots.names,
        owner=annots.owner,
        row=np.arange(count),
        pose=annots.pose,
        betas=annots.betas,
        transl=annots.transl,
        intrinsics=annots.intrinsics(np.arange(count)),
        size=np.full((len(annots.names), 2), _UNKNOWN),
        accepted=np.ones(len(annots.names), bool),
        status=np.full(count, "", dtype=object),
        problems=tuple(
            f"{path}, image {found.image}: {found.reason}" for found in annots.findings if found.reason != NOBODY
        ),
    )


_READERS: Mapping[FileKind, Callable[[Path], People]] = {
    FileKind.CAMERAHMR: _read_camerahmr,
    FileKind.MA_HMR: _read_annots,
    FileKind.PREDICTIONS: _read_predictions,
    FileKind.SYNTHETIC_TRUTH: _read_truth,
}
