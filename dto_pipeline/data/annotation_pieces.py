"""Other people's files as sets to train on: RelativeHuman's annotations, and released DTO-Humans.

RelativeHuman's people are known in the picture only, in ordinal layers of depth: they teach boxes, joints and who is
nearer. Released bodies are copied once into a temporary file of plain arrays (see `sources.predictions`), from which
other processes of the machine read them in seconds. Both are in memory, about 0.5 kB a person. Pixels, metres.
"""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.files import temporary_folder
from dto_pipeline.data.image_index import WHOLE_NAME, ImageIndex, index_images
from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.people import FileKind
from dto_pipeline.data.sources.annots import open_ma_hmr
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.relative_human import evaluated_joints, read_annotations
from dto_pipeline.data.sources.rows import LabelRows, LabelSource
from dto_pipeline.data.storage import as_location
from dto_pipeline.data.training_labels import IMAGE_FILE, LabelSet, Part, Piece

# place of each of the 14: SMPL's joint, and after its 24 the top of the head and the neck, which it has not
_SMPL_JOINTS = np.array([16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8, 24, 25])
_NUM_JOINTS = 26
_PIECE_IMAGES = 1024


@dataclass(frozen=True)
class PeopleSet(LabelSet):
    """A `LabelSet` of a file of other people's labels; every image of it is one that its makers accepted."""

    path: Path
    kind: FileKind
    copy: Path | None = None  # the same people as plain arrays, on the machine that opened the set

    def index(self, number: int, part: Part) -> list[Piece]:
        """Pieces of 1024 images; `part.select` is about what runs have judged."""
        images = _open(self)[1].image_name
        rows = np.flatnonzero(part.holds(images)).astype(np.int32)
        starts = range(0, rows.size, _PIECE_IMAGES)
        return [Piece(number, 0, k, 0, rows[start : start + _PIECE_IMAGES]) for k, start in enumerate(starts)]

    def read(self, piece: Piece) -> LabelColumns:
        """See `LabelSet`; images of unknown size."""
        source, index = _open(self)
        first, counts = index.offsets[piece.rows], np.diff(index.offsets)[piece.rows]
        starts = np.concatenate([[0], np.cumsum(counts)])
        labels = source.rows(index.rows[np.arange(starts[-1]) + np.repeat(first - starts[:-1], counts)])
        names = np.array([index.image_name[row] for row in piece.rows], dtype=object)
        cameras = labels.intrinsics[starts[:-1]][:, [0, 1, 0, 1], [0, 1, 2, 2]]  # all people of an image have the same
        images = {
            "image_id": np.array([f"{self.name}/{name}" for name in names], dtype=object),
            "image_path": names,
            IMAGE_FILE: names,
            **dict.fromkeys(("width", "height"), np.zeros(len(names), np.int32)),
            "image_sha256": np.full(len(names), "", dtype=object),
            **dict(zip(CAMERA_COLUMNS, cameras.T, strict=True)),
            "z_covariance": np.full(len(names), None, dtype=object),
        }
        people = {name: getattr(labels, name) for name in ("pose", "betas", "transl", "bbox_xyxy")}
        people["status"] = np.full(starts[-1], "", dtype=object)
        return LabelColumns(images, {**people, **labels.more}, starts)


def open_people_set(path: str | Path, kind: FileKind, images: str) -> PeopleSet:
    """A file of `kind` RELATIVE_HUMAN or MA_HMR; `images` is the folder or URI its names are relative to.

    Raises:
        LabelsError: no folder was named. LabelFileError, PickleRefused: the file cannot be used.
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


_FOLDERS = ExitStack()  # as long as this process lives: others read from them
atexit.register(_FOLDERS.close)


@lru_cache
def _open(people: PeopleSet) -> tuple[LabelSource, ImageIndex]:
    """The people and their images; a machine without the copy reads the file itself."""
    if people.copy is not None and people.copy.is_file():
        source = open_predictions(people.copy)
    else:
        source = (open_ma_hmr if people.kind is FileKind.MA_HMR else _open_annotations)(people.path)
    return source, index_images(source, WHOLE_NAME)


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

    def rows(index: np.ndarray) -> LabelRows:
        pose, betas, transl = (np.full((index.size, width), np.nan, np.float32) for width in (72, NUM_BETAS, 3))
        more = {"keypoints": points[index], "depth_layer": layers[index]}
        return LabelRows(pose, betas, transl, boxes[index], np.full((index.size, 3, 3), np.nan), more=more)

    return LabelSource([path], names, rows)
