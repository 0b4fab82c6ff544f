"""Read the description of a data set: a YAML that says where labels and images are, and how shards are made of them.

Paths in the YAML are relative to a data root that is given on the command line, so that a YAML works on every machine;
there each path can also be replaced. A path may be a list of paths, because projects put the same files in different
places: the first that exists is used. Root and paths may be local or URIs, see `data.storage`. Unknown keys are
refused. The YAMLs of the published data sets come with the package and are known by name.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from dto_pipeline.config import STAND_IN_BODY
from dto_pipeline.data.sources import SOURCES
from dto_pipeline.data.sources.rows import LABEL_VALUES, SourceOptions
from dto_pipeline.data.storage import Location, as_location, is_there, join_location, read_bytes
from dto_pipeline.errors import DtoError
from dto_pipeline.paths import SUBSET_NAME, UnsafePath, check_relative
from dto_pipeline.reading import parse_yaml, read_regular

PLACES = ("labels", "images", "sidecar", "depth", "predictions")  # keys that name files or folders
SYNTHETIC = "Synthetic, made by this project"  # the licence of a synthetic data set begins so
_CHOICES: dict[str, tuple[str, ...]] = {
    "source": tuple(sorted(SOURCES)),
    "principal_point": ("centre", "free"),
    "images_in": ("folder", "tars"),
    "masks": ("sidecar", "detection"),
    "label_values": LABEL_VALUES,
}
_NOT_IN_YAML = ("root", "places")


class DatasetError(DtoError, ValueError):
    """A dataset description that cannot be used; the message names file and key."""


@dataclass(frozen=True)
class Dataset:
    """Where a data set is, and how it becomes a manifest; paths are relative to `root` unless `places` has the key."""

    name: str  # the subset; first part of every image_id
    source: str  # format of the labels, a key of `data.sources.SOURCES`
    labels: str  # label file
    images: str  # folder the image names of the labels are relative to, or that holds the tars
    root: Location  # data root; not part of the YAML
    sidecar: str = ""  # Parquet with masks, ages ..., see `data.sources.sidecar`; "" = none
    depth: str = ""  # folder of precomputed disparity maps; "" = none
    depth_suffix: str = ".npy"  # a depth map is named like its image, with this suffix
    images_in: str = "folder"  # folder: one file an image; tars: read in place from *.tar below the folder
    image_prefixes: dict[str, str] = field(default_factory=dict)  # folder: start of a name -> start of its file
    masks: str = "sidecar"  # sidecar: only those of the sidecar; detection: also those beside the images, as in tars
    predictions: str = ""  # relative_human only: the predicted people; its own files hold no bodies
    label_values: str = "after"  # source labels only: people as the other run left them (after) or got them (before)
    key_parts: int = 1  # image_path is this many last parts of the image's name, as published (INSTA: 3)
    principal_point: str = "centre"  # centre: an image whose size is not (2 cx, 2 cy) is refused; free: none is
    shard_images: int = 4096  # images per shard
    licence: str = ""  # what users of the labels and images must know
    body: str = ""  # demo: synthetic people of the free stand-in body; "" = the body is named where it is used
    places: Mapping[str, Location] = field(default_factory=dict)  # key of PLACES -> where it is; not in the YAML

    def __post_init__(self) -> None:
        for key, known in _CHOICES.items():
            _expect(getattr(self, key) in known, f"{key} is {getattr(self, key)!r}; choose from {known}")
        _expect(self.key_parts >= 1, f"key_parts is {self.key_parts}; expected 1 or more")
        _expect(self.shard_images >= 1, f"shard_images is {self.shard_images}; expected 1 or more")
        _expect(self.depth_suffix.startswith("."), f"depth_suffix is {self.depth_suffix!r}; expected for example .npy")
        _expect(
            self.body in ("", STAND_IN_BODY),
            f"body is {self.body!r}; expected {STAND_IN_BODY} (synthetic people), or leave it out and name the body "
            "where it is used: body.model_path=PATH",
        )
        word = f"name is {self.name!r}; expected one word of letters, digits, '.', '-' and '_'"
        _expect(SUBSET_NAME.fullmatch(self.name) is not None, word)
        for key in PLACES:
            if key not in self.places and (getattr(self, key) or key in ("labels", "images")):
                _check_path(key, getattr(self, key))

    @property
    def labels_path(self) -> Location:
        return cast(Location, self.place("labels"))  # checked when the description was made

    @property
    def images_root(self) -> Location:
        return cast(Location, self.place("images"))

    @property
    def depth_root(self) -> Location | None:
        return self.place("depth")

    @property
    def source_options(self) -> SourceOptions:
        """What the source needs; without `predictions`, which may have to be fetched first."""
        return SourceOptions(values=self.label_values, keypoints=self.masks == "detection")

    def place(self, key: str) -> Location | None:
        """Where one of `PLACES` is; None = the description does not name it."""
        if key in self.places:
            return self.places[key]
        name = getattr(self, key)
        return join_location(self.root, name) if name else None

    def describe(self) -> dict[str, Any]:
        """The description as plain values, without root and places: the same on every machine."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in _NOT_IN_YAML}


