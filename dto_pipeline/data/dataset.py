"""A dataset description: one YAML in `manifests/` says where labels and images are and how they are keyed and cut.

Knows keys, types and defaults; opens nothing it describes. Paths in the YAML are relative to a data root given on the
command line, so that the same YAML works on every machine. Unknown keys are refused.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dto_pipeline.data.sources import SOURCES
from dto_pipeline.errors import DtoError
from dto_pipeline.paths import UnsafePath, check_relative, resolve_inside

PRINCIPAL_POINTS = ("centre", "free")


class DatasetError(DtoError, ValueError):
    """A dataset description that cannot be used; the message names file and key."""


@dataclass(frozen=True)
class Dataset:
    """Where a dataset lies and how it becomes a manifest. All paths are relative to `root`."""

    name: str  # the subset; first part of every image_id
    source: str  # format of the labels, see `data.sources.SOURCES`
    labels: str  # label file
    images: str  # folder the image names of the labels are relative to
    root: Path  # data root; not part of the YAML
    sidecar: str = ""  # Parquet with masks, ages ...; "" = none
    depth: str = ""  # folder of precomputed disparity maps; "" = none
    depth_suffix: str = ".npy"  # a depth map is named like its image, with this suffix
    key_parts: int = 1  # image_path keeps this many last parts of the image's name, as published (INSTA: 3)
    principal_point: str = "centre"  # centre: an image whose size is not (2 cx, 2 cy) is refused; free: any is right
    shard_images: int = 4096  # images a shard
    licence: str = ""  # what users of the labels and images must know

    def __post_init__(self) -> None:
        _expect(self.source in SOURCES, f"source is {self.source!r}; choose from {sorted(SOURCES)}")
        _expect(
            self.principal_point in PRINCIPAL_POINTS,
            f"principal_point is {self.principal_point!r}; choose from {PRINCIPAL_POINTS}",
        )
        _expect(self.key_parts >= 1, f"key_parts is {self.key_parts}; expected 1 or more")
        _expect(self.shard_images >= 1, f"shard_images is {self.shard_images}; expected 1 or more")
        _expect(self.depth_suffix.startswith("."), f"depth_suffix is {self.depth_suffix!r}; expected for example .npy")
        _expect(bool(self.name) and "/" not in self.name, f"name is {self.name!r}; expected one word without '/'")
        for key in ("labels", "images", "sidecar", "depth"):
            _check_path(key, getattr(self, key), optional=key in ("sidecar", "depth"))

    @property
    def labels_path(self) -> Path:
        return resolve_inside(self.root, self.labels)

    @property
    def images_root(self) -> Path:
        return resolve_inside(self.root, self.images)

    @property
    def sidecar_path(self) -> Path | None:
        return resolve_inside(self.root, self.sidecar) if self.sidecar else None

    @property
    def depth_root(self) -> Path | None:
        return resolve_inside(self.root, self.depth) if self.depth else None

    def describe(self) -> dict[str, Any]:
        """The description without `root`, JSON-ready: equal on every machine."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "root"}


def load_dataset(path: str | Path, data_root: str | Path) -> Dataset:
    """Read a dataset YAML.

    Args:
        path: the YAML file.
        data_root: folder its paths are relative to.

    Raises:
        DatasetError: the file, a key or a value cannot be used; the message names it.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise DatasetError(f"dataset file {path} does not exist; see manifests/") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"dataset file {path} is not valid YAML: {error}") from error
    try:
        return dataset_from_dict(tree, data_root)
    except DatasetError as error:
        raise DatasetError(f"dataset file {path}: {error}") from error


def dataset_from_dict(tree: Any, data_root: str | Path) -> Dataset:
    """A description from plain values, see `load_dataset`."""
    _expect(isinstance(tree, dict), f"holds {type(tree).__name__}; expected key: value pairs")
    hints = {key: hint for key, hint in typing.get_type_hints(Dataset).items() if key != "root"}
    required = [f.name for f in dataclasses.fields(Dataset) if f.default is dataclasses.MISSING and f.name != "root"]
    unknown, missing = sorted(set(map(str, tree)) - set(hints)), [key for key in required if key not in tree]
    _expect(not unknown, f"unknown keys {unknown}; keys are {list(hints)}")
    _expect(not missing, f"missing keys {missing}")
    for key, value in tree.items():
        right = isinstance(value, hints[key]) and not isinstance(value, bool)
        _expect(right, f"{key} is {value!r}; expected {hints[key].__name__}")
    return Dataset(**tree, root=Path(data_root))


def _check_path(key: str, value: str, optional: bool) -> None:
    if optional and not value:
        return
    try:
        check_relative(value)
    except UnsafePath as error:
        raise DatasetError(f"{key}: {error}; paths are relative to the data root (--data-root)") from error


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise DatasetError(message)
