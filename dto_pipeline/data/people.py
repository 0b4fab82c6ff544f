"""Recognise files of people by their content, and read their people in one shape.

| kind            | a file with                                                                               |
|-----------------|-------------------------------------------------------------------------------------------|
| labels          | Parquet whose footer says `dto-labels/1`; a folder of them; a run's folder                |
| camerahmr       | npz: imgname, pose_cam or pose, shape, trans_cam or cam_t or trans, cam_int               |
| ma_hmr          | npz: annots -> image -> people with smpl_param and cam_param                              |
| relative_human  | npz: annots -> image -> people with kp2d, depth_id, age, gender or bbox                   |
| predictions     | npz or Parquet: image, pose, betas, transl                                                |
| synthetic_truth | npz: image_name, pose, betas, transl, intrinsics, image_size; a folder with its truth.npz |

`recognise` looks for the one array or column that only this kind has; the kind's reader checks all the others.
`read_people` reads all kinds but RelativeHuman's annotations, which hold no bodies, into memory (about 0.5 kB a
person). Nobody is dropped: people with numbers that are not finite, or behind the camera, are kept and are not
`usable`. Metres, camera frame, pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.image_index import WHOLE_NAME, index_images
from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.label_files import find_label_files, flatten_table, initial_betas
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.npz import NpzFile
from dto_pipeline.data.parquet import footer_text, open_parquet
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.annots import BODY, CAMERA, first_people
from dto_pipeline.data.sources.relative_human import ARRAY, PERSON_KEYS
from dto_pipeline.data.sources.rows import (
    LABEL_VALUES,
    LabelFileError,
    LabelSource,
    SourceOptions,
    find_row_problems,
)
from dto_pipeline.data.storage import as_location
from dto_pipeline.reading import read_start
from dto_pipeline.schema import LABELS_SCHEMA_NAME
from dto_pipeline.status import PersonStatus

TRUTH_FILE = "truth.npz"  # of a synthetic data set
_SHOWN = 12  # names of members a message lists


class FileKind(StrEnum):
    """What a file of people is, see the module; `words`: the kind as messages name it."""

    words: str

    def __new__(cls, name: str, words: str) -> FileKind:
        kind = str.__new__(cls, name)
        kind._value_, kind.words = name, words
        return kind

    LABELS = "labels", "labels of this project"
    CAMERAHMR = "camerahmr", "CameraHMR's labels"
    MA_HMR = "ma_hmr", "labels in Metric-Aware HMR's layout (released DTO-Humans)"
    RELATIVE_HUMAN = "relative_human", "RelativeHuman's annotations"
    PREDICTIONS = "predictions", "predictions"
    SYNTHETIC_TRUTH = "synthetic_truth", "the truth of a synthetic data set"


_MARKS = {  # array or column that only this kind has
    "imgname": FileKind.CAMERAHMR,
    "image": FileKind.PREDICTIONS,
    "image_name": FileKind.SYNTHETIC_TRUTH,
}
_EXPECTED = (
    f"expected {', '.join(f'{mark} ({kind.words})' for mark, kind in _MARKS.items())}, {ARRAY} (labels in Metric-Aware "
    f"HMR's layout or RelativeHuman's annotations), or Parquet of {LABELS_SCHEMA_NAME}"
)


def recognise(path: str | Path) -> FileKind:
    """The kind of a file or folder; behind a URI labels of this project, the one kind that is read from there.

    Raises: LabelFileError, LabelsError: none of those above, with its content; or no such file.
    """
    if isinstance(place := as_location(path), str):
        return FileKind.LABELS
    path = place
    try:
        if not path.is_dir():
            return _file_kind(path)
    except FileNotFoundError as error:
        raise LabelFileError(
            f"{path} does not exist; expected a run, an export or a file of people: check the path (in a build, "
            "--data-root and the dataset YAML)"
        ) from error
    except PickleRefused as error:
        raise LabelFileError(str(error)) from error
    except OSError as error:
        raise LabelFileError(f"{path} cannot be opened ({error.strerror}); check the path") from error
    if (path / TRUTH_FILE).is_file():
        return FileKind.SYNTHETIC_TRUTH
    if not (path / "run.json").is_file():
        find_label_files(path)
    return FileKind.LABELS


def _file_kind(path: Path) -> FileKind:
    magic = read_start(path, 4)
    if magic == b"PAR1":
        with open_parquet(path, LabelFileError) as file:
            schema, names = footer_text(file).get("schema", ""), file.schema_arrow.names
        if schema == LABELS_SCHEMA_NAME:
            return FileKind.LABELS
    elif magic[:2] == b"PK":
        names = list(NpzFile(path).keys)
    else:
        raise LabelFileError(f"{path} begins with {magic!r}; expected a Parquet or an npz file")
    for mark, kind in _MARKS.items():
        if mark in names:
            return kind
    if ARRAY not in names:
        raise LabelFileError(f"{path} holds {_shown(names)}; {_EXPECTED}")
    people = first_people(path)
    keys = {str(key) for person in people if isinstance(person, dict) for key in person}
    if keys & {BODY, CAMERA}:
        return FileKind.MA_HMR
    if keys & PERSON_KEYS:
        return FileKind.RELATIVE_HUMAN
    found = f"the first {len(people)} people of its array {ARRAY!r} have the keys {_shown(sorted(keys))}"
    raise LabelFileError(f"{path}: {found}; expected {BODY} and {CAMERA}, or some of {sorted(PERSON_KEYS)}")


def _shown(names: Sequence[str]) -> str:
    listed = [name[:40] for name in names[:_SHOWN]]
    return f"{listed}{' ...' if len(names) > _SHOWN else ''}"


@dataclass(frozen=True)
class People:
    """n people of N images; read from files they are ordered by image."""

    source: str  # where they were read
    images: np.ndarray  # (N,) object, names of the images, each once
    owner: np.ndarray  # (n,) int64 image of each person
    row: np.ndarray  # (n,) int64 label row of each person (its position in a file that does not say)
    pose: np.ndarray  # (n, 72) float32 [rad]
    betas: np.ndarray  # (n, 11) float32
    transl: np.ndarray  # (n, 3) float32 [m]
    intrinsics: np.ndarray  # (n, 3, 3) float64 [px]; NaN = unknown
    size: np.ndarray  # (N, 2) float64 H, W [px]; NaN = unknown
    accepted: np.ndarray  # (N,) bool; True where the file does not say
    status: np.ndarray  # (n,) object: the person's status, "" where the file does not say
    height: np.ndarray | None = None  # (n,) in the rest pose [m], where the file has it besides the shape
    problems: tuple[str, ...] = ()  # what could not be understood, with its place

    @property
    def usable(self) -> np.ndarray:
        """(n,) bool: all numbers are finite and the person is in front of the camera."""
        return find_row_problems(self.pose, self.betas, self.transl) == 0

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def num_people(self) -> int:
        return len(self.owner)

    def take(self, people: np.ndarray) -> People:
        kept = {
            name: getattr(self, name)[people]
            for name in ("owner", "row", "pose", "betas", "transl", "intrinsics", "status", "height")
            if getattr(self, name) is not None
        }
        return dataclasses.replace(self, **kept)

    def without_repeats(self) -> People:
        """Without label rows that are another row's person again, as exports and trainings leave them out."""
        single = self.status != str(PersonStatus.DUPLICATE)
        note = f"{self.source}: {(~single).sum()} label rows that repeat another person are left out"
        return self if single.all() else dataclasses.replace(self.take(single), problems=(note, *self.problems))


