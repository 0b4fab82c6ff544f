"""The demo's data set, some of it broken on purpose, and pictures of the same kind for benches and trainings.

Its files are those of `crowd_files` with the folder names of CameraHMR, depth maps as float16, and `demo.json` as
marker. Metres, camera frame.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dto_pipeline.data.dataset import dataset_from_dict
from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.lab import crowd_files
from dto_pipeline.lab.crowd import Crowd, plan_crowd
from dto_pipeline.lab.crowd_files import (
    TRUTH,
    CrowdData,
    CrowdFilesError,
    PersonRows,
    encode_picture,
    person_rows,
    write_crowds,
    write_map,
    write_people,
)
from dto_pipeline.lab.difficulty import Difficulty
from dto_pipeline.lab.known_scenes import DISPARITY_SCALE, CrowdScene, observe_disparity
from dto_pipeline.lab.picture import Picture
from dto_pipeline.models.body import BodyModel

VERSION = 2  # raised whenever equal settings would give other files
MARKER = "demo.json"
LABELS, SIDECAR = "labels/demo-release.npz", "labels/demo-sidecar.parquet"
TRUTH_COLUMNS = (*(name for name in crowd_files.TRUTH_COLUMNS if name not in ("image_size", "intrinsics")), "broken")
BREAKAGES = {
    "truncated_image": "the JPEG ends after 40 % of its bytes",
    "missing_image": "the labels name a JPEG that is not there",
    "nan_pose": "the last person's pose holds NaN",
    "wrong_size": "the label's camera belongs to an image 1.5 times as large",
    "empty_mask": "the first person's instance mask has no pixel",
    "zero_disparity": "the depth map is zero everywhere",
}  # on purpose, one image each, to show that bad input costs one item and is counted
DEPTH = Difficulty("demo", "depth maps of the demo", blur=1.2)
_OFFSET, _LARGEST_ERROR = (-1.0, 1.0), 0.15  # range of b of disparity = a / z + b; of one person's disparity
FEWEST_IMAGES = 12  # smaller data sets are left whole
_KEPT_OF_TRUNCATED = 0.4  # of the bytes
_WRONG_SIZE = 1.5  # camera of an image this many times as large
BENCH_SEED, BENCH_SIZE, BENCH_PEOPLE = 2025, (640, 480), 5  # of the benchmark's pictures: one size [px], like crowds


@dataclass(frozen=True, eq=False)
class DemoScene(CrowdScene):
    """An image of the demo; its depth map sees the painted scenery, its masks are disjoint."""

    scale: float = 1.0  # of the picture; smaller ones are drawn faster

    steps: ClassVar = {"bodies": 2, "labels": 3, "picture": 4, "depth": 5, "masks": 6, "keypoints": 7}

    @cached_property
    def crowd(self) -> Crowd:
        crowd = plan_crowd(self.seed, self.number)
        return replace(crowd, view=crowd.view.scaled(self.scale))

    @cached_property
    def depth(self) -> tuple[np.ndarray, tuple[float, float]]:
        of_map = self.stream("depth")
        line = float(of_map.uniform(*DISPARITY_SCALE)), float(of_map.uniform(*_OFFSET))
        disparity = observe_disparity(DEPTH, *self.seen, self.truth.height, line, of_map, _LARGEST_ERROR)
        return disparity.astype(np.float16), line


@dataclass(frozen=True)
class DemoSettings:
    """All that determines the data set, except the body model."""

    images: int = 24  # how many, broken ones included
    seed: int = 7
    scale: float = 1.0  # of the pictures, 640 x 480 and alike
    spoilt: bool = True  # some images are broken on purpose, if there are enough


def build_demo_data(
    root: str | Path,
    body: BodyModel,
    settings: DemoSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CrowdData:
    """Write the demo's data set as `crowd_files.write_crowds` does; people are of model `body`.

    Raises:
        CrowdFilesError: the folder holds a data set of other settings or another body model.
    """
    root, settings = Path(root), settings or DemoSettings()
    identity = {"version": VERSION, **asdict(settings), "body_sha256": body.sha256}
    broken = plan_breakages(settings.images) if settings.spoilt else {}

    def make(number: int) -> PersonRows:
        scene = DemoScene(settings.seed, number, body, settings.scale)
        return write_scene(root, scene, number, broken.get(number, ""))

    names = {image_name(number): kind for number, kind in broken.items()}
    pages = {"README.md": _readme(names)}
    return write_crowds(root, (MARKER, LABELS, SIDECAR), identity, make, lambda _: pages, progress, names)


def plan_breakages(images: int) -> dict[int, str]:
    """Number of the image -> key of `BREAKAGES`, spread evenly; empty below `FEWEST_IMAGES` images."""
    if images < FEWEST_IMAGES:
        return {}
    return {(2 * k + 1) * images // (2 * len(BREAKAGES)): name for k, name in enumerate(BREAKAGES)}


def image_name(number: int) -> str:
    """Name of an image in the label file, relative to the images folder."""
    return f"insta-train/{number // 12:02d}/{number % 12 // 4:02d}/{number:06d}.jpg"


def write_scene(root: Path, scene: DemoScene, number: int, broken: str = "") -> PersonRows:
    """Write picture and depth map of image `number`, damaged as `broken` (of `BREAKAGES`) says; rows of its people."""
    name, jpeg, disparity = image_name(number), encode_picture(scene.picture), scene.depth[0]
    rows = person_rows(name, number, scene)
    rows.truth["broken"] = np.full(scene.crowd.num_people, broken)
    if broken == "truncated_image":
        jpeg = jpeg[: int(_KEPT_OF_TRUNCATED * len(jpeg))]
    if broken == "nan_pose":
        rows.labels["pose"][-1, 5] = np.nan
    if broken == "wrong_size":
        rows.labels["intrinsics"] *= [[_WRONG_SIZE], [_WRONG_SIZE], [1.0]]
    if broken == "empty_mask":
        rows.labels["mask_rle"][0] = encode_rle(np.zeros_like(scene.masks[0]))
    if broken != "missing_image":
        write_bytes_atomic(root / "images" / name, jpeg)
    write_map(root / "depth", name, np.zeros_like(disparity) if broken == "zero_disparity" else disparity)
    return rows


def read_truth(root: str | Path) -> dict[str, np.ndarray]:
    """`TRUTH_COLUMNS` of a data set, one row per label row.

    Raises:
        CrowdFilesError: there is no whole data set in this folder.
    """
    path = Path(root) / TRUTH
    if not (Path(root) / MARKER).exists() or not path.exists():
        raise CrowdFilesError(f"{root} holds no whole demo data set (no {MARKER} or {TRUTH}); write it with `dto demo`")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in TRUTH_COLUMNS}


def build_true_pictures(data: Path, body: BodyModel) -> Iterator[tuple[str, Picture]]:
    """Names and pictures of the unbroken images of a data set, with the true z, which its files do not hold.

    Drawn again from the data set's seed (0.35 s each on one core); at scale 1 only.
    """
    facts = json.loads((data / MARKER).read_text())
    for number in range(facts["images"]):
        if image_name(number) not in facts["broken"]:
            yield image_name(number), DemoScene(facts["seed"], number, body).picture


def bench_numbers(images: int, seed: int = BENCH_SEED) -> list[int]:
    """Numbers of the first scenes of one image size and one number of people, as in the dataset (4.8 an image)."""
    found: list[int] = []
    number = 0
    while len(found) < images:
        crowd = plan_crowd(seed, number)
        if crowd.num_people == BENCH_PEOPLE and (crowd.view.width, crowd.view.height) == BENCH_SIZE:
            found.append(number)
        number += 1
    return found


def build_bench_data(root: Path, images: int, body: BodyModel) -> Manifest:
    """Write so many scenes of the bench with labels, masks and depth, and their manifest of one shard."""
    numbers = enumerate(bench_numbers(images))
    return write_plain_data(root, [write_scene(root, DemoScene(BENCH_SEED, one, body), new) for new, one in numbers])


def write_plain_data(root: Path, parts: list[PersonRows]) -> Manifest:
    """Label file, sidecar and manifest of scenes whose pictures and maps `write_scene` wrote."""
    write_people(root, parts, LABELS, SIDECAR)
    described: dict[str, Any] = {"name": "bench", "source": "camerahmr", "labels": LABELS, "sidecar": SIDECAR}
    described |= {"images": "images", "depth": "depth", "key_parts": 3, "shard_images": 1 << 16}
    build_manifest(dataset_from_dict(described, root), root / "manifest.parquet", progress=False)
    return Manifest.open(root / "manifest.parquet")


def _readme(broken: dict[str, str]) -> str:
    listed = "\n".join(f"- `{name}`: {kind}, {BREAKAGES[kind]}" for name, kind in broken.items())
    return f"""\
# Synthetic crowds with known truth

Made by `dto demo`; `{MARKER}` holds the settings. Nobody here is real: procedural bodies on a ground plane, seen by a
pinhole camera. Free to use (Apache-2.0). Labels are wrong the way single-person networks are: adult-like heights, and
distances stretched by the same factor. `{TRUTH}` holds what is true, row i = label row i.

Broken on purpose, to show that bad input costs one item:

{listed or "- nothing"}
"""
