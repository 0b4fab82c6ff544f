"""Synthetic crowds as files in the public formats, with their truth, for `dto synth` and the demo.

Files of a data set of `dto synth`:

    images/<a>/<number>.jpg     pictures
    labels/release.npz          labels as CameraHMR publishes them
    labels/sidecar.parquet      masks, ages, male probabilities
    depth/<a>/<number>.npy      disparity, float32, of the picture's size
    dataset.yaml                for `dto manifest build`
    truth.npz                   what is true, one row per label row (`TRUTH_COLUMNS`)
    README.md                   what it is, how it was made, how to evaluate
    synth.json                  the marker: settings and counts; written last, exists = the data set is whole

Equal settings and body model give identical bytes. `dto eval benchmark` measures exactly these scenes. The depth map
shows people, level ground and a backdrop 40 m away, not the painted scenery. Metres, pixels, camera frame.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import simplejpeg

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.config import METRES_PER_DEPTH, STAND_IN_BODY
from dto_pipeline.data.dataset import SYNTHETIC
from dto_pipeline.data.files import sha256_file, write_bytes_atomic, write_json_atomic
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.camerahmr import write_camerahmr
from dto_pipeline.data.sources.rows import LabelRows
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.errors import DtoError
from dto_pipeline.lab.difficulty import VERSION, Difficulty
from dto_pipeline.lab.known_scenes import CrowdScene, SynthScene
from dto_pipeline.lab.picture import Picture
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.networks import locate_body

TRUTH = "truth.npz"
MARKER = "synth.json"
LABELS, SIDECAR = "labels/release.npz", "labels/sidecar.parquet"
TRUTH_COLUMNS = {
    "image_name": "image of the person, as in the label file",
    "image_number": "number of the image",
    "image_size": "height and width (n, 2) of the image [px]",
    "intrinsics": "true camera (n, 3, 3) [px]",
    "transl": "true translation (n, 3) [m]; of foreign bodies, the one that puts a label's pelvis on the true one",
    "pelvis": "true pelvis (n, 3), between the hips [m]",
    "pose": "true pose (n, 72), axis-angle [rad]; NaN for foreign bodies",
    "betas": "true shape (n, 11), kid axis last; NaN for foreign bodies",
    "height": "true height in the rest pose [m]",
    "height_class": "0 baby, 1 kid, 2 teen, 3 adult female, 4 adult male",
    "age_years": "true age",
    "label_factor": "label height / true height",
    "disparity_line": "a and b (n, 2) of disparity = a / z + b before all errors",
}
_SHARD_IMAGES = 32
_BEGUN = ".unfinished"  # file in a folder whose data set is not complete
_JPEG_QUALITY = 93


class CrowdFilesError(DtoError, ValueError):
    """A folder without a complete synthetic data set, or with another one."""


@dataclass(frozen=True)
class CrowdData:
    """A data set that was written, or was there already."""

    root: Path
    created: bool  # False: the folder held this data set and nothing was written
    images: int
    persons: int
    broken: dict[str, str] = field(default_factory=dict)  # the demo's: image name -> what is broken on purpose


@dataclass(frozen=True)
class PersonRows:
    """n people of one or more images, a row each."""

    labels: dict[str, np.ndarray]  # columns of label file and sidecar
    truth: dict[str, np.ndarray]  # columns of `TRUTH`


def write_crowds(
    root: Path,
    places: tuple[str, str, str],
    identity: Mapping[str, Any],
    make: Callable[[int], PersonRows],
    pages: Callable[[dict[str, Any]], dict[str, str]],
    progress: Callable[[int, int], None] | None = None,
    broken: dict[str, str] | None = None,
) -> CrowdData:
    """Write a data set, unless it is there; an incomplete one is written again.

    Args:
        root: its folder, made if missing; places: marker, label file and sidecar below it.
        identity: settings and versions that determine the data set, `images` among them; the marker holds them.
        make: writes picture and map of image `number` and returns the rows of its people.
        pages: contents of the marker -> texts by file name, written to the same folder.
        progress: called with (images done, all images); broken: see `CrowdData`.

    Raises:
        CrowdFilesError: the folder holds a data set of other settings, or other files.
    """
    marker, images = root / places[0], identity["images"]
    if marker.exists():
        facts, wanted = json.loads(marker.read_text()), json.loads(json.dumps(identity))  # tuples become lists
        if differing := [
            f"{key}: {facts.get(key)!r} there, {value!r} wanted"
            for key, value in wanted.items()
            if facts.get(key) != value
        ]:
            found = "; ".join(differing)
            raise CrowdFilesError(f"{root} holds another data set ({found}); choose another folder or remove it")
        return CrowdData(root, False, images, facts["persons"], facts.get("broken", {}))
    begun, parts = root / _BEGUN, []
    if not begun.exists() and root.is_dir() and any(not path.name.startswith(".") for path in root.iterdir()):
        raise CrowdFilesError(f"{root} holds other files and no data set of this command; choose a new folder (-o)")
    write_bytes_atomic(begun, b"")
    for number in range(images):
        parts.append(make(number))
        if progress is not None:
            progress(number + 1, images)
    persons = write_people(root, parts, *places[1:])
    facts = {**identity, "persons": persons, **({} if broken is None else {"broken": broken})}
    for name, text in pages(facts).items():
        write_bytes_atomic(root / name, text.encode())
    write_json_atomic(marker, facts)
    begun.unlink(missing_ok=True)
    return CrowdData(root, True, images, persons, broken or {})


def encode_picture(picture: Picture) -> bytes:
    """A picture as the JPEG that all synthetic data sets hold."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture.rgb), quality=_JPEG_QUALITY)


