"""Other people's files as sets to train on: RelativeHuman's annotations, and released DTO-Humans.

RelativeHuman's people are known in the picture only, in ordinal layers of depth: no body and no camera, so they teach
boxes, joints in the picture and who is nearer. The whole file is in memory (about 0.3 kB a person). Released bodies
(`sources.annots`) are mapped from a temporary folder, which the processes of one machine share. Pixels, metres.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS
from dto_pipeline.data.files import temporary_folder
from dto_pipeline.data.images import ImageStore, open_folder
from dto_pipeline.data.label_files import LabelColumns
from dto_pipeline.data.label_pieces import IMAGE_FILE, Part, Piece
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.scratch import scratch_file
from dto_pipeline.data.sources.annots import Annots, map_annots, open_annots
from dto_pipeline.data.sources.relative_human import EVALUATED_JOINTS, Annotation, evaluated_joints, read_annotations
from dto_pipeline.data.storage import Location, as_location

# place of each of the 14: SMPL's joint, and behind its 24 the top of the head and the neck, which it has not
SMPL_JOINTS = (16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8, 24, 25)
_NUM_JOINTS = 26
_PIECE_IMAGES = 1024


@dataclass(frozen=True)
class AnnotationSet:
    """A `LabelSet` of one annotation file."""

    name: str
    images_root: Location
    images: tuple[str, ...]  # names, relative to the root
    people: tuple[tuple[Annotation, ...], ...]  # of each image

    @property
    def is_remote(self) -> bool:
        """The photographs lie behind a URI."""
        return isinstance(self.images_root, str)

    def open_images(self) -> ImageStore:
        """The folder of the photographs."""
        return open_folder(self.images_root)

    def index(self, number: int, part: Part) -> list[Piece]:
        """Pieces of 1024 images; `part.select` does not concern what no run has judged."""
        taken = part.holds([f"{self.name}/{image}" for image in self.images])
        taken &= np.array([len(people) > 0 for people in self.people], bool)
        rows = np.flatnonzero(taken).astype(np.int32)
        starts = range(0, rows.size, _PIECE_IMAGES)
        return [Piece(number, 0, k, 0, rows[start : start + _PIECE_IMAGES]) for k, start in enumerate(starts)]

    def read(self, piece: Piece) -> LabelColumns:
        """Boxes, keypoints and depth layers of a piece's images; cameras, bodies and image sizes are unknown."""
        names = [self.images[row] for row in piece.rows]
        crowds = [self.people[row] for row in piece.rows]
        everybody = [(name, person) for name, crowd in zip(names, crowds, strict=True) for person in crowd]
        count, unknown = len(everybody), np.full(len(names), np.nan)
        nobody = (np.nan,) * 4
        return LabelColumns(
            images={
                "image_id": np.array([f"{self.name}/{name}" for name in names], dtype=object),
                IMAGE_FILE: np.array(names, dtype=object),
                "width": np.zeros(len(names), np.int32),
                "height": np.zeros(len(names), np.int32),
                **dict.fromkeys(("fx", "fy", "cx", "cy"), unknown),
                "z_covariance": np.full(len(names), None, dtype=object),
            },
            people={
                "pose": np.full((count, 72), np.nan, np.float32),
                "betas": np.full((count, NUM_BETAS), np.nan, np.float32),
                "transl": np.full((count, 3), np.nan, np.float32),
                "bbox_xyxy": np.array([p.bbox_xyxy or nobody for _, p in everybody], np.float32).reshape(-1, 4),
                "status": np.full(count, "", dtype=object),
                "keypoints": _smpl_keypoints(everybody),
                "depth_layer": np.array([person.depth_id for _, person in everybody], np.int64),
            },
            starts=np.concatenate([[0], np.cumsum([len(crowd) for crowd in crowds])]).astype(np.int64),
        )


def open_annotation_set(path: str | Path, images: str) -> AnnotationSet:
    """RelativeHuman's ``*_annots.npz``; `images` is the folder or URI its names are relative to.

    Raises:
        LabelsError: no folder was named.
        LabelFileError, UnsafePickle, BrokenPickle: the file cannot be used.
    """
    if not images:
        raise LabelsError(f"{path} does not say where its photographs are; name their folder")
    found = read_annotations(path).images
    return AnnotationSet(Path(path).stem, as_location(images), tuple(found), tuple(found.values()))