def load_dataset(
    path: str | Path, data_root: str | Path, places: Mapping[str, str] | None = None, **changes: Any
) -> Dataset:
    """Read a dataset YAML.

    Args:
        path: path or URI of the YAML file, or the name of one in the package (`shipped_datasets`).
        data_root: folder or URI that its paths are relative to.
        places: key of `PLACES` -> path or URI to use instead.
        changes: key of the YAML = value to use instead.

    Raises: DatasetError: the file, a key or a value cannot be used; the message names it.
    """
    try:
        named = None if Path(path).is_file() else shipped_datasets().get(str(path))
        place = named or as_location(path)
        tree = parse_yaml(read_regular(place) if isinstance(place, Path) else read_bytes(place))
        return dataset_from_dict({**tree, **changes} if isinstance(tree, dict) else tree, data_root, places)
    except FileNotFoundError as error:
        names = ", ".join(shipped_datasets())
        raise DatasetError(f"dataset file {path} does not exist; by name there are {names}") from error
    except OSError as error:
        reason = error.strerror or error
        raise DatasetError(f"dataset file {path} cannot be read: {reason}; expected a YAML file") from error
    except ValueError as error:
        found = "" if isinstance(error, DatasetError) else " is not valid YAML"
        raise DatasetError(f"dataset file {path}{found}: {error}") from error


def shipped_datasets() -> dict[str, Path]:
    """Name -> YAML of the data sets that come with the package."""
    folder = Path(str(files("dto_pipeline") / "manifests"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def dataset_from_dict(tree: Any, data_root: str | Path, places: Mapping[str, str] | None = None) -> Dataset:
    """A description from plain values, see `load_dataset`."""
    _expect(isinstance(tree, dict), f"holds {type(tree).__name__}; expected key: value pairs")
    hints = {key: hint for key, hint in typing.get_type_hints(Dataset).items() if key not in _NOT_IN_YAML}
    required = [key for key in ("name", "source", "labels", "images") if key not in (places or {})]
    unknown, missing = sorted(set(map(str, tree)) - set(hints)), [key for key in required if key not in tree]
    _expect(not unknown, f"unknown keys {unknown}; keys are {list(hints)}")
    _expect(not missing, f"missing keys {missing}")
    for key in PLACES:
        paths = tree.get(key)
        if isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths):
            for path in paths:
                _check_path(key, path)
            there = (path for path in paths if is_there(join_location(as_location(data_root), path)))
            tree = {**tree, key: next(there, paths[0])}  # if none exists, who reads it says so
    for key, value in tree.items():
        kind = typing.get_origin(hints[key]) or hints[key]
        right = isinstance(value, kind) and not isinstance(value, bool)
        _expect(right, f"{key} is {value!r}; expected {kind.__name__}")
    found = {key: as_location(place) for key, place in (places or {}).items()}
    named = {key: "" for key in ("labels", "images") if key not in tree}
    return Dataset(**{**named, **tree}, root=as_location(data_root), places=found)


def _check_path(key: str, value: str) -> None:
    try:
        check_relative(value)
    except UnsafePath as error:
        raise DatasetError(f"{key}: {error}; paths are relative to the data root (--data-root)") from error


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise DatasetError(message)