def write_map(folder: Path, name: str, values: np.ndarray) -> None:
    """Write the (H, W) map of an image as npy, named as the image is."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes_atomic((folder / name).with_suffix(".npy"), buffer.getvalue())


def person_rows(
    name: str, number: int, scene: CrowdScene, of_image: Mapping[str, Any] = MappingProxyType({})
) -> PersonRows:
    """Rows of the people of one image; `of_image`: further columns of the truth, one value for all."""
    crowd, truth, labels, masks = scene.crowd, scene.truth, scene.labels, scene.masks
    people, view = crowd.num_people, crowd.view
    uv = truth.vertices[..., :2] / truth.vertices[..., 2:].clip(0.05) * view.focal + (view.width / 2, view.height / 2)
    uv = uv.clip(0, (view.width, view.height))  # boxes are of whole bodies, cut at the picture's borders
    given = {
        "pose": labels.pose,
        "betas": np.pad(labels.betas, ((0, 0), (0, NUM_BETAS - labels.betas.shape[1]))),
        "transl": labels.transl,
        "bbox_xyxy": np.concatenate([uv.min(axis=1), uv.max(axis=1)], axis=-1).astype(np.float32),
        "intrinsics": np.repeat(scene.intrinsics[None], people, axis=0),
        "keypoints": scene.keypoints,
        "age_years": labels.age,
        "male_prob": labels.male_prob,
        "mask_rle": np.array([encode_rle(mask) for mask in masks], object),
        "mask_size": np.tile(np.array(masks.shape[1:], dtype=np.int32), (people, 1)),
    }
    shared = {"image_name": name, "image_number": np.int64(number), **of_image}
    columns = {column: np.repeat(np.asarray(value)[None], people, axis=0) for column, value in shared.items()}
    columns |= {
        "transl": truth.transl,
        "pelvis": truth.joints[:, 0],
        "pose": truth.pose,
        "betas": truth.betas,
        "height": truth.height,
        "height_class": crowd.height_class.astype(np.int64),
        "age_years": crowd.age.astype(np.float64),
        "label_factor": labels.factor,
        "disparity_line": np.tile(np.array(scene.depth[1]), (people, 1)),
    }
    return PersonRows(given, columns)


def write_people(root: Path, parts: Sequence[PersonRows], labels: str, sidecar: str) -> int:
    """Write label file, sidecar and truth below `root`, row i of each the same person; how many there are."""
    given, truth = (
        {name: np.concatenate([getattr(part, side)[name] for part in parts]) for name in getattr(parts[0], side)}
        for side in ("labels", "truth")
    )
    rows = LabelRows(*(given[name] for name in ("pose", "betas", "transl", "bbox_xyxy", "intrinsics")))
    write_camerahmr(root / labels, truth["image_name"], rows, given["keypoints"])
    write_sidecar(
        root / sidecar,
        np.arange(len(rows.pose)),
        age_years=given["age_years"],
        male_prob=given["male_prob"],
        mask_rle=given["mask_rle"].tolist(),
        mask_height=given["mask_size"][:, 0],
        mask_width=given["mask_size"][:, 1],
    )
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **truth)
    write_bytes_atomic(root / TRUTH, buffer.getvalue())
    return len(rows.pose)


def write_synth(
    root: Path,
    kind: Difficulty,
    images: int,
    seed: int,
    body: BodyModel,
    progress: Callable[[int, int], None] | None = None,
) -> CrowdData:
    """Write crowds of a difficulty (`difficulty.choose_difficulty`) as `write_crowds` does.

    Raises:
        CrowdFilesError: the folder holds a data set of other settings.
        AnnyMissing: people of Anny are wanted and the package is not installed.
    """
    options = dataclasses.asdict(kind)
    named = {"difficulty": options.pop("name"), "options": {k: v for k, v in options.items() if k != "meaning"}}
    identity = {"version": VERSION, "seed": seed, "images": images, "body_sha256": body.sha256, **named}

    def make(number: int) -> PersonRows:
        scene, name = SynthScene(seed, number, body, kind), f"{number // 1000:03d}/{number:06d}.jpg"
        disparity, view = scene.depth[0], scene.crowd.view
        rows = person_rows(
            name, number, scene, {"image_size": [view.height, view.width], "intrinsics": view.intrinsics}
        )
        write_bytes_atomic(root / "images" / name, encode_picture(scene.picture))
        write_map(root / "depth", name, METRES_PER_DEPTH / disparity if kind.metric_error else disparity)
        return rows

    def pages(facts: dict[str, Any]) -> dict[str, str]:
        return {"dataset.yaml": _dataset(kind, body), "README.md": _readme(kind, facts)}

    return write_crowds(root, (MARKER, LABELS, SIDECAR), identity, make, pages, progress)


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
    options = "\n".join(f"- `{name}`: {value}" for name, value in facts["options"].items())
    columns = "\n".join(f"- `{name}`: {meaning}" for name, meaning in TRUTH_COLUMNS.items())
    who = "procedural bodies"
    if kind.bodies == "anny":
        who = "bodies of Anny (code Apache-2.0, data CC0) with labels of the stand-in body fitted to what is seen"
    return f"""\
# Synthetic crowds, difficulty {kind.name}

{facts["images"]} images, {facts["persons"]} people, seed {facts["seed"]}: {kind.meaning}.
Nobody here is real: {who}, on level ground, seen by a pinhole camera. Free to use (Apache-2.0).

    dto manifest build dataset.yaml --data-root . -o manifest.parquet
    dto run manifest.parquet -o run{" --set depth.kind=metric_depth" if kind.metric_error else ""}
    dto eval synthetic run --truth . --body BODY

Options (`dto_pipeline/lab/difficulty.py` says what each means):

{options}

Columns of `truth.npz`, row i = label row i:

{columns}
"""