def read_people(path: str | Path | Sequence[str | Path], values: str = "after", by_row: bool = False) -> People:
    """Read a file or folder of any kind in the table above.

    Args:
        path: file, folder or URI; a sequence of label files is read as one.
        values: labels of this project: people as the run left them, or ``before`` it (see `LABEL_VALUES`).
        by_row: refuse files whose people have no label row: the order of a network's predictions says nothing.

    Raises:
        LabelsError, LabelFileError, PickleRefused: nothing that can be read, named.
    """
    if values not in LABEL_VALUES:
        raise ValueError(f"values is {values!r}; choose from {LABEL_VALUES}")
    if not isinstance(path, str | Path):
        return _read_labels(list(path), values, str(path[0]).rpartition("/")[0])
    kind, place, path = recognise(path), as_location(path), Path(path)
    if kind is FileKind.LABELS:
        return _read_labels(find_label_files(place), values, str(place))
    if kind is FileKind.RELATIVE_HUMAN:
        raise LabelFileError(f"{path} holds {kind.words}: people in the picture only, without bodies to compare")
    if kind is FileKind.PREDICTIONS and by_row:
        raise LabelFileError(f"{path} holds {kind.words}, which name no label rows; use `dto eval meshes`")
    if kind is FileKind.SYNTHETIC_TRUTH:
        return _read_source(path, _open_truth(path / TRUTH_FILE if path.is_dir() else path))
    return _read_source(path, SOURCES[kind](path, SourceOptions()))


