"""Other people's files as sets to train on: RelativeHuman's annotations, and released DTO-Humans.

RelativeHuman's people are known in the picture only, in ordinal layers of depth: they teach boxes, joints and who is
nearer; the whole file is in memory (about 0.3 kB a person). Released bodies (`sources.annots`) are mapped from a
temporary folder, which the processes of one machine share. Pixels, metres.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.files import temporary_folder
from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.scratch import scratch_file
from dto_pipeline.data.sources.annots import Annots, map_annots, open_annots
from dto_pipeline.data.sources.relative_human import Annotation, evaluated_joints, read_annotations
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.training_labels import IMAGE_FILE, LabelSet, Part, Piece

# place of each of the 14: SMPL's joint, and behind its 24 the top of the head and the neck, which it has not
_SMPL_JOINTS = np.array([16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8, 24, 25])
_NUM_JOINTS = 26
_PIECE_IMAGES = 1024
_WIDTHS = {"pose": 72, "betas": NUM_BETAS, "transl": 3, "bbox_xyxy": 4}


class _FileSet(LabelSet):
    def _pieces(self, number: int, part: Part, names: Iterable[str], counts: np.ndarray) -> list[Piece]:
        """Pieces of 1024 images that have people; `part.select` does not concern what no run has judged."""
        taken = part.holds([f"{self.name}/{image}" for image in names]) & (counts > 0)
        rows = np.flatnonzero(taken).astype(np.int32)
        starts = range(0, rows.size, _PIECE_IMAGES)
        return [Piece(number, 0, k, 0, rows[start : start + _PIECE_IMAGES]) for k, start in enumerate(starts)]

    def _columns(
        self, names: np.ndarray, cameras: np.ndarray, counts: np.ndarray, people: dict[str, np.ndarray]
    ) -> LabelColumns:
        """Images (m,) of unknown size with cameras (m, 4); what is not told of their people is NaN."""
        total = int(counts.sum())
        images = {
            "image_id": np.array([f"{self.name}/{name}" for name in names], dtype=object),
            "image_path": names,
            IMAGE_FILE: names,
            **dict.fromkeys(("width", "height"), np.zeros(len(names), np.int32)),
            **dict(zip(CAMERA_COLUMNS, cameras.T, strict=True)),
            "z_covariance": np.full(len(names), None, dtype=object),
        }
        unknown = {name: np.full((total, width), np.nan, np.float32) for name, width in _WIDTHS.items()}
        people = {**unknown, "status": np.full(total, "", dtype=object), **people}
        return LabelColumns(images, people, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


@dataclass(frozen=True)
class AnnotationSet(_FileSet):
    """A `LabelSet` of RelativeHuman's annotations."""

    images: tuple[str, ...]  # names
    people: tuple[tuple[Annotation, ...], ...]  # of each image

    def index(self, number: int, part: Part) -> list[Piece]:
        return self._pieces(number, part, self.images, np.array([len(people) for people in self.people]))

    def read(self, piece: Piece) -> LabelColumns:
        crowd = [(self.images[row], person) for row in piece.rows for person in self.people[row]]
        points = np.full((len(crowd), _NUM_JOINTS, 2), np.nan, np.float32)
        for row, (name, person) in enumerate(crowd):
            if person.kp2d is not None:
                places, visible = evaluated_joints(person.kp2d, name)
                points[row, _SMPL_JOINTS[visible]] = places[visible]
        boxes = [person.bbox_xyxy or (np.nan,) * 4 for _, person in crowd]
        return self._columns(
            np.array([self.images[row] for row in piece.rows], dtype=object),
            np.full((len(piece.rows), 4), np.nan),
            np.array([len(self.people[row]) for row in piece.rows]),
            {
                "bbox_xyxy": np.array(boxes, np.float32).reshape(-1, 4),
                "keypoints": points,
                "depth_layer": np.array([person.depth_id for _, person in crowd], np.int64),
            },
        )


def open_annotation_set(path: str | Path, images: str) -> AnnotationSet:
    """RelativeHuman's ``*_annots.npz``; `images` is the folder or URI its names are relative to.

    Raises:
        LabelsError: no folder was named. LabelFileError, UnsafePickle, BrokenPickle: the file cannot be used.
    """
    root = _photographs(path, images)
    found = read_annotations(path).images
    return AnnotationSet(Path(path).stem, root, tuple(found), tuple(found.values()))


def _photographs(path: str | Path, images: str) -> Location:
    if not images:
        raise LabelsError(f"{path} does not say where its photographs are; name their folder (data.images)")
    return as_location(images)


@dataclass(frozen=True)
class AnnotsSet(_FileSet):
    """A `LabelSet` of released DTO-Humans: every image of the file is one that its makers accepted."""

    path: Path
    folder: str  # where the flat columns lie, on the machine that opened the set

    def index(self, number: int, part: Part) -> list[Piece]:
        annots = _mapped(self.path, self.folder)
        return self._pieces(number, part, annots.names, np.diff(annots.starts))

    def read(self, piece: Piece) -> LabelColumns:
        annots = _mapped(self.path, self.folder)
        first, counts = annots.starts[piece.rows], np.diff(annots.starts)[piece.rows]
        people = np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        bodies = {name: np.array(getattr(annots, name)[people]) for name in ("pose", "betas", "transl")}
        # everybody of an image has the same camera, as the layout shares it
        return self._columns(annots.names[piece.rows], np.array(annots.camera[first]), counts, bodies)


@lru_cache
def _mapped(path: Path, folder: str) -> Annots:
    """The flat columns where they were left; a machine that has no such folder reads the file itself."""
    try:
        return map_annots(Path(folder))
    except FileNotFoundError:
        return open_annots(path)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # as long as this process lives: others read from them


def open_annots_set(path: str | Path, images: str) -> AnnotsSet:
    """Released DTO-Humans; `images` is the folder or URI its keys are relative to.

    Raises:
        LabelsError: no folder was named. LabelFileError: the file cannot be used.
    """
    root = _photographs(path, images)
    scratch_file().close()  # where none can be mapped, it says so
    folder = temporary_folder("dto-annots-")
    _FOLDERS.append(folder)
    open_annots(path, Path(folder.name))
    return AnnotsSet(Path(path).stem, root, Path(path), folder.name)
