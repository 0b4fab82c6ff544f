"""Labels for training, read piece by piece: which images there are, then the rows of one row group at a time.

A piece is one row group of a label file (at most 1024 images). Knows label files, manifests (for the names of image
files) and image stores; knows no network and no run's folder: `RunLabels` says which files receipts vouch for. The
index costs 4 bytes an image, a piece about 0.5 kB a person.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from dto_pipeline.data.images import ImageFolder, ImageStore
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
    person_leaf,
)
from dto_pipeline.data.labels import LabelsError, read_groups
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tars import open_images

IMAGE_COLUMNS = ("image_id", "image_path", "width", "height", "fx", "fy", "cx", "cy", "z_covariance")
PEOPLE_COLUMNS = ("pose", "betas", "transl", "bbox_xyxy", "status", "z_sigma_m")
_HASH_RANGE = 1 << 32


@dataclass(frozen=True)
class Part:
    """Which images of all: those of one selection, on one side of the hold-out."""

    select: str  # "accepted", "optimized" or "all" images; never those without people
    holdout: float = 0.0  # share of the images, by a hash of their keys
    held_out: bool = False  # take these, instead of the others
    limits: Limits = NO_LIMITS  # of images; people beyond theirs stay in the rows

    def holds(self, image_ids: Sequence[str]) -> np.ndarray:
        """(n,) bool: on this side of the hold-out; the same on every machine, whatever else is trained on."""
        if self.holdout == 0:
            return np.full(len(image_ids), not self.held_out)
        digests = (hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in image_ids)
        drawn = np.array([int.from_bytes(digest[:4], "big") for digest in digests], np.int64)
        return (drawn < self.holdout * _HASH_RANGE) == self.held_out


@dataclass(frozen=True)
class Piece:
    """The images of one row group that are taken."""

    label_set: int
    file: int  # of its set
    group: int  # row group of the file
    first: int  # row of the file the group begins with
    rows: np.ndarray  # (n,) int32 rows of the group, ascending


class LabelSet(Protocol):
    """One subset's labels in pieces, and its photographs; small enough to be pickled."""

    @property
    def name(self) -> str: ...

    @property
    def is_remote(self) -> bool:
        """Something of it lies behind a URI."""
        ...

    def open_images(self) -> ImageStore:
        """The photographs' store; it holds files, so every process opens its own."""
        ...

    def index(self, number: int, part: Part) -> list[Piece]:
        """Every piece that holds an image of `part`; `number` is the set's own among several. Raises: LabelsError."""
        ...

    def read(self, piece: Piece) -> LabelColumns:
        """The labels of a piece's images: `IMAGE_COLUMNS`, `IMAGE_FILE`, `PEOPLE_COLUMNS`, of people perhaps also
        ``keypoints`` (n, 26, 2) [px] and ``depth_layer`` (n,). Raises: LabelsError, ManifestError."""
        ...


@dataclass(frozen=True)
class ParquetSet:
    """A `LabelSet` of our own label files."""

    name: str
    files: tuple[Location, ...]
    images_root: Location
    manifest: Manifest | None  # names the images of a run; None = their `image_path` does
    shards: tuple[int, ...] = ()  # of the manifest, one per file; () without a manifest

    @property
    def is_remote(self) -> bool:
        """Labels, photographs or manifest lie behind a URI."""
        places: list[Location] = [*self.files, self.images_root]
        return any(isinstance(place, str) for place in [*places, *([self.manifest.path] if self.manifest else [])])

    def open_images(self) -> ImageStore:
        """A folder's, or that of the run's manifest, tars too."""
        if self.manifest is None:
            return ImageFolder(self.images_root)
        return open_images(self.images_root, self.manifest.path)

    def index(self, number: int, part: Part) -> list[Piece]:
        """A piece per row group that holds an image of `part`, in order of files.

        Raises:
            LabelsError: a file that is missing, damaged or of another schema.
        """
        pieces, wanted = [], ["image_id", "num_persons", "is_accepted", "is_optimized", EXPECTED_ERROR]
        for file, path in enumerate(self.files):
            first = 0
            for group, table in enumerate(read_groups(path, wanted)):
                taken = part.holds(table.column("image_id").to_pylist()) & _chosen(table, part.select)
                taken &= part.limits.images(table.column(EXPECTED_ERROR).to_numpy())
                rows = np.flatnonzero(taken).astype(np.int32)
                if rows.size:
                    pieces.append(Piece(number, file, group, first, rows))
                first += table.num_rows
        return pieces

    def read(self, piece: Piece) -> LabelColumns:
        """The labels of a piece's images: `IMAGE_COLUMNS` and `IMAGE_FILE`, `PEOPLE_COLUMNS`.

        Raises:
            LabelsError: the file cannot be read, or holds other images than its shard of the manifest.
            ManifestError: the manifest cannot be read.
        """
        path = self.files[piece.file]
        names = [*IMAGE_COLUMNS, *(person_leaf(name) for name in PEOPLE_COLUMNS)]
        (table,) = read_groups(path, names, [piece.group])
        columns = flatten_table(table, PEOPLE_COLUMNS)
        columns.images[IMAGE_FILE] = columns.images["image_path"]
        if self.manifest is not None:
            files = name_images(self.manifest, self.shards[piece.file], piece.first, table.column("image_id"), path)
            columns.images[IMAGE_FILE] = files.to_numpy(zero_copy_only=False)
        return columns.take(piece.rows)

    def count_uncertain(self, select: str, limits: Limits, left_out: Counter[str]) -> None:
        """Add to `left_out`, by reason, what `limits` take away from the images of `select`. Raises: LabelsError."""
        wanted = ["is_accepted", "is_optimized", "num_persons", EXPECTED_ERROR, person_leaf(Z_SIGMA)]
        for path in self.files:
            for table in read_groups(path, wanted):
                columns = flatten_table(table, (Z_SIGMA,)).take(np.flatnonzero(_chosen(table, select)))
                expected = columns.images[EXPECTED_ERROR]
                limits.count(expected, columns.people[Z_SIGMA][limits.images(expected)[columns.owner]], left_out)


def open_run_set(run: RunLabels, images: str = "") -> ParquetSet:
    """The labels of a run.

    Args:
        run: what its receipts vouch for.
        images: folder or URI in place of the manifest's.

    Raises:
        ManifestError: the manifest, which names the image files, is gone or is another one.
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
    """Label files without a run: an export in Parquet, or single files; `images` is what `image_path` is relative to.

    Raises:
        LabelsError: no label file there, or no folder of images was named.
    """
    if not images:
        raise LabelsError(f"{labels} is no run, so nothing says where its photographs are; name their folder")
    return ParquetSet(str(labels), tuple(find_label_files(labels)), as_location(images), None)


def index_pieces(sets: Sequence[LabelSet], part: Part) -> list[Piece]:
    """Every piece that holds an image of `part`, sets in order. Raises: LabelsError."""
    return [piece for number, label_set in enumerate(sets) for piece in label_set.index(number, part)]


def _chosen(table: pa.Table, select: str) -> np.ndarray:
    """(N,) bool: accepted, optimised or all images, without those of nobody."""
    crowded = table.column("num_persons").to_numpy() > 0
    return crowded if select == "all" else crowded & table.column(f"is_{select}").to_numpy()
