"""Files of people: what one is, told by what it holds and never by its name, and its people in one shape.

| kind            | a file with                                                                               |
|-----------------|-------------------------------------------------------------------------------------------|
| dto_labels      | Parquet whose footer says `dto-labels/1`; a folder of them; a run's folder                |
| dto_persons     | Parquet whose footer says `dto-persons/1`; a folder of them                               |
| camerahmr       | npz: imgname, pose_cam or pose, shape, trans_cam or cam_t or trans, cam_int               |
| ma_hmr          | npz: annots -> image -> people with smpl_param and cam_param                              |
| relative_human  | npz: annots -> image -> people with kp2d, depth_id, age, gender or bbox                   |
| predictions     | npz or Parquet: image, pose, betas, transl                                                |
| synthetic_truth | npz: image_name, pose, betas, transl, intrinsics, image_size; a folder with its truth.npz |

`recognise` looks at names of members, footers and, in `annots`, at the first people; readers check shapes and types.
`read_people` reads all but RelativeHuman's annotations, which hold no bodies, into memory (about 0.5 kB a person; of
released DTO-Humans 0.2 kB, the rest is mapped). Nobody is dropped: a person with a number that is not finite, or behind
the camera, is kept and not `usable`. Metres, camera frame, pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

from dto_pipeline.data.cameras import CAMERA_COLUMNS, camera_matrices, read_cameras
from dto_pipeline.data.columns import read_numbers, single_array
from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.label_files import LabelColumns, find_label_files, flatten_table, initial_betas
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.npz import MappedNpz, safe_load_npz
from dto_pipeline.data.parquet import READ_ERRORS, footer_text, open_parquet
from dto_pipeline.data.sources.annots import ARRAY, BODY, CAMERA, NOBODY, first_people, open_annots
from dto_pipeline.data.sources.camerahmr import open_camerahmr
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.rows import LABEL_VALUES, LabelFileError, find_row_problems
from dto_pipeline.data.storage import list_names
from dto_pipeline.reading import read_start
from dto_pipeline.schema import LABELS_SCHEMA_NAME, PERSONS_SCHEMA_NAME

TRUTH_FILE = "truth.npz"  # of a synthetic data set
_SHOWN = 12  # names of members a message lists


class UnknownFile(LabelFileError):
    """A file of no kind that is read here; the message says what it holds and what each kind needs."""


class FileKind(StrEnum):
    """What a file of people is, see the module; `words` is what messages call it."""

    words: str

    def __new__(cls, value: str, words: str) -> Self:
        kind = str.__new__(cls, value)
        kind._value_, kind.words = value, words
        return kind

    DTO_LABELS = "dto_labels", "labels of this project"
    DTO_PERSONS = "dto_persons", "labels of this project, one row per person"
    CAMERAHMR = "camerahmr", "CameraHMR's labels"
    MA_HMR = "ma_hmr", "labels in Metric-Aware HMR's layout (released DTO-Humans)"
    RELATIVE_HUMAN = "relative_human", "RelativeHuman's annotations"
    PREDICTIONS = "predictions", "predictions"
    SYNTHETIC_TRUTH = "synthetic_truth", "the truth of a synthetic data set"


_NEEDS = {  # arrays; "a or b": one of them
    FileKind.CAMERAHMR: ("imgname", "pose_cam or pose", "shape", "trans_cam or cam_t or trans", "cam_int"),
    FileKind.PREDICTIONS: ("image", "pose", "betas", "transl"),
    FileKind.SYNTHETIC_TRUTH: ("image_name", "pose", "betas", "transl", "intrinsics", "image_size"),
}
_SCHEMAS = {PERSONS_SCHEMA_NAME: FileKind.DTO_PERSONS, LABELS_SCHEMA_NAME: FileKind.DTO_LABELS}
_ANNOTATED = ("kp2d", "depth_id", "age", "gender", "bbox")  # of RelativeHuman's people
_ALL_NEEDS = (
    f"What is read: {'; '.join(kind.words + ' need ' + ', '.join(needs) for kind, needs in _NEEDS.items())}; "
    f"MA-HMR's need {ARRAY} -> image -> people with {BODY} and {CAMERA}; RelativeHuman's need {ARRAY} -> image -> "
    f"people with some of {', '.join(_ANNOTATED)}"
)


def recognise(path: str | Path) -> FileKind:
    """What a file or folder holds.

    Raises:
        UnknownFile: nothing of the kinds above, with what was found and what each needs; or no such file.
    """
    path = Path(path)
    if path.is_dir():
        return _folder_kind(path)
    try:
        magic = read_start(path, 4)
    except FileNotFoundError as error:
        raise UnknownFile(f"{path} does not exist; expected a run, an export, or a file of people") from error
    except OSError as error:
        raise UnknownFile(f"{path} cannot be opened ({error.strerror}); check the path") from error
    if magic == b"PAR1":
        return _parquet_kind(path)
    if magic[:2] == b"PK":
        return _npz_kind(path)
    raise UnknownFile(f"{path} begins with {magic!r}; expected a Parquet or an npz file: {_ALL_NEEDS}")


def expect_kind(path: str | Path, wanted: Sequence[FileKind], reader: str) -> FileKind:
    """What a file holds, where `reader` (a verb) can use only some kinds. Raises: UnknownFile: another one, or none."""
    kind = recognise(path)
    if kind in wanted:
        return kind
    starts = kind in (FileKind.CAMERAHMR, FileKind.MA_HMR, FileKind.PREDICTIONS)
    advice = f"; `dto manifest build` starts a run from it (source: {kind})" if starts else ""
    readable = ", ".join(one.words for one in wanted)
    raise UnknownFile(f"{path} holds {kind.words}; {reader} reads {readable}{advice}")


def schema_of(path: Path) -> str:
    """What the footer of a Parquet file calls its schema; "" if it says nothing or cannot be read."""
    try:
        with open_parquet(path, UnknownFile) as file:
            return footer_text(file).get("schema", "")
    except UnknownFile:
        return ""


def _folder_kind(folder: Path) -> FileKind:
    if (folder / TRUTH_FILE).is_file():
        return FileKind.SYNTHETIC_TRUTH
    if (folder / "run.json").is_file():
        return FileKind.DTO_LABELS
    schemas = {schema_of(folder / name) for name in list_names(folder, (".parquet",)) if not name.startswith(".")}
    for schema, kind in _SCHEMAS.items():
        if schema in schemas:
            return kind
    raise UnknownFile(f"{folder} holds no label file; expected a run's folder, an export in Parquet, or a file")


def _parquet_kind(path: Path) -> FileKind:
    with open_parquet(path, UnknownFile) as file:
        schema, names = footer_text(file).get("schema", ""), file.schema_arrow.names
    if schema in _SCHEMAS:
        return _SCHEMAS[schema]
    if not _missing(FileKind.PREDICTIONS, names):
        return FileKind.PREDICTIONS
    raise UnknownFile(
        f"{path} is Parquet with the columns {_shown(names)}; expected the footer of {LABELS_SCHEMA_NAME} or "
        f"{PERSONS_SCHEMA_NAME}, or predictions with {', '.join(_NEEDS[FileKind.PREDICTIONS])}"
    )


def _npz_kind(path: Path) -> FileKind:
    try:
        names = MappedNpz(path).keys
    except PickleRefused as error:
        raise UnknownFile(str(error)) from error
    missing = {kind: _missing(kind, names) for kind in _NEEDS}
    for kind, lacks in missing.items():
        if not lacks:
            return kind
    if ARRAY in names:
        return _annots_kind(path)
    nearest = min(_NEEDS, key=lambda kind: len(missing[kind]) - len(_NEEDS[kind]))
    told = f"; for {nearest.words} it lacks {', '.join(missing[nearest])}"
    close = len(missing[nearest]) < len(_NEEDS[nearest])
    raise UnknownFile(f"{path} holds the arrays {_shown(names)}{told if close else ''}. {_ALL_NEEDS}")


def _annots_kind(path: Path) -> FileKind:
    try:
        people = first_people(path)
    except PickleRefused as error:
        raise UnknownFile(f"{path} cannot be read: {error}") from error
    keys = {str(key) for person in people if isinstance(person, dict) for key in person}
    if keys & {BODY, CAMERA}:
        return FileKind.MA_HMR
    if keys & set(_ANNOTATED):
        return FileKind.RELATIVE_HUMAN
    found = f"people with the keys {_shown(sorted(keys))}" if keys else f"{len(people)} people without a single key"
    raise UnknownFile(f"{path}, array {ARRAY!r}: its first images hold {found}. {_ALL_NEEDS}")


def _missing(kind: FileKind, names: Sequence[str]) -> list[str]:
    return [need for need in _NEEDS[kind] if not set(need.split(" or ")) & set(names)]


def _shown(names: Sequence[Any]) -> str:
    listed = [str(name)[:40] for name in names[:_SHOWN]]
    return f"{listed}{' ...' if len(names) > _SHOWN else ''}"


_IMAGE = ("image_path", "width", "height", *CAMERA_COLUMNS, "is_accepted")
_PERSON = ("pose", "betas", "transl", "transl_init", "beta_index", "beta_init", "source_row", "status")


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

    def part(self, start: int, stop: int) -> People:
        """The images of a range, with their people, of a file as it was read: people ordered by image."""
        first, last = np.searchsorted(self.owner, (start, stop))
        some = self.take(np.arange(first, last))
        images = {name: getattr(self, name)[start:stop] for name in ("images", "size", "accepted")}
        return dataclasses.replace(some, owner=some.owner - start, **images)


def read_people(path: str | Path | Sequence[str | Path], values: str = "after") -> People:
    """Read a file or folder of any kind in the table above.

    Args:
        path: file or folder; a sequence of label files is read as one.
        values: labels of this project: people as the run left them, or ``before`` it (see `LABEL_VALUES`).

    Raises:
        LabelsError, LabelFileError: nothing that can be read, named.
    """
    if values not in LABEL_VALUES:
        raise ValueError(f"values is {values!r}; choose from {LABEL_VALUES}")
    if not isinstance(path, str | Path):
        return _read_labels(list(path), values, str(path[0]).rpartition("/")[0])
    path = Path(path)
    kind = recognise(path)
    if kind is FileKind.DTO_LABELS:
        return _read_labels(find_label_files(path), values, str(path))
    if kind is FileKind.DTO_PERSONS:
        return _read_persons(path, values)
    if kind is FileKind.SYNTHETIC_TRUTH:
        return _read_truth(path / TRUTH_FILE if path.is_dir() else path)
    if kind is FileKind.MA_HMR:
        return _read_annots(path)
    if kind is FileKind.RELATIVE_HUMAN:
        raise LabelFileError(f"{path} holds {kind.words}: people in the picture only, without bodies to compare")
    source = open_camerahmr(path) if kind is FileKind.CAMERAHMR else open_predictions(path)
    rows, names = source.rows(np.arange(source.num_rows)), source.image_names(0, source.num_rows)
    return _from_rows(str(path), names, rows.pose, rows.betas, rows.transl, rows.intrinsics)


def _read_labels(files: Sequence[str | Path], values: str, source: str) -> People:
    columns = flatten_table(read_labels(*files, columns=_IMAGE, people=_PERSON))
    people, owner = columns.people, columns.owner
    return People(
        source=source,
        images=np.array(columns.images["image_path"], dtype=object),
        owner=owner,
        row=people["source_row"].astype(np.int64),
        pose=people["pose"],
        betas=initial_betas(columns) if values == "before" else people["betas"],
        transl=people["transl_init" if values == "before" else "transl"],
        intrinsics=columns.intrinsics[owner],
        size=_known_sizes(columns.images),
        accepted=np.asarray(columns.images["is_accepted"], bool),
        status=np.array(people["status"], dtype=object),
    )


def _read_persons(path: Path, values: str) -> People:
    """A file, or the files of a folder, with one row per person: the image's columns stand in every row."""
    files = [path]
    if path.is_dir():
        files = [path / name for name in sorted(list_names(path, (".parquet",)))]
        files = [file for file in files if schema_of(file) == PERSONS_SCHEMA_NAME]
    parts = []
    for file_path in files:
        with open_parquet(file_path, LabelFileError) as file:
            try:
                parts.append(file.read(columns=[*_IMAGE, *_PERSON]))
            except READ_ERRORS as error:
                raise LabelFileError(f"{file_path} is damaged ({error}); export it again") from error
    table = pa.concat_tables(parts)
    rows = {name: read_numbers(single_array(table.column(name))) for name in table.column_names}
    before = values == "before"
    betas = initial_betas(LabelColumns({}, rows, np.array([0, table.num_rows]))) if before else rows["betas"]
    transl = rows["transl_init" if before else "transl"]
    people = _from_rows(
        str(files[0]), rows["image_path"], rows["pose"], betas, transl, read_cameras(rows), _known_sizes(rows)
    )
    first = np.unique(people.owner, return_index=True)[1]
    return dataclasses.replace(
        people,
        row=rows["source_row"].astype(np.int64)[people.row],
        accepted=np.asarray(rows["is_accepted"], bool)[people.row[first]],
        status=np.array(rows["status"], dtype=object)[people.row],
    )


