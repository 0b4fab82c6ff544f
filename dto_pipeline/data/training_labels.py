"""Labels for training: in pieces for `dto train`, or as one torch Dataset for other training code.

A piece is one row group of a label file (at most 1024 images). An index of the wanted images is made first (4 bytes an
image); then pieces are read when they are needed (about 0.5 kB a person). `LabelDataset` holds everything in a few flat
arrays that forked processes share: about 0.4 kB a person. Metres, pixels, radians.

Other people's labels are held in memory as well, about 0.5 kB a person in every process: RelativeHuman's annotations,
which have no bodies (boxes, joints and an order in depth are learnt from them), and released DTO-Humans, copied once
into a temporary file of plain arrays (see `sources.predictions`) that other processes on the machine read in seconds.
"""

from __future__ import annotations

import atexit
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import Dataset

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.cameras import CAMERA_COLUMNS, camera_columns
from dto_pipeline.data.files import temporary_folder
from dto_pipeline.data.image_index import WHOLE_NAME, index_images
from dto_pipeline.data.images import ImageCorrupt, ImageStore
from dto_pipeline.data.label_files import (
    EXPECTED_ERROR,
    IMAGE_FILE,
    NO_LIMITS,
    Z_SIGMA,
    LabelColumns,
    Limits,
    RunLabels,
    find_label_files,
    flatten_table,
    name_images,
)
from dto_pipeline.data.labels import LabelsError, read_groups, read_labels
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.people import FileKind
from dto_pipeline.data.sources.annots import open_ma_hmr
from dto_pipeline.data.sources.predictions import open_predictions
from dto_pipeline.data.sources.relative_human import evaluated_joints, read_annotations
from dto_pipeline.data.sources.rows import LabelSource
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tars import open_images
from dto_pipeline.status import PLACED, UNUSED
from dto_pipeline.terminal import progress_bar

_IMAGE = ("image_id", "image_path", "width", "height", *CAMERA_COLUMNS)
IMAGE_COLUMNS = (*_IMAGE, "image_sha256", "z_covariance")
PEOPLE_COLUMNS = ("pose", "betas", "transl", "bbox_xyxy", "status", "z_sigma_m")
SELECTIONS = ("accepted", "optimized", "all")
_SELECTING = ("num_persons", "is_accepted", "is_optimized", EXPECTED_ERROR)
LABEL_IMAGES = (*_IMAGE, *_SELECTING)
LABEL_PEOPLE = ("pose", "betas", "transl", "height_m", "age_years", "male_prob", "status", Z_SIGMA)
_HASH_RANGE = 1 << 32
_PIECE_IMAGES = 1024  # of other people's labels
# of each of the 14 joints: its position among SMPL's 24, which are followed by the top of the head and the neck
_SMPL_JOINTS = np.array([16, 17, 18, 19, 20, 21, 1, 2, 4, 5, 7, 8, 24, 25])
_NUM_JOINTS = 26
_BODY = {"pose": 72, "betas": NUM_BETAS, "transl": 3}  # numbers of a person


@dataclass(frozen=True)
class Part:
    """Which images are wanted: those of a selection that are held out, or those that are not."""

    select: str  # one of `SELECTIONS`; images without people are never taken
    holdout: float = 0.0  # share of the images, by a hash of their names
    held_out: bool = False  # take these images, not the others
    limits: Limits = NO_LIMITS  # of images; people beyond the limits are not left out here

    def holds(self, image_paths: Sequence[str]) -> np.ndarray:
        """(n,) bool: on this side of the hold-out; the same on every machine and in every mix of labels.

        The last three parts of a name decide (INSTA's keys have three), so that a photograph is on one side in whatever
        runs, exports and released files it is.
        """
        if self.holdout == 0:
            return np.full(len(image_paths), not self.held_out)
        names = ("/".join(path.split("/")[-3:]) for path in image_paths)
        digests = (hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest() for name in names)
        drawn = np.array([int.from_bytes(digest[:4], "big") for digest in digests], np.int64)
        return (drawn < self.holdout * _HASH_RANGE) == self.held_out


@dataclass(frozen=True)
class Piece:
    """The wanted images of one row group."""

    label_set: int
    file: int  # of its set
    group: int  # row group of the file
    first: int  # row of the file the group begins with
    rows: np.ndarray  # (n,) int32 rows of the group, ascending


@dataclass(frozen=True)
class LabelSet(ABC):
    """The labels of one subset in pieces, and its photographs; small, so that it can be pickled."""

    name: str
    images_root: Location  # what the names of images are relative to

    @property
    def is_remote(self) -> bool:
        """Whether something of the set is behind a URI."""
        return isinstance(self.images_root, str)

    def open_images(self) -> ImageStore:
        """The store of the photographs. It holds open files: every process opens its own."""
        return ImageStore(self.images_root)

    @abstractmethod
    def index(self, number: int, part: Part) -> list[Piece]:
        """Every piece with an image of `part`; `number`: position of this set among several. Raises: LabelsError."""

    @abstractmethod
    def read(self, piece: Piece) -> LabelColumns:
        """The labels of a piece's images: `IMAGE_COLUMNS`, `IMAGE_FILE` and `PEOPLE_COLUMNS`; of people without bodies
        also ``keypoints`` (n, 26, 2) [px] and ``depth_layer`` (n,). Raises: LabelsError, ManifestError."""


