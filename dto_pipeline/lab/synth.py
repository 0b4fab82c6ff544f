"""A synthetic benchmark on disk: crowds of one difficulty in the public formats, with their truth.

Files of one data set:

    images/<a>/<number>.jpg     pictures
    labels/release.npz          labels as CameraHMR publishes them
    labels/sidecar.parquet      masks, ages, male probabilities
    depth/<a>/<number>.npy      disparity, float32, of the picture's size
    dataset.yaml                for `dto manifest build`
    truth.npz                   what is true, one row per label row (`TRUTH_COLUMNS`)
    README.md                   what it is, how it was made, how to evaluate
    synth.json                  settings and counts; written last, exists = the data set is whole

Equal settings and body model give identical bytes. Solvers and `dto eval benchmark` see exactly these scenes. The depth
map knows people, level ground and a backdrop 40 m away, not the painted scenery. Metres, pixels, camera frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.config import METRES_PER_DEPTH, STAND_IN_BODY
from dto_pipeline.data.dataset import SYNTHETIC
from dto_pipeline.data.files import sha256_file, write_bytes_atomic, write_json_atomic
from dto_pipeline.lab.crowd_files import (
    IMAGE_TRUTH,
    PERSON_TRUTH,
    encode_picture,
    person_rows,
    recognise,
    write_map,
    write_people,
)
from dto_pipeline.lab.difficulty import VERSION, Difficulty
from dto_pipeline.lab.foreign_bodies import measure_anny
from dto_pipeline.lab.known_scenes import build_known_scene
from dto_pipeline.lab.observe import observe_keypoints
from dto_pipeline.lab.picture import measure_template, render_picture
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.networks import locate_body

MARKER = "synth.json"
LABELS = "labels/release.npz"
SIDECAR = "labels/sidecar.parquet"
TRUTH_COLUMNS = {
    **IMAGE_TRUTH,
    "image_size": "height and width (n, 2) of the image [px]",
    "intrinsics": "true camera (n, 3, 3) [px]",
    **PERSON_TRUTH,
}
_PICTURE, _KEYPOINTS = 28, 29  # random streams of an image, after those of `known_scenes`
_SHARD_IMAGES = 32


@dataclass(frozen=True)
class SynthData:
    """What was written, or was there already."""

    root: Path
    images: int
    persons: int
    created: bool  # False: the folder held this data set and nothing was written


def write_synth(
    root: Path,
    kind: Difficulty,
    images: int,
    seed: int,
    body: BodyModel,
    progress: Callable[[int, int], None] | None = None,
) -> SynthData:
    """Write a data set, unless it is there; one half-written is completed.

    Args:
        root: its folder; kind: `difficulty.choose_difficulty`; progress: called with (images done, all images).

    Raises:
        CrowdFilesError: the folder holds a data set of other settings.
        AnnyMissing: people of Anny are wanted and the package is not installed.
    """
    options = dataclasses.asdict(kind)
    named = {"difficulty": options.pop("name"), "options": {k: v for k, v in options.items() if k != "meaning"}}
    identity = {"version": VERSION, "seed": seed, "images": images, "body_sha256": body.sha256, **named}
    if there := recognise(root / MARKER, identity):
        return SynthData(root, there["images"], there["persons"], created=False)
    template = measure_anny() if kind.bodies == "anny" else measure_template(body)
    parts = []
    for number in range(images):
        made, name = build_known_scene(kind, seed, number, body), f"{number // 1000:03d}/{number:06d}.jpg"
        crowd, told = made.crowd, made.scene
        picture = render_picture(crowd, made.truth.vertices, template, np.random.default_rng([seed, number, _PICTURE]))
        write_bytes_atomic(root / "images" / name, encode_picture(picture))
        disparity = np.asarray(told.disparity, np.float32)
        write_map(root / "depth", name, METRES_PER_DEPTH / disparity if kind.metric_error else disparity)
        rng = np.random.default_rng([seed, number, _KEYPOINTS])
        keypoints = observe_keypoints(crowd.view, made.truth, made.z_map, rng)
        labels = dataclasses.replace(made.labels, transl=told.transl, age=told.age_years)
        camera = {"image_size": np.array([crowd.view.height, crowd.view.width]), "intrinsics": crowd.view.intrinsics}
        image = (name, number)
        parts.append(
            person_rows(image, crowd, made.truth, labels, made.masks, keypoints, made.line, told.intrinsics, camera)
        )
        if progress is not None:
            progress(number + 1, images)
    persons = write_people(root, parts, LABELS, SIDECAR)
    facts = identity | {"persons": persons}
    write_bytes_atomic(root / "dataset.yaml", _dataset(kind, body).encode())
    write_bytes_atomic(root / "README.md", _readme(kind, facts).encode())
    write_json_atomic(root / MARKER, facts)
    return SynthData(root, images, persons, created=True)


def _dataset(kind: Difficulty, body: BodyModel) -> str:
    own = body.sha256 == sha256_file(locate_body(STAND_IN_BODY))
    named = f"body: {STAND_IN_BODY}" if own else "# body.model_path must name the body these people were made of"
    return f"""\
# Made by `dto synth`. Build with: dto manifest build dataset.yaml --data-root FOLDER -o FOLDER/manifest.parquet
name: synth-{kind.name}
source: camerahmr
licence: {SYNTHETIC} (Apache-2.0); free to use.
{named}
labels: {LABELS}
sidecar: {SIDECAR}
images: images
depth: depth
depth_suffix: .npy
key_parts: 2
principal_point: centre
shard_images: {_SHARD_IMAGES}
"""


def _readme(kind: Difficulty, facts: dict[str, Any]) -> str:
    options = [f"- `{name}`: {value}" for name, value in facts["options"].items()]
    columns = [f"- `{name}`: {meaning}" for name, meaning in TRUTH_COLUMNS.items()]
    who = "procedural bodies"
    if kind.bodies == "anny":
        who = "bodies of Anny (code Apache-2.0, data CC0) with labels of the stand-in body fitted to what is seen"
    lines = [
        f"# Synthetic crowds, difficulty {kind.name}",
        "",
        f"{facts['images']} images, {facts['persons']} people, seed {facts['seed']}: {kind.meaning}.",
        f"Nobody here is real: {who}, on level ground, seen by a pinhole camera. Free to use (Apache-2.0).",
        "",
        "    dto manifest build dataset.yaml --data-root . -o manifest.parquet",
        f"    dto run manifest.parquet -o run{' --set depth.kind=metric_depth' if kind.metric_error else ''}",
        "    dto eval synthetic run --truth . --body BODY",
        "",
        "Options (`dto_pipeline/lab/difficulty.py` says what each means):",
        "",
        *options,
        "",
        "Columns of `truth.npz`, row i = label row i:",
        "",
        *columns,
    ]
    return "\n".join(lines) + "\n"