@dataclass(frozen=True)
class AnnotsSet:
    """A `LabelSet` of released DTO-Humans: every image of the file is one that its makers accepted."""

    name: str
    path: Path
    images_root: Location
    folder: str  # where the flat arrays lie, on the machine that opened the set

    @property
    def is_remote(self) -> bool:
        """The photographs lie behind a URI."""
        return isinstance(self.images_root, str)

    def open_images(self) -> ImageStore:
        """The folder of the photographs."""
        return open_folder(self.images_root)

    def index(self, number: int, part: Part) -> list[Piece]:
        """Pieces of 1024 images; `part.select` does not concern what holds accepted images only."""
        annots = self._annots()
        taken = part.holds([f"{self.name}/{image}" for image in annots.names])
        rows = np.flatnonzero(taken & (np.diff(annots.starts) > 0)).astype(np.int32)
        starts = range(0, rows.size, _PIECE_IMAGES)
        return [Piece(number, 0, k, 0, rows[start : start + _PIECE_IMAGES]) for k, start in enumerate(starts)]

    def read(self, piece: Piece) -> LabelColumns:
        """Bodies and cameras of a piece's images; boxes and the sizes of images are unknown."""
        annots = self._annots()
        counts = np.diff(annots.starts)[piece.rows]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        people = np.arange(starts[-1]) + np.repeat(annots.starts[piece.rows] - starts[:-1], counts)
        first = annots.starts[piece.rows]  # everybody of an image has the same camera, as the layout shares it
        names = annots.names[piece.rows]
        return LabelColumns(
            images={
                "image_id": np.array([f"{self.name}/{name}" for name in names], dtype=object),
                "image_path": names,
                IMAGE_FILE: names,
                **dict.fromkeys(("width", "height"), np.zeros(len(names), np.int32)),
                **dict(zip(CAMERA_COLUMNS, np.array(annots.camera[first]).T, strict=True)),
                "z_covariance": np.full(len(names), None, dtype=object),
            },
            people={
                **{name: np.array(getattr(annots, name)[people]) for name in ("pose", "betas", "transl")},
                "bbox_xyxy": np.full((len(people), 4), np.nan, np.float32),
                "status": np.full(len(people), "", dtype=object),
            },
            starts=starts,
        )

    def _annots(self) -> Annots:
        return _mapped(self.path, self.folder)


@lru_cache
def _mapped(path: Path, folder: str) -> Annots:
    """The flat arrays where they were left; a machine that has no such folder reads the file itself."""
    try:
        return map_annots(path, Path(folder))
    except FileNotFoundError:
        return open_annots(path)


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []  # as long as this process lives: others read from them


def open_annots_set(path: str | Path, images: str) -> AnnotsSet:
    """Released DTO-Humans; `images` is the folder or URI its keys are relative to.

    Raises:
        LabelsError: no folder was named. LabelFileError: the file cannot be used.
    """
    if not images:
        raise LabelsError(f"{path} does not say where its photographs are; name their folder (data.images)")
    folder = temporary_folder("dto-annots-")
    scratch_file().close()  # where none can be mapped, it says so
    _FOLDERS.append(folder)
    open_annots(Path(path), Path(folder.name))
    return AnnotsSet(Path(path).stem, Path(path), as_location(images), folder.name)


def _smpl_keypoints(everybody: Sequence[tuple[str, Annotation]]) -> np.ndarray:
    """(n, 26, 2) float32 [px], NaN where not annotated."""
    points = np.full((len(everybody), _NUM_JOINTS, 2), np.nan, np.float32)
    assert len(SMPL_JOINTS) == len(EVALUATED_JOINTS)
    for row, (name, person) in enumerate(everybody):
        if person.kp2d is not None:
            places, visible = evaluated_joints(person.kp2d, name)
            points[row, np.array(SMPL_JOINTS)[visible]] = places[visible]
    return points
