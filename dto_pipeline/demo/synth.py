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
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.camerahmr_writer import write_camerahmr
from dto_pipeline.data.sources.rows import LabelRows
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.demo.clothes import measure_template
from dto_pipeline.demo.difficulty import VERSION
from dto_pipeline.demo.observe import observe_keypoints
from dto_pipeline.demo.render import render_picture
from dto_pipeline.demo.scenes import body_boxes
from dto_pipeline.demo.solver_sets import CrowdSet, SetScene, build_set_scene
from dto_pipeline.errors import DtoError
from dto_pipeline.models.body import BodyModel

MARKER = "synth.json"
TRUTH_COLUMNS = {
    "image_name": "image of the person, as in the label file",
    "image_number": "number of the image",
    "image_size": "height and width (n, 2) of the image [px]",
    "intrinsics": "true camera (n, 3, 3) [px]",
    "transl": "true translation (n, 3) [m]",
    "pose": "true pose (n, 72), axis-angle [rad]",
    "betas": "true shape (n, 11), kid axis last",
    "height": "true height in the rest pose [m]",
    "height_class": "0 baby, 1 kid, 2 teen, 3 adult female, 4 adult male",
    "age_years": "true age",
    "label_factor": "label height / true height",
    "disparity_line": "a and b (n, 2) of disparity = a / z + b before all errors",
}
_PICTURE, _KEYPOINTS = 28, 29  # random streams of an image, after those of `solver_sets`
_JPEG_QUALITY = 93
_SHARD_IMAGES = 32


class SynthError(DtoError, ValueError):
    """A folder that holds another data set; says how they differ and what to do."""


@dataclass(frozen=True)
class SynthData:
    """What was written, or was there already."""

    root: Path
    images: int
    persons: int
    created: bool  # False: the folder held this data set and nothing was written


def write_synth(
    root: Path,
    kind: CrowdSet,
    images: int,
    seed: int,
    body: BodyModel,
    progress: Callable[[int, int], None] | None = None,
) -> SynthData:
    """Write a data set, unless it is there; one half-written is completed.

    Args:
        root: its folder; kind: `difficulty.choose_difficulty`; progress: called with (images done, all images).

    Raises:
        SynthError: the folder holds a data set of other settings.
    """
    identity = {"version": VERSION, "seed": seed, "images": images, "body_sha256": body.sha256, **_knobs(kind)}
    if (root / MARKER).exists():
        return _recognise(root, identity)
    template = measure_template(body)
    scenes = []
    for number in range(images):
        scene = build_set_scene(kind, seed, number, body)
        rng = np.random.default_rng([seed, number, _PICTURE])
        picture = render_picture(scene.crowd, scene.truth.vertices, body, template, rng)
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture.rgb), quality=_JPEG_QUALITY)
        write_bytes_atomic(root / "images" / image_name(number), jpeg)
        write_bytes_atomic((root / "depth" / image_name(number)).with_suffix(".npy"), _npy(scene))
        scenes.append(_person_columns(scene, seed, number))
        if progress is not None:
            progress(number + 1, images)
    columns = {name: np.concatenate([scene[name] for scene in scenes]) for name in scenes[0]}
    _write_people(root, columns)
    facts = identity | {"persons": len(columns["image_name"])}
    write_bytes_atomic(root / "dataset.yaml", _dataset(kind).encode())
    write_bytes_atomic(root / "README.md", _readme(kind, facts).encode())
    write_json_atomic(root / MARKER, facts)
    return SynthData(root, images, facts["persons"], created=True)


def image_name(number: int) -> str:
    """Name of an image in the label file, relative to the images folder."""
    return f"{number // 1000:03d}/{number:06d}.jpg"


def _knobs(kind: CrowdSet) -> dict[str, Any]:
    knobs = dataclasses.asdict(kind)
    return {"difficulty": knobs.pop("name"), "knobs": {k: v for k, v in knobs.items() if k not in ("meaning", "told")}}


def _recognise(root: Path, identity: dict[str, Any]) -> SynthData:
    facts = json.loads((root / MARKER).read_text())
    wanted = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    differing = [
        f"{key}: {facts.get(key)!r} there, {value!r} wanted" for key, value in wanted.items() if facts.get(key) != value
    ]
    if differing:
        raise SynthError(f"{root} holds another data set ({'; '.join(differing)}); choose another folder or remove it")
    return SynthData(root, facts["images"], facts["persons"], created=False)