def _known_sizes(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, 2) float64 H, W [px], NaN where a file tells none."""
    size = np.stack([columns["height"], columns["width"]], axis=-1).astype(np.float64)
    return np.where(size > 0, size, np.nan)


def _from_rows(
    source: str,
    names: np.ndarray,
    pose: np.ndarray,
    betas: np.ndarray,
    transl: np.ndarray,
    intrinsics: np.ndarray,
    size: np.ndarray | None = None,
) -> People:
    """People from one row each, in any order; images come in order of their first row. size: (n, 2) or None."""
    unique, first, inverse = np.unique(np.asarray(names, dtype=str), return_index=True, return_inverse=True)
    by_row = np.argsort(first, kind="stable")
    owner = np.argsort(by_row)[inverse]
    order = np.argsort(owner, kind="stable")
    return People(
        source=source,
        images=unique[by_row].astype(object),
        owner=owner[order],
        row=order.astype(np.int64),
        pose=pose[order],
        betas=betas[order],
        transl=transl[order],
        intrinsics=np.asarray(intrinsics, np.float64)[order],
        size=np.full((len(unique), 2), np.nan) if size is None else size[first[by_row]].astype(np.float64),
        accepted=np.ones(len(unique), bool),
        status=np.full(len(order), "", dtype=object),
    )


def _read_truth(path: Path) -> People:
    wanted = ("image_name", "pose", "betas", "transl", "intrinsics", "image_size", "height")
    try:
        arrays = safe_load_npz(path, wanted)
    except (PickleRefused, OSError) as error:
        raise LabelFileError(f"{path} is not a whole npz file ({error}); make it again with `dto synth`") from error
    if missing := [name for name in wanted if name not in arrays]:
        raise LabelFileError(
            f"{path} lacks {missing}: it is no truth of `dto synth` (the demo scores itself: summary.json)"
        )
    *rows, height = (arrays[name] for name in wanted)
    people = _from_rows(str(path), *rows)
    return dataclasses.replace(people, height=np.asarray(height, np.float64)[people.row])


def _read_annots(path: Path) -> People:
    annots = open_annots(path)
    count, images = int(annots.starts[-1]), len(annots.names)
    return People(
        source=str(path),
        images=annots.names,
        owner=annots.owner,
        row=np.arange(count),
        pose=annots.pose,
        betas=annots.betas,
        transl=annots.transl,
        intrinsics=camera_matrices(annots.camera),
        size=np.full((images, 2), np.nan),
        accepted=np.ones(images, bool),
        status=np.full(count, "", dtype=object),
        problems=tuple(
            f"{path}, image {found.image}: {found.reason}" for found in annots.findings if found.reason != NOBODY
        ),
    )
