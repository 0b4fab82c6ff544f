"""The benchmark's data set: real files of one image size and one number of people, in the public formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dto_pipeline.data.dataset import dataset_from_dict
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.data.manifest_build.builder import build_manifest
from dto_pipeline.lab.clothes import measure_template
from dto_pipeline.lab.crowd import plan_crowd
from dto_pipeline.lab.scenes import build_scene
from dto_pipeline.lab.write import LABELS, SIDECAR, PersonRows, join_rows, person_rows, write_people, write_pixels
from dto_pipeline.models.body import BodyModel

SEED = 2025
SIZE = (640, 480)  # width, height [px]
PEOPLE = 5  # per image, as in the dataset (4.8)
_DATASET = {
    "name": "bench",
    "source": "camerahmr",
    "labels": LABELS,
    "sidecar": SIDECAR,
    "images": "images",
    "depth": "depth",
    "key_parts": 3,
}


def build_bench_data(root: Path, images: int, body: BodyModel, shard_images: int = 1 << 16) -> Manifest:
    """Write `images` pictures of SIZE with PEOPLE people each, with labels, masks and depth; one shard unless told."""
    template, number = measure_template(body), 0
    parts: list[PersonRows] = []
    while len(parts) < images:
        crowd = plan_crowd(SEED, number)
        if crowd.num_people == PEOPLE and (crowd.view.width, crowd.view.height) == SIZE:
            scene = replace(build_scene(SEED, number, body, template), number=len(parts))
            write_pixels(root, scene)
            parts.append(person_rows(scene))
        number += 1
    write_people(root, join_rows(parts))
    path = root / "manifest.parquet"
    build_manifest(dataset_from_dict({**_DATASET, "shard_images": shard_images}, root), path, progress=False)
    return Manifest.open(path)