def _npy(scene: SetScene) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(scene.known.scene.disparity, np.float32), allow_pickle=False)
    return buffer.getvalue()


def _person_columns(scene: SetScene, seed: int, number: int) -> dict[str, Any]:
    """What the files hold about the P people of one image, and the truth under the names of `TRUTH_COLUMNS`."""
    told, crowd, truth = scene.known.scene, scene.crowd, scene.truth
    people = crowd.num_people
    keypoints = observe_keypoints(crowd.view, truth, scene.z, np.random.default_rng([seed, number, _KEYPOINTS]))
    return {
        "label_pose": told.pose,
        "label_betas": told.betas,
        "label_transl": told.transl,
        "label_intrinsics": np.repeat(told.intrinsics[None], people, axis=0),
        "bbox_xyxy": body_boxes(crowd.view, truth),
        "keypoints": keypoints,
        "label_age": told.age_years,
        "male_prob": told.male_prob,
        "mask_rle": np.array([encode_rle(mask) for mask in scene.masks], dtype=object),
        "image_name": np.full(people, image_name(number)),
        "image_number": np.full(people, number, np.int64),
        "image_size": np.tile(np.array([crowd.view.height, crowd.view.width], np.int64), (people, 1)),
        "intrinsics": np.repeat(crowd.view.intrinsics[None], people, axis=0),
        "transl": truth.transl,
        "pose": truth.pose,
        "betas": truth.betas,
        "height": truth.height,
        "height_class": crowd.height_class.astype(np.int64),
        "age_years": crowd.age.astype(np.float64),
        "label_factor": scene.labels.factor,
        "disparity_line": np.tile(np.array(scene.known.line), (people, 1)),
    }


def _write_people(root: Path, columns: dict[str, Any]) -> None:
    """Label file, sidecar and truth; row i of each is the same person."""
    betas = columns["label_betas"]
    rows = LabelRows(
        pose=columns["label_pose"],
        betas=np.pad(betas, ((0, 0), (0, NUM_BETAS - betas.shape[1]))),
        transl=columns["label_transl"],
        bbox_xyxy=columns["bbox_xyxy"],
        intrinsics=columns["label_intrinsics"],
    )
    write_camerahmr(root / "labels/release.npz", columns["image_name"], rows, columns["keypoints"])
    write_sidecar(
        root / "labels/sidecar.parquet",
        np.arange(len(betas)),
        age_years=columns["label_age"],
        male_prob=columns["male_prob"],
        mask_rle=columns["mask_rle"].tolist(),
        mask_height=columns["image_size"][:, 0].astype(np.int32),
        mask_width=columns["image_size"][:, 1].astype(np.int32),
    )
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{name: columns[name] for name in TRUTH_COLUMNS})
    write_bytes_atomic(root / "truth.npz", buffer.getvalue())


def _dataset(kind: CrowdSet) -> str:
    return f"""\
# Made by `dto synth`. Build with: dto manifest build dataset.yaml --data-root FOLDER -o FOLDER/manifest.parquet
name: synth-{kind.name}
source: camerahmr
licence: Synthetic, made by this project (Apache-2.0); free to use.
labels: labels/release.npz
sidecar: labels/sidecar.parquet
images: images
depth: depth
depth_suffix: .npy
key_parts: 2
principal_point: centre
shard_images: {_SHARD_IMAGES}
"""


def _readme(kind: CrowdSet, facts: dict[str, Any]) -> str:
    knobs = [f"- `{name}`: {value}" for name, value in facts["knobs"].items()]
    columns = [f"- `{name}`: {meaning}" for name, meaning in TRUTH_COLUMNS.items()]
    lines = [
        f"# Synthetic crowds, difficulty {kind.name}",
        "",
        f"{facts['images']} images, {facts['persons']} people, seed {facts['seed']}: {kind.meaning}.",
        "Nobody here is real: procedural bodies on level ground, seen by a pinhole camera. Free to use (Apache-2.0).",
        "",
        "    dto manifest build dataset.yaml --data-root . -o manifest.parquet",
        "    dto run manifest.parquet -o run",
        "    dto eval synthetic run --truth .",
        "",
        "Knobs (`dto_pipeline/demo/solver_sets.py` says what each means):",
        "",
        *knobs,
        "",
        "Columns of `truth.npz`, row i = label row i:",
        "",
        *columns,
    ]
    return "\n".join(lines) + "\n"
