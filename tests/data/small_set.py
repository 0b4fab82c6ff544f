"""A data set of a few tiny images on disk, spoiled as a test wishes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import simplejpeg

from dto_pipeline.data.dataset import Dataset
from dto_pipeline.data.manifest import Manifest, ManifestError
from dto_pipeline.data.manifest_build.build_report import findings_path
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.parquet import open_parquet
from dto_pipeline.data.storage import Location

WIDTH, HEIGHT = 32, 24  # [px]


def label_arrays(names: Sequence[str], seed: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a release file whose row r shows somebody in image names[r]."""
    random, people = np.random.default_rng(seed), len(names)
    focal, centre = 40, np.array([WIDTH / 2, HEIGHT / 2])
    camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]], np.float32)
    arrays = {
        "imgname": np.array(names),
        "pose_cam": random.normal(size=(people, 72)).astype(np.float32),
        "shape": random.normal(size=(people, 10)).astype(np.float32),
        "trans_cam": random.uniform(1, 5, size=(people, 3)).astype(np.float32),
        "cam_int": np.repeat(camera[None], people, axis=0),
    }
    x_y, z = arrays["trans_cam"][:, :2], arrays["trans_cam"][:, 2]
    return arrays | {"center": x_y / z[:, None] * focal + centre.astype(np.float32), "scale": 1.7 * focal / z / 200}


def write_labels_file(root: Path, arrays: Mapping[str, Any], compressed: bool = False) -> Path:
    """Write a release file; its arrays may be anything."""
    path = root / "labels" / "small-release.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


def read_findings(manifest: Location) -> pa.Table:
    """What the build of a manifest found."""
    with open_parquet(findings_path(manifest), ManifestError) as file:
        return file.read()


def write_image(root: Path, name: str, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Write a JPEG of noise."""
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    path.write_bytes(simplejpeg.encode_jpeg(noise, quality=90))
    return path


def write_depth(root: Path, name: str, disparity: np.ndarray | None = None) -> Path:
    """Write the depth map of an image, a ramp if none is given."""
    path = (root / "depth" / name).with_suffix(".npy")
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(1, 2, HEIGHT * WIDTH, dtype=np.float16).reshape(HEIGHT, WIDTH)
    np.save(path, ramp if disparity is None else disparity)
    return path


def small_dataset(root: Location, **changes: Any) -> Dataset:
    """Description of the data set below `root`."""
    plain: dict[str, Any] = {"name": "small", "source": "camerahmr", "labels": "labels/small-release.npz"}
    return Dataset(**{**plain, "images": "images", "depth": "depth", "root": root, **changes})


def build_small(root: Path, names: Sequence[str], spoil: Mapping[str, np.ndarray] | None = None, **changes: Any):
    """Write labels (with `spoil` in place of good arrays) for images already there; build and open the manifest."""
    write_labels_file(root, {**label_arrays(names), **(spoil or {})})
    report = build_manifest(small_dataset(root, **changes), root / "small.parquet", progress=False)
    return Manifest.open(root / "small.parquet"), report


def all_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """Every manifest row as plain values."""
    return pa.concat_tables([manifest.read_shard(k) for k in range(manifest.num_shards)]).to_pylist()
