"""Other people's files as sets to train on: RelativeHuman's annotations, and released DTO-Humans.

RelativeHuman's people have no bodies: boxes, joints and an order in depth are learnt from them. Released bodies are
copied once into a temporary file of plain arrays (see `sources.predictions`), which other processes on the machine read
in seconds. Every process holds the people of both in memory, about 0.5 kB a person. Pixels, metres.
"""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import camera_columns
from dto_pipeline.data.files import temporary_folder
from dto_pipeline.data.image_index import WHOLE_NAME, index_images
from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.people import FileKind
from dto_pipeline.data.sources.annots import open_ma_hmr
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.relative_human import evaluated_joints, read_annotations
from dto_pipeline.data.sources.rows import LabelSource
from dto_pipeline.data.storage import as_location
from dto_pipeline.data.training_labels import IMAGE_FILE, LabelSet, Part, Piece

# of each of the 14 joints: its position among SMPL's 24, which are followed by the top of the head and the neck
_SMPL_JOINTS = np.array([16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8, 24, 25])
_NUM_JOINTS = 26
_BODY = {"pose": 72, "betas": NUM_BETAS, "transl": 3}  # numbers of a person
_PIECE_IMAGES = 1024


@dataclass(frozen=True)
class PeopleSet(LabelSet):
    """A `LabelSet` of other people's label file, all of whose images count as accepted."""

    path: Path
    kind: FileKind
    copy: Path | None = None  # the copy of released bodies on the machine that opened the set

    def index(self, number: int, part: Part) -> list[Piece]:
        """Pieces of 1024 images; `part.select` and `part.limits` do not apply, as no run has judged these images."""
        rows = np.flatnonzero(part.holds(_open(self).images["image_id"].tolist())).astype(np.int32)
        starts = range(0, rows.size, _PIECE_IMAGES)
        return [Piece(number, 0, k, 0, rows[start : start + _PIECE_IMAGES]) for k, start in enumerate(starts)]

    def read(self, piece: Piece) -> LabelColumns:
        """See `LabelSet`; the size of images is unknown, 0."""
        return _open(self).take(piece.rows)


def open_people_set(path: str | Path, kind: FileKind, images: str) -> PeopleSet:
    """A file of `kind` RELATIVE_HUMAN or MA_HMR; `images`: the folder or URI its image names are relative to.

    Raises: LabelsError: no folder is named. LabelFileError, PickleRefused: the file cannot be used.
    """
    if not images:
        raise LabelsError(f"{path} does not say where its photographs are; name their folder (data.images)")
    people = PeopleSet(Path(path).stem, as_location(images), Path(path), kind)
    if kind is FileKind.MA_HMR:
        source = open_ma_hmr(people.path)
        rows, names = source.rows(np.arange(source.num_rows)), source.image_names.astype(str)
        copy = _FOLDERS.enter_context(temporary_folder("dto-annots-")) / "people.npz"
        np.savez(copy, image=names, pose=rows.pose, betas=rows.betas, transl=rows.transl, intrinsics=rows.intrinsics)
        people = replace(people, copy=copy)
    _open(people)
    return people


_FOLDERS = ExitStack()  # of the copies, which exist as long as this process
atexit.register(_FOLDERS.close)


@lru_cache
def _open(people: PeopleSet) -> LabelColumns:
    """All people, by image; from the file itself on a machine without the copy."""
    if people.copy is not None and people.copy.is_file():
        source = open_predictions(people.copy)
    else:
        source = (open_ma_hmr if people.kind is FileKind.MA_HMR else _open_annotations)(people.path)
    index = index_images(source, WHOLE_NAME)
    labels, names = source.rows(index.rows), np.array(index.image_name, dtype=object)
    images = {
        "image_id": np.array([f"{people.name}/{name}" for name in names], dtype=object),
        "image_path": names,
        IMAGE_FILE: names,
        **dict.fromkeys(("width", "height"), np.zeros(len(names), np.int32)),
        **camera_columns(labels.intrinsics[index.offsets[:-1]]),  # all people of an image have the same
        "z_covariance": np.full(len(names), None, dtype=object),
    }
    columns = {name: getattr(labels, name) for name in ("pose", "betas", "transl", "bbox_xyxy")}
    columns["status"] = np.full(len(labels.pose), "", dtype=object)
    if people.kind is FileKind.RELATIVE_HUMAN:
        columns |= {name: source.columns[name][index.rows] for name in ("keypoints", "depth_layer")}
    return LabelColumns(images, columns, index.offsets)


def _open_annotations(path: Path) -> LabelSource:
    """RelativeHuman's people without bodies and cameras; besides ``keypoints`` (n, 26, 2) and ``depth_layer`` (n,)."""
    crowd = [(name, person) for name, people in read_annotations(path).images.items() for person in people]
    names = np.array([name for name, _ in crowd], dtype=object)
    layers = np.array([person.depth_id for _, person in crowd], np.int64)
    boxes = np.array([person.bbox_xyxy or (np.nan,) * 4 for _, person in crowd], np.float32).reshape(-1, 4)
    points = np.full((len(crowd), _NUM_JOINTS, 2), np.nan, np.float32)
    for row, (name, person) in enumerate(crowd):
        if person.kp2d is not None:
            places, visible = evaluated_joints(person.kp2d, name)
            points[row, _SMPL_JOINTS[visible]] = places[visible]

    columns: dict[str, np.ndarray] = {
        name: np.full((len(crowd), size), np.nan, np.float32) for name, size in _BODY.items()
    }
    columns |= {"bbox_xyxy": boxes, "keypoints": points, "depth_layer": layers}
    return LabelSource([path], names, columns)