@dataclass(frozen=True)
class ParquetSet(LabelSet):
    """Our own label files; a piece is a row group."""

    files: tuple[Location, ...]
    manifest: Manifest | None = None  # names the images of a run; None = their `image_path` does
    shards: tuple[int, ...] = ()  # of the manifest, one per file; () without a manifest

    @property
    def is_remote(self) -> bool:
        """Whether labels, photographs or manifest are behind a URI."""
        places = [*self.files, self.images_root, *([self.manifest.path] if self.manifest else [])]
        return any(isinstance(place, str) for place in places)

    def open_images(self) -> ImageStore:
        """A folder, or what the run's manifest names, also in tars."""
        return open_images(self.images_root, self.manifest.path) if self.manifest else super().open_images()

    def index(self, number: int, part: Part) -> list[Piece]:
        pieces = []
        for file, path in enumerate(progress_bar(self.files, "file")):
            first = 0
            for group, table in enumerate(read_groups(path, ("image_path", *_SELECTING), ())):
                taken = part.holds(table.column("image_path").to_pylist()) & _is_selected(table, part.select)
                taken &= part.limits.images(table.column(EXPECTED_ERROR).to_numpy())
                rows = np.flatnonzero(taken).astype(np.int32)
                if rows.size:
                    pieces.append(Piece(number, file, group, first, rows))
                first += table.num_rows
        return pieces

    def read(self, piece: Piece) -> LabelColumns:
        """See `LabelSet`. Raises: LabelsError: also where a file holds other images than its shard of the manifest."""
        path = self.files[piece.file]
        (table,) = read_groups(path, IMAGE_COLUMNS, PEOPLE_COLUMNS, [piece.group])
        files = table.column("image_path")
        if self.manifest is not None:
            files = name_images(self.manifest, self.shards[piece.file], piece.first, table.column("image_id"), path)
        return flatten_table(table.append_column(IMAGE_FILE, files)).take(piece.rows)

    def count_uncertain(self, select: str, limits: Limits) -> Counter[str]:
        """How many images of `select`, and people in them, `limits` leave out, by reason. Raises: LabelsError."""
        columns = flatten_table(read_labels(*self.files, columns=_SELECTING, people=(Z_SIGMA,)))
        return _take_images(columns, select, limits)[1]


def open_run_set(run: RunLabels, images: str = "") -> ParquetSet:
    """The labels of a run; `images`: a folder or URI in place of the manifest's.

    Raises: ManifestError: the manifest, which names the image files, is nowhere, or it is another one now.
    """
    manifest = run.open_manifest()
    return ParquetSet(
        name=run.name,
        files=tuple(file.path for file in run.files),
        images_root=as_location(images or manifest.images_root),
        manifest=manifest,
        shards=tuple(file.shard for file in run.files),
    )


def open_file_set(labels: str | Path, images: str) -> ParquetSet:
    """Label files without a run: an export, or single files; `images` is what their `image_path` is relative to.

    Raises: LabelsError: no label file there, or no folder of images was named.
    """
    if not images:
        raise LabelsError(f"{labels} is no run, so nothing says where its photographs are; name their folder")
    return ParquetSet(str(labels), as_location(images), tuple(find_label_files(labels)))


@dataclass(frozen=True)
class PeopleSet(LabelSet):
    """A `LabelSet` of other people's label file, all of whose images count as accepted."""

    path: Path
    kind: FileKind
    copy: Path | None = None  # the copy of released bodies on the machine that opened the set

    def index(self, number: int, part: Part) -> list[Piece]:
        """Pieces of 1024 images; `part.select` and `part.limits` do not apply, as no run has judged these images."""
        rows = np.flatnonzero(part.holds(_open(self).images["image_path"].tolist())).astype(np.int32)
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
    copy = _copy_bodies(Path(path)) if kind is FileKind.MA_HMR else None
    people = PeopleSet(Path(path).stem, as_location(images), Path(path), kind, copy)
    _open(people)
    return people


def _copy_bodies(path: Path) -> Path:
    """A prediction file of the people in a released file."""
    source, copy = open_ma_hmr(path), _FOLDERS.enter_context(temporary_folder("dto-annots-")) / "people.npz"
    columns: dict[str, Any] = {"image": source.image_names.astype(str), **source.columns}
    np.savez(copy, **columns)
    return copy


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
        "image_sha256": np.full(len(names), "", dtype=object),
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


def index_pieces(sets: Sequence[LabelSet], part: Part) -> list[Piece]:
    """Every piece with an image of `part`, in the order of the sets. Raises: LabelsError."""
    return [piece for number, label_set in enumerate(sets) for piece in label_set.index(number, part)]


def _is_selected(images: Any, select: str) -> np.ndarray:
    """(N,) bool: the images of a selection that have people; `images`: the columns `_SELECTING`."""
    crowded = np.asarray(images["num_persons"]) > 0
    return crowded if select == "all" else crowded & np.asarray(images[f"is_{select}"])


