"""Label files of a run, an export or a folder: how they are found, and how they become flat numpy columns.

Flat columns have one entry per image or per person, the people of all images one after the other; checks, statistics
and training work on them. `Limits` selects images and people by their uncertainty. Metres.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.columns import read_numbers, single_array
from dto_pipeline.data.labels import LabelsError, read_groups, read_label_metadata, undo_betas
from dto_pipeline.data.manifest import Manifest, find_manifest
from dto_pipeline.data.parquet import footer_text, open_parquet
from dto_pipeline.data.receipts import find_run_labels
from dto_pipeline.data.storage import Location, as_location, exists, join_location, list_names
from dto_pipeline.schema import LABELS_SCHEMA_NAME

EXPECTED_ERROR, Z_SIGMA = "expected_error_m", "z_sigma_m"  # uncertainty of an image, of a person
IMAGE_FILE = "image_file"  # column of the manifest: the image file, relative to the images folder


@dataclass(frozen=True)
class LabelColumns:
    """N images and their n people as flat arrays; the people of image i are rows starts[i] .. starts[i + 1]."""

    images: dict[str, np.ndarray]  # column -> (N,); words as object arrays of str or None
    people: dict[str, np.ndarray]  # column -> (n,) or (n, k)
    starts: np.ndarray  # (N + 1,) int64

    @property
    def num_images(self) -> int:
        return len(self.starts) - 1

    @property
    def num_people(self) -> int:
        return int(self.starts[-1])

    @property
    def owner(self) -> np.ndarray:
        """(n,) int64: the image of each person."""
        return np.repeat(np.arange(self.num_images), np.diff(self.starts))

    @property
    def intrinsics(self) -> np.ndarray:
        """(N, 3, 3) float64 [px]."""
        return read_cameras(self.images)

    def take(self, images: np.ndarray) -> LabelColumns:
        """The columns of the images (m,) int, in this order, and of their people."""
        lengths = np.diff(self.starts)[images]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        people = np.arange(starts[-1]) + np.repeat(self.starts[:-1][images] - starts[:-1], lengths)
        return LabelColumns(
            images={name: values[images] for name, values in self.images.items()},
            people={name: values[people] for name, values in self.people.items()},
            starts=starts,
        )


def flatten_table(table: pa.Table, people: Iterable[str] | None = None) -> LabelColumns:
    """A table of labels or of a manifest as flat columns; `people`: person columns to take, None = all."""
    persons = single_array(table.column("persons"))
    people = [field.name for field in persons.type.value_type] if people is None else people
    lengths = persons.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    items = persons.flatten()
    return LabelColumns(
        images={name: read_numbers(single_array(table[name])) for name in table.column_names if name != "persons"},
        people={name: read_numbers(items.field(name)) for name in people},
        starts=np.concatenate([[0], np.cumsum(lengths)]),
    )


def initial_betas(columns: LabelColumns) -> np.ndarray:
    """(n, 11) float32: the shapes of the input labels, the change that `beta_index` names undone."""
    people = columns.people
    return undo_betas(people["betas"], people["beta_index"], people["beta_init"])


def find_label_files(folder: str | Path) -> list[Location]:
    """The label files of a run (or its ``labels`` folder) that its receipts count; the label files in another folder,
    sorted by name; or the file itself.

    Raises:
        LabelsError: there is none, or a Parquet file in the folder cannot be read: it may be one.
        RecordInvalid: the run's run.json cannot be read.
    """
    folder = as_location(folder)
    if exists(folder):
        return [folder]
    found = find_run_labels(folder)
    if found is not None and not found:
        raise LabelsError(f"{folder} has no finished shard yet; `dto status` shows its progress")
    if found is None:
        with suppress(FileNotFoundError):
            names = sorted(list_names(folder, (".parquet",)))
            places = [join_location(folder, name) for name in names if not name.rpartition("/")[2].startswith(".")]
            found = [place for place in places if _is_labels(place)]
    if not found:
        raise LabelsError(
            f"{folder} holds no label file; expected a run, an export in the format parquet, or one of their files"
        )
    return found


def _is_labels(place: Location) -> bool:
    with open_parquet(place, LabelsError) as file:
        return footer_text(file).get("schema") == LABELS_SCHEMA_NAME


def check_one_body(paths: Iterable[Location]) -> str:
    """The sha256 (hex) of the body model of some label files; "" if no footer has it.

    Raises: LabelsError: they are of two body models, or one cannot be read.
    """
    bodies: dict[str, Location] = {}  # sha256 -> the first file that has it
    for path in paths:
        if sha256 := read_label_metadata(path).get("body_sha256"):
            bodies.setdefault(sha256, path)
        if len(bodies) > 1:
            (one, first), (other, second) = bodies.items()
            raise LabelsError(
                f"{first} was made with the body model of sha256 {one}, {second} with that of {other}: equal shape "
                "coefficients are different people in them; take labels of one body model at a time"
            )
    return next(iter(bodies), "")


@dataclass(frozen=True)
class Limits:
    """How uncertain images and people may be; None = no limit. An unknown uncertainty exceeds every limit."""

    max_error: float | None = None  # expected error of an image's z [m]
    max_z_sigma: float | None = None  # standard deviation of a person's z [m]

    def __post_init__(self) -> None:
        for name in ("max_error", "max_z_sigma"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise LabelsError(f"{name} is {value} m; expected more than 0, or nothing for no limit")

    def images(self, expected_error: np.ndarray) -> np.ndarray:
        """(N,) bool: within the limit. Args: expected_error (N,) [m], NaN = unknown."""
        return _within(expected_error, self.max_error)

    def people(self, z_sigma: np.ndarray) -> np.ndarray:
        """(n,) bool: within the limit. Args: z_sigma (n,) [m], NaN = unknown."""
        return _within(z_sigma, self.max_z_sigma)

    def count(self, expected_error: np.ndarray, z_sigma: np.ndarray, left_out: Counter[str]) -> None:
        """Add to `left_out`, by reason, how many of the images and of the people are not within the limits."""
        for what, values, most, name in (
            ("images", expected_error, self.max_error, "expected error"),
            ("persons", z_sigma, self.max_z_sigma, "sigma of z"),
        ):
            if most is not None:
                left_out[f"{what} whose {name} is above {most:g} m"] += int((values > most).sum())
                left_out[f"{what} whose {name} is unknown"] += int(np.isnan(values).sum())


def _within(values: np.ndarray, most: float | None) -> np.ndarray:
    return np.ones(len(values), bool) if most is None else np.asarray(values) <= most


NO_LIMITS = Limits()


@dataclass(frozen=True)
class LabelFile:
    """One label shard as its receipt describes it."""

    path: Location
    shard: int  # of the manifest
    rows: int
    sha256: str  # of the file's bytes


@dataclass(frozen=True)
class RunLabels:
    """A run's label files that count."""

    name: str  # the run's folder, for messages
    subset: str
    manifest: Location  # where run.json says it is
    manifest_fingerprint: str
    config_hash: str
    shards: int  # of the manifest; more than `files` where the run is not finished
    files: tuple[LabelFile, ...]  # in shard order
    named_manifests: tuple[Location, ...] = ()  # where the manifest is looked for instead; one of them must be it

    def open_manifest(self) -> Manifest:
        """The manifest of the run. Raises: ManifestError: it is nowhere, or it is another one now."""
        return find_manifest(self.manifest, as_location(self.name), self.manifest_fingerprint, self.named_manifests)

    @cached_property
    def footer(self) -> dict[str, str]:
        """Footer text of the first label file; {} if there is none."""
        return read_label_metadata(self.files[0].path) if self.files else {}

    def tables(
        self, columns: Sequence[str] | None = None, people: Sequence[str] | None = None, image_files: bool = False
    ) -> Iterator[pa.Table]:
        """The labels, one row group after the other, in shard order.

        Args:
            columns, people: as in `labels.read_groups`.
            image_files: add the column `IMAGE_FILE` from the run's manifest.

        Raises:
            LabelsError: a file that cannot be read, or holds other images than its shard of the manifest.
            ManifestError: the manifest is needed and cannot be used.
        """
        manifest = self.open_manifest() if image_files else None
        wanted = columns if columns is None or manifest is None else list(dict.fromkeys([*columns, "image_id"]))
        for file in self.files:
            first = 0
            for table in read_groups(file.path, wanted, people):
                if manifest is not None:
                    names = name_images(manifest, file.shard, first, table.column("image_id"), file.path)
                    table = table.append_column(IMAGE_FILE, names)
                first += table.num_rows
                yield table


def name_images(manifest: Manifest, shard: int, first: int, keys: pa.ChunkedArray, path: Location) -> pa.ChunkedArray:
    """The image files of consecutive rows of a label file, from row `first` on; `keys`: the ``image_id`` of these rows.

    Raises: LabelsError: the file holds other images than the shard. ManifestError: the manifest cannot be read.
    """
    rows = manifest.read_shard(shard, ["image_id", IMAGE_FILE]).slice(first, len(keys))
    if not single_array(rows.column("image_id")).equals(single_array(keys)):
        raise LabelsError(f"{path} holds other images than shard {shard} of {manifest.path}; `dto verify` says more")
    return rows.column(IMAGE_FILE)
