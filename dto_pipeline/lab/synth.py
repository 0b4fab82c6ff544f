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
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.rows import LabelRows
from dto_pipeline.lab.clothes import measure_template
from dto_pipeline.lab.difficulty import VERSION, Difficulty
from dto_pipeline.lab.foreign_bodies import measure_anny
from dto_pipeline.lab.known_scenes import MadeScene, build_known_scene
from dto_pipeline.lab.marker import recognise
from dto_pipeline.lab.observe import observe_keypoints
from dto_pipeline.lab.render import render_picture
from dto_pipeline.lab.scenes import body_boxes
from dto_pipeline.lab.write import (
    IMAGE_TRUTH,
    PERSON_TRUTH,
    PersonRows,
    encode_picture,
    image_truth,
    join_rows,
    person_truth,
    write_map,
    write_people,
)
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.body_file import locate_body

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
        DemoDataError: the folder holds a data set of other settings.
        AnnyMissing: people of Anny are wanted and the package is not installed.
    """
    identity = {"version": VERSION, "seed": seed, "images": images, "body_sha256": body.sha256, **_options(kind)}
    if there := recognise(root / MARKER, identity):
        return SynthData(root, there["images"], there["persons"], created=False)
    template = measure_anny() if kind.bodies == "anny" else measure_template(body)
    parts = []
    for number in range(images):
        scene = build_known_scene(kind, seed, number, body)
        rng = np.random.default_rng([seed, number, _PICTURE])
        picture = render_picture(scene.crowd, scene.truth.vertices, template, rng)
        write_bytes_atomic(root / "images" / image_name(number), encode_picture(picture))
        disparity = np.asarray(scene.scene.disparity, np.float32)
        write_map(root / "depth", image_name(number), METRES_PER_DEPTH / disparity if kind.metric_error else disparity)
        parts.append(_person_rows(scene, seed, number))
        if progress is not None:
            progress(number + 1, images)
    people = join_rows(parts)
    write_people(root, people, LABELS, SIDECAR)
    facts = identity | {"persons": len(people.age_years)}
    write_bytes_atomic(root / "dataset.yaml", _dataset(kind, body).encode())
    write_bytes_atomic(root / "README.md", _readme(kind, facts).encode())
    write_json_atomic(root / MARKER, facts)
    return SynthData(root, images, facts["persons"], created=True)


def image_name(number: int) -> str:
    """Name of an image in the label file, relative to the images folder."""
    return f"{number // 1000:03d}/{number:06d}.jpg"


def _options(kind: Difficulty) -> dict[str, Any]:
    options = dataclasses.asdict(kind)
    return {
        "difficulty": options.pop("name"),
        "options": {k: v for k, v in options.items() if k != "meaning"},
    }


def _person_rows(scene: MadeScene, seed: int, number: int) -> PersonRows:
    """Rows of the P people of one scene, and the truth under the names of `TRUTH_COLUMNS`."""
    told, crowd, view = scene.scene, scene.crowd, scene.crowd.view
    people = crowd.num_people
    size = np.tile(np.array([view.height, view.width]), (people, 1))
    camera = {"image_size": size.astype(np.int64), "intrinsics": np.repeat(view.intrinsics[None], people, axis=0)}
    rows = LabelRows(
        pose=told.pose,
        betas=told.betas,
        transl=told.transl,
        bbox_xyxy=body_boxes(view, scene.truth),
        intrinsics=np.repeat(told.intrinsics[None], people, axis=0),
    )
    return PersonRows(
        labels=rows,
        keypoints=observe_keypoints(view, scene.truth, scene.z_map, np.random.default_rng([seed, number, _KEYPOINTS])),
        age_years=told.age_years,
        male_prob=told.male_prob,
        mask_rle=[encode_rle(mask) for mask in scene.masks],
        mask_size=size.astype(np.int32),
        truth=image_truth(image_name(number), number, people)
        | camera
        | person_truth(crowd, scene.truth, scene.labels, scene.line),
    )


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