def _take_images(columns: LabelColumns, select: str, limits: Limits) -> tuple[LabelColumns, Counter[str]]:
    """The images of a selection that are within the limits; and how many images and people are not, by reason."""
    columns = columns.take(np.flatnonzero(_is_selected(columns.images, select)))
    expected, left_out = columns.images[EXPECTED_ERROR], Counter[str]()
    certain = limits.images(expected)
    limits.count(expected, columns.people[Z_SIGMA][certain[columns.owner]], left_out)
    return columns.take(np.flatnonzero(certain)), left_out


def read_run_columns(run: RunLabels, images: Location = "") -> tuple[LabelColumns, ImageStore]:
    """The columns of a run for a `LabelDataset` with photographs, `images` a folder in place of the manifest's.

    Raises: LabelsError, ManifestError.
    """
    if not run.files:
        raise LabelsError(f"{run.name} has no finished shard yet; `dto status` shows its progress")
    manifest = run.open_manifest()
    table = pa.concat_tables(run.tables(LABEL_IMAGES, LABEL_PEOPLE, image_files=True))
    return flatten_table(table), open_images(as_location(images or manifest.images_root), manifest.path)


class LabelDataset(Dataset[dict[str, Any]]):
    """Map-style dataset of images, see `__getitem__`; as images differ in their people, use ``collate_fn=list``."""

    def __init__(
        self,
        columns: LabelColumns,
        images: ImageStore | None = None,
        select: str = "accepted",
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Select images.

        Args:
            columns: `LABEL_IMAGES` and `LABEL_PEOPLE` of some label files, with or without `IMAGE_FILE`.
            images: the photographs, by `IMAGE_FILE` or else ``image_path``; None = items have none.
            select: "accepted", "optimized" or "all" images; images without people are never taken.
            limits: how uncertain images and ``usable`` people may be; `left_out` counts the others by reason.

        Raises: LabelsError: an unknown `select`, or a limit on errors where no label has one.
        """
        if select not in SELECTIONS:
            raise LabelsError(f"select is {select!r}; choose from {SELECTIONS}")
        errors = columns.images[EXPECTED_ERROR][_is_selected(columns.images, select)]
        if limits.max_error is not None and errors.size and np.isnan(errors).all():
            raise LabelsError(
                f"max_error is {limits.max_error:g} m, but none of these labels has an expected error (solver.mode "
                "paper, or a version before 0.4); leave it out, or make the labels with solver.mode=joint"
            )
        columns, self.left_out = _take_images(columns, select, limits)
        people, self._starts = columns.people, columns.starts
        self.image_ids: Sequence[str] = columns.images["image_id"].tolist()
        self._files = columns.images.get(IMAGE_FILE, columns.images["image_path"]).tolist()
        self._images = images
        size = np.stack([columns.images["height"], columns.images["width"]], axis=-1).astype(np.int64)
        self._own: dict[str, np.ndarray] = {"image_size": size, "intrinsics": columns.intrinsics.astype(np.float32)}
        floats = ("pose", "betas", "transl", "height_m", "age_years", "male_prob")
        self._people: dict[str, np.ndarray] = {name: people[name].astype(np.float32) for name in floats}
        finite = [np.isfinite(people[name]).all(axis=1) for name in floats[:3]]
        self._people["usable"] = np.all(finite, axis=0) & ~np.isin(people["status"], UNUSED)
        self._people["usable"] &= limits.people(people[Z_SIGMA])
        self._people["moved"] = np.isin(people["status"], PLACED)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image and its P people.

        Returns:
            image_id str; image_size (2,) int64 H, W [px]; intrinsics (3, 3) float32 [px]; pose (P, 72) [rad],
            betas (P, 11), transl (P, 3) [m], height_m (P,) [m], age_years (P,), male_prob (P,) float32, NaN = unknown;
            usable (P,) bool: a label that can be trained on; moved (P,) bool: placed by the pipeline; and, where the
            dataset has photographs, image (H, W, 3) uint8 RGB.

        Raises: ImageMissing, ImageCorrupt: the photograph cannot be read, or is not of the labels' size.
        IndexError.
        """
        index = range(len(self))[index]  # negative: from the end
        part = slice(int(self._starts[index]), int(self._starts[index + 1]))
        item: dict[str, Any] = {name: torch.from_numpy(values[part].copy()) for name, values in self._people.items()}
        item |= {name: torch.from_numpy(values[index].copy()) for name, values in self._own.items()}
        item["image_id"] = self.image_ids[index]
        if self._images is not None:
            rgb, size = self._images.read(self._files[index]).rgb, self._own["image_size"][index]
            if size.all() and rgb.shape[:2] != tuple(size):
                raise ImageCorrupt(
                    f"image {self._files[index]} has {rgb.shape[1]} x {rgb.shape[0]} pixels, its labels {size[1]} x "
                    f"{size[0]}; is it the photograph that was labelled?"
                )
            item["image"] = torch.from_numpy(rgb)
        return item
