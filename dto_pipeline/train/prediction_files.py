"""Predictions on disk: which pictures there are, their predicted people shard by shard, the manifest of all of them.

Knows folders of images, manifests and label files; knows no network's inside and no run. A shard that was predicted
stays beside the result until all are, so that a killed prediction goes on where it was; a part is only taken up if
checkpoint, options and pictures are the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from dto_pipeline.collate import keep_labels
from dto_pipeline.data.cameras import read_cameras
from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.labels import LabelsError, build_label_table, read_label_metadata, read_labels, write_label_shard
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.writer import write_label_manifest
from dto_pipeline.data.storage import STORAGE_ERRORS, Location, absolute, as_location, list_names
from dto_pipeline.data.tars import carry_tar_index, open_images
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel
from dto_pipeline.paths import SUBSET_NAME, name_subset
from dto_pipeline.scene import PlacedScene, Scene
from dto_pipeline.status import ImageStatus
from dto_pipeline.train.predict import Picture, PredictConfig, Trained

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
MANIFEST_FILE = "manifest.parquet"
_PARTS = "parts"

LabelTable = Any  # a pyarrow.Table of schema.LABELS_SCHEMA; pyarrow itself is imported in data/ only


class PredictError(DtoError):
    """Pictures that cannot be predicted; the message says why and the next step."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures in shards, and where they and their depth maps are."""

    subset: str
    images_root: Location
    depth_root: Location | None
    shard_images: int
    num_images: int
    num_shards: int
    read_shard: Callable[[int], list[Picture]]
    manifest: Location | None = None  # the pictures are those of this one, its tar index too

    def open_store(self) -> ImageStore:
        """Where the pictures are read from."""
        return open_images(self.images_root, self.manifest or Path("none"))

    def describe(self) -> Dataset:
        """What a manifest of these pictures says of itself."""
        places: dict[str, Location] = {"images": self.images_root}
        if self.depth_root is not None:
            places["depth"] = self.depth_root
        return Dataset(
            name=self.subset,
            source="labels",
            labels="labels",
            images="",
            root=Path("."),
            principal_point="free",
            shard_images=self.shard_images,
            places=places,
        )


