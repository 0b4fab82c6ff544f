"""A data set of a few 160 x 120 crowds on disk, in the public formats, for tests of whole runs.

Bodies are those of `tests.crowds` (exact masks and disparity). On request some images are broken on purpose: one file
missing, one truncated, one depth map of zeros, one person whose pose is not a number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.camerahmr import write_release_file
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.models.body import BodyModel
from dto_pipeline.scene import Scene
from tests.crowds import Stander, make_scene

BROKEN = {1: "missing_image", 2: "truncated_image", 4: "zero_disparity", 5: "nan_pose"}


@dataclass(frozen=True)
class TinyDataset:
    """What was written."""

    dataset: Dataset
    manifest: Path
    images: int
    persons: int


def write_tiny_dataset(
    root: Path, body: BodyModel, images: int = 9, shard_images: int = 3, broken: bool = True, people: int = 3
) -> TinyDataset:
    """Write images, labels, sidecar, depth maps and the manifest below `root`.

    Args:
        images, shard_images: how many images, and how many of them a shard.
        broken: spoil the images named in `BROKEN`.
        people: of an image, give or take one.
    """
    scenes = [_make_tiny_scene(body, number, people) for number in range(images)]
    faults = BROKEN if broken else {}
    for number, scene in enumerate(scenes):
        _write_pixels(root, scene, number, faults.get(number, ""))
    _write_people(root, scenes, [number for number, fault in faults.items() if fault == "nan_pose"])
    dataset = Dataset(
        name="tiny",
        source="camerahmr",
        labels="labels/tiny-release.npz",
        images="images",
        root=root,
        sidecar="labels/tiny-sidecar.parquet",
        depth="depth",
        shard_images=shard_images,
        body="demo",
    )
    build_manifest(dataset, root / "tiny.parquet", progress=False)
    return TinyDataset(dataset, root / "tiny.parquet", images, sum(scene.num_people for scene in scenes))


def _make_tiny_scene(body: BodyModel, number: int, people: int) -> Scene:
    """People side by side at different distances; label sizes are wrong by up to a fifth. Every third is 120 x 160."""
    random = np.random.default_rng(number)
    count = people + number % 3 - 1
    crowd = [
        Stander(
            x=0.9 * (i - (count - 1) / 2),
            z=3.0 + 0.4 * float(random.uniform(0, 3)),
            height=float(random.uniform(1.55, 1.85)),
            factor=float(random.uniform(0.85, 1.2)),
        )
        for i in range(count)
    ]
    size = (160, 120) if number % 3 == 2 else (120, 160)
    return make_scene(body, crowd, size=size, name=f"{number:06d}")


def _write_pixels(root: Path, scene: Scene, number: int, fault: str) -> None:
    assert scene.disparity is not None
    for folder in ("images", "depth", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(number).integers(0, 255, (scene.height, scene.width, 3)).astype(np.uint8)
    jpeg = simplejpeg.encode_jpeg(rgb, quality=80)
    if fault != "missing_image":
        end = len(jpeg) // 3 if fault == "truncated_image" else None
        (root / "images" / scene.image_path).write_bytes(jpeg[:end])
    disparity = np.zeros_like(scene.disparity) if fault == "zero_disparity" else scene.disparity
    np.save((root / "depth" / scene.image_path).with_suffix(".npy"), disparity)


def _all_masks(scenes: list[Scene]) -> Iterator[np.ndarray]:
    """(H, W) bool of every person; masks lie at map size, which is the image's size here."""
    for scene in scenes:
        assert scene.masks is not None
        yield from scene.masks


def _write_people(root: Path, scenes: list[Scene], nan_poses: list[int]) -> None:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(scene, name) for scene in scenes])

    counts = [scene.num_people for scene in scenes]
    pose = joined("pose")
    for number in nan_poses:
        pose[sum(counts[:number]), 5] = np.nan
    labels = {
        "pose": pose,
        "betas": joined("betas"),
        "transl": joined("transl"),
        "bbox_xyxy": np.tile(np.array([10, 10, 100, 100], np.float32), (sum(counts), 1)),
        "intrinsics": np.repeat(np.stack([scene.intrinsics for scene in scenes]), counts, axis=0),
    }
    names = np.repeat([scene.image_path for scene in scenes], counts)
    sizes = np.repeat([[scene.height, scene.width] for scene in scenes], counts, axis=0)
    masks = list(_all_masks(scenes))
    write_release_file(root / "labels/tiny-release.npz", names, labels)
    write_sidecar(
        root / "labels/tiny-sidecar.parquet",
        np.arange(sum(counts)),
        age_years=joined("age_years"),
        male_prob=joined("male_prob"),
        mask_rle=[encode_rle(mask) for mask in masks],
        mask_height=sizes[:, 0].astype(np.int32),
        mask_width=sizes[:, 1].astype(np.int32),
    )
