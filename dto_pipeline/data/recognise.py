"""What a file of people is, by what it holds and never by its name.

| kind            | a file with                                                                               |
|-----------------|-------------------------------------------------------------------------------------------|
| dto_labels      | Parquet whose footer says `dto-labels/1`; a folder of them; a run's folder                |
| dto_persons     | Parquet whose footer says `dto-persons/1`; a folder of them                               |
| camerahmr       | npz: imgname, pose_cam or pose, shape, trans_cam or cam_t or trans, cam_int               |
| ma_hmr          | npz: annots -> image -> people with smpl_param and cam_param                              |
| relative_human  | npz: annots -> image -> people with kp2d, depth_id, age, gender or bbox                   |
| predictions     | npz or Parquet: image, pose, betas, transl                                                |
| synthetic_truth | npz: image_name, pose, betas, transl, intrinsics, image_size; a folder with its truth.npz |

Looks at names of members, footers and, in `annots`, at the first people; the readers check shapes and types. A file of
none of these kinds is refused with what it holds and what each kind needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from dto_pipeline.data.inert_pickle import PickleRefused
from dto_pipeline.data.npz import MappedNpz, NpzError
from dto_pipeline.data.parquet import footer_text, open_parquet
from dto_pipeline.data.sources.annots import ARRAY, BODY, CAMERA, first_people
from dto_pipeline.data.sources.rows import LabelFileError
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
    if not path.is_file():  # a pipe would be waited for
        what = "is no regular file" if path.exists() else "does not exist"
        raise UnknownFile(f"{path} {what}; expected a run, an export, a Parquet or an npz file of people")
    try:
        magic = read_start(path, 4)
    except OSError as error:
        raise UnknownFile(f"{path} cannot be opened ({error.strerror}); check the path") from error
    if magic == b"PAR1":
        return _parquet_kind(path)
    if magic[:2] == b"PK":
        return _npz_kind(path)
    raise UnknownFile(f"{path} begins with {magic!r}; expected a Parquet or an npz file: {_ALL_NEEDS}")


def expect_kind(path: str | Path, wanted: Sequence[FileKind], reader: str) -> FileKind:
    """What a file holds, where `reader` (a verb, for the message) can use only some kinds.

    Raises:
        UnknownFile: another kind, or none.
    """
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
    files = [folder / name for name in sorted(list_names(folder, (".parquet",)))]
    schemas = {schema_of(file) for file in files if not file.name.startswith(".")}
    for schema, kind in ((PERSONS_SCHEMA_NAME, FileKind.DTO_PERSONS), (LABELS_SCHEMA_NAME, FileKind.DTO_LABELS)):
        if schema in schemas:
            return kind
    raise UnknownFile(f"{folder} holds no label file; expected a run's folder, an export in Parquet, or a file")


def _parquet_kind(path: Path) -> FileKind:
    with open_parquet(path, UnknownFile) as file:
        schema, names = footer_text(file).get("schema", ""), file.schema_arrow.names
    if schema in (LABELS_SCHEMA_NAME, PERSONS_SCHEMA_NAME):
        return FileKind.DTO_LABELS if schema == LABELS_SCHEMA_NAME else FileKind.DTO_PERSONS
    if not _missing(FileKind.PREDICTIONS, names):
        return FileKind.PREDICTIONS
    raise UnknownFile(
        f"{path} is Parquet with the columns {_shown(names)}; expected the footer of {LABELS_SCHEMA_NAME} or "
        f"{PERSONS_SCHEMA_NAME}, or predictions with {', '.join(_NEEDS[FileKind.PREDICTIONS])}"
    )


def _npz_kind(path: Path) -> FileKind:
    try:
        names = MappedNpz(path).keys
    except NpzError as error:
        raise UnknownFile(str(error)) from error
    missing = {kind: _missing(kind, names) for kind in _NEEDS}
    for kind, lacks in missing.items():
        if not lacks:
            return kind
    if ARRAY in names:
        return _annots_kind(path)
    nearest = min(_NEEDS, key=lambda kind: len(missing[kind]) - len(_NEEDS[kind]))
    close = len(missing[nearest]) < len(_NEEDS[nearest])
    told = f"; for {nearest.words} it lacks {', '.join(missing[nearest])}" if close else ""
    raise UnknownFile(f"{path} holds the arrays {_shown(names)}{told}. {_ALL_NEEDS}")


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
    """What a file with these members lacks of a kind."""
    return [need for need in _NEEDS[kind] if not set(need.split(" or ")) & set(names)]


def _shown(names: Sequence[Any]) -> str:
    listed = [str(name)[:40] for name in names[:_SHOWN]]
    return f"{listed}{' ...' if len(names) > _SHOWN else ''}"