def find_pictures(
    folder: str, subset: str = "", depth: str = "", fov: float | None = None, shard_images: int = 4096
) -> PictureSet:
    """Every image file in or below a folder, by name.

    Args:
        folder: local folder or URI.
        subset: name of the set; "" = that of the folder.
        depth: folder of depth maps named like the images with ``.npy``; "" = none.
        fov: vertical field of view [rad] of all of them; None = unknown.
        shard_images: images a shard.

    Raises:
        PredictError: no such folder, or no image in it.
    """
    root = absolute(folder)
    try:
        names = sorted(list_names(root, IMAGE_ENDINGS))
    except STORAGE_ERRORS as error:
        raise PredictError(f"{folder} cannot be listed ({error}); name a folder of images or a manifest") from error
    if not names:
        raise PredictError(f"{folder} holds no image; expected files ending in {', '.join(IMAGE_ENDINGS)}")
    if subset and not SUBSET_NAME.fullmatch(subset):
        raise PredictError(f"the subset is named {subset!r}; expected one word of letters, digits, '.', '-' and '_'")
    label = subset or name_subset(str(root).rstrip("/").rpartition("/")[2])

    def read(shard: int) -> list[Picture]:
        some = names[shard * shard_images : (shard + 1) * shard_images]
        maps = [str(Path(name).with_suffix(".npy")) if depth else None for name in some]
        return [
            Picture(f"{label}/{name}", label, name, name, fov=fov, depth_file=depth_map)
            for name, depth_map in zip(some, maps, strict=True)
        ]

    shards = -(-len(names) // shard_images)
    depth_root = absolute(depth) if depth else None
    return PictureSet(label, root, depth_root, shard_images, len(names), shards, read)


def manifest_pictures(path: str, images: str = "", keep_camera: bool = False, fov: float | None = None) -> PictureSet:
    """The images of a manifest, in its shards, whatever its labels say of people.

    Args:
        path: the manifest.
        images: folder or URI in place of the manifest's.
        keep_camera: take the manifest's cameras; otherwise `fov`, or the network says.
        fov: vertical field of view [rad] of all of them; None = unknown.

    Raises:
        ManifestError: the manifest cannot be read.
    """
    manifest = Manifest.open(as_location(path))
    columns = ("image_id", "subset", "image_path", "image_file", "depth_file", "fx", "fy", "cx", "cy")

    def read(shard: int) -> list[Picture]:
        rows = manifest.read_shard(shard, columns).to_pylist()
        return [
            Picture(
                image_id=row["image_id"],
                subset=row["subset"],
                image_path=row["image_path"],
                image_file=row["image_file"],
                intrinsics=read_cameras(row) if keep_camera else None,
                fov=fov,
                depth_file=row["depth_file"],
            )
            for row in rows
        ]

    return PictureSet(
        subset=manifest.subset,
        images_root=as_location(images or manifest.images_root),
        depth_root=manifest.depth_root,
        shard_images=max((size.images for size in manifest.shard_sizes), default=1),
        num_images=manifest.num_images,
        num_shards=manifest.num_shards,
        read_shard=read,
        manifest=manifest.path,
    )


def predict_shards(
    pictures: PictureSet,
    predict: Callable[[Sequence[Picture]], Iterator[Scene]],
    body: BodyModel,
    folder: Path,
    facts: dict[str, str],
    progress: bool = True,
) -> None:
    """Predict what is not there yet, one part per shard.

    Args:
        pictures: what to predict.
        predict: pictures -> scenes, see `train.predict.predict_scenes`.
        body: tells heights.
        folder: where the parts are kept.
        facts: all that decides an answer (checkpoint, options); a part made with others is made again.
        progress: show a progress bar on stderr.
    """
    with tqdm(total=pictures.num_images, unit="image", desc=pictures.subset, disable=not progress) as bar:
        for shard in range(pictures.num_shards):
            some = pictures.read_shard(shard)
            path, key = _part(folder, shard), _part_key(pictures.images_root, some, facts)
            if not _is_done(path, key):
                path.unlink(missing_ok=True)
                placed = [_place(scene, body) for scene in _counted(predict(some), bar)]
                write_label_shard(build_label_table(placed), path, {"predict_key": key})
            else:
                bar.update(len(some))


def read_part(folder: Path, shard: int) -> LabelTable:
    """The labels of one predicted shard. Raises: LabelsError."""
    return read_labels(_part(folder, shard))


def write_manifest(pictures: PictureSet, folder: Path) -> Manifest:
    """The manifest of all parts, beside them: what `dto run` needs to place the predicted people."""
    out = folder / MANIFEST_FILE
    if pictures.manifest is not None:
        carry_tar_index(pictures.manifest, out)

    def shards() -> Iterator[tuple[LabelTable, Sequence[str], Sequence[str | None]]]:
        for shard in range(pictures.num_shards):
            some = pictures.read_shard(shard)
            files, maps = [one.image_file for one in some], [one.depth_file for one in some]
            yield read_part(folder, shard), files, maps

    write_label_manifest(shards(), pictures.describe(), out)
    return Manifest.open(out)


def is_unfinished(folder: Path) -> bool:
    """True where a prediction was begun and not ended."""
    return (folder / _PARTS).is_dir()


def remove_parts(folder: Path) -> None:
    """Take the parts away once the labels are there; without them the prediction is finished."""
    shutil.rmtree(folder / _PARTS)


def prediction_facts(trained: Trained, config: PredictConfig) -> dict[str, str]:
    """All that decides an answer besides the picture: not how many are read or asked at once."""
    return {"checkpoint": trained.sha256, "min_confidence": str(config.min_confidence)}


def _place(scene: Scene, body: BodyModel) -> PlacedScene:
    """A label row's content: the people as the network said them, with the heights of their shapes."""
    placed = keep_labels(scene)
    if scene.problem is None and scene.num_people:
        height = body.rest_height(torch.from_numpy(scene.betas)).numpy().astype(np.float32)
        placed = dataclasses.replace(placed, status=ImageStatus.PREDICTED, height_init_m=height, height_m=height)
    return placed


def _counted(scenes: Iterator[Scene], bar: tqdm[Any]) -> Iterator[Scene]:
    for scene in scenes:
        bar.update()
        yield scene


def _part(folder: Path, shard: int) -> Path:
    return folder / _PARTS / f"shard-{shard:05d}.parquet"


def _part_key(root: Location, pictures: Sequence[Picture], facts: dict[str, str]) -> str:
    cameras = [None if one.intrinsics is None else one.intrinsics.tolist() for one in pictures]
    named = [[one.image_id, one.image_file, one.fov] for one in pictures]
    return hashlib.sha256(json.dumps([facts, str(root), named, cameras], sort_keys=True).encode()).hexdigest()


def _is_done(path: Path, key: str) -> bool:
    if not path.exists():
        return False
    try:
        return read_label_metadata(path).get("predict_key") == key
    except LabelsError:
        return False  # not whole: made again