def _read_source(path: Path, source: LabelSource) -> People:
    """All people of a source; images come in order of their first row, then those without people."""
    index = index_images(source, WHOLE_NAME)
    rows, images = source.rows(index.rows), [*index.image_name, *source.empty_images]
    size, heights = np.full((len(images), 2), np.nan), source.columns.get("height")
    if "image_size" in source.columns:
        size[: index.num_images] = source.columns["image_size"][index.rows[index.offsets[:-1]]]
    return People(
        source=str(path),
        images=np.array(images, dtype=object),
        owner=np.repeat(np.arange(index.num_images), np.diff(index.offsets)),
        row=index.rows,
        pose=rows.pose,
        betas=rows.betas,
        transl=rows.transl,
        intrinsics=rows.intrinsics,
        size=size,
        accepted=np.ones(len(images), bool),
        status=np.full(index.rows.size, "", dtype=object),
        height=None if heights is None else heights[index.rows].astype(np.float64),
        problems=tuple(f"{path}, image {found.image}: {found.reason}" for found in source.findings),
    )


_IMAGE = ("image_path", "width", "height", *CAMERA_COLUMNS, "is_accepted")
_PERSON = ("pose", "betas", "transl", "transl_init", "beta_index", "beta_init", "source_row", "status")


def _read_labels(files: Sequence[str | Path], values: str, source: str) -> People:
    columns = flatten_table(read_labels(*files, columns=_IMAGE, people=_PERSON))
    people, images = columns.people, columns.images
    size = np.stack([images["height"], images["width"]], axis=-1).astype(np.float64)
    return People(
        source=source,
        images=np.array(images["image_path"], dtype=object),
        owner=columns.owner,
        row=people["source_row"].astype(np.int64),
        pose=people["pose"],
        betas=initial_betas(columns) if values == "before" else people["betas"],
        transl=people["transl_init" if values == "before" else "transl"],
        intrinsics=columns.intrinsics[columns.owner],
        size=np.where(size > 0, size, np.nan),
        accepted=np.asarray(images["is_accepted"], bool),
        status=np.array(people["status"], dtype=object),
    )


def _open_truth(path: Path) -> LabelSource:
    wanted = ("image_name", "pose", "betas", "transl", "intrinsics", "image_size", "height")
    try:
        npz = NpzFile(path, most=1 << 28)
        arrays = {name: npz.array(name) for name in wanted if name in npz.keys}
    except (PickleRefused, OSError) as error:
        raise LabelFileError(f"{path} is not a whole npz file ({error}); make it again with `dto synth`") from error
    if missing := [name for name in wanted if name not in arrays]:
        raise LabelFileError(
            f"{path} lacks {missing}: it is no truth of `dto synth` (the demo scores itself: summary.json)"
        )
    return LabelSource([path], np.asarray(arrays.pop("image_name"), str), arrays)
