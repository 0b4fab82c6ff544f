"""Synthetic crowds as files in the public formats: pictures, depth maps, label file, sidecar and the truth.

Knows file formats, the demo's own names, and how to break what `breakages` says; knows nothing of how scenes come
about. `synth` writes through the same functions under names of its own. Equal input gives identical bytes. Metres,
camera frame.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.files import write_bytes_atomic
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.sources.camerahmr import write_camerahmr
from dto_pipeline.data.sources.rows import LabelRows
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.lab.crowd import Crowd
from dto_pipeline.lab.people import Bodies, Labels
from dto_pipeline.lab.render import Picture
from dto_pipeline.lab.scenes import DemoScene

LABELS = "labels/demo-release.npz"
SIDECAR = "labels/demo-sidecar.parquet"
TRUTH = "truth.npz"
IMAGE_TRUTH = {
    "image_name": "image of the person, as in the label file",
    "image_number": "number of the image",
}
PERSON_TRUTH = {
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
TRUTH_COLUMNS = IMAGE_TRUTH | PERSON_TRUTH | {"broken": "what is broken in the person's image, empty = nothing"}
_JPEG_QUALITY = 93
_KEPT_OF_TRUNCATED = 0.4  # of the bytes
_WRONG_SIZE = 1.5  # camera of an image this many times as large


@dataclass(frozen=True)
class PersonRows:
    """n people of one or more images, one row each, as they go into the files."""

    labels: LabelRows
    keypoints: np.ndarray  # (n, 44, 3) float32 u, v [px], confidence
    age_years: np.ndarray  # (n,) float32 estimated
    male_prob: np.ndarray  # (n,) float32 estimated
    mask_rle: list[bytes]  # n
    mask_size: np.ndarray  # (n, 2) int32: H, W
    truth: dict[str, np.ndarray]  # n rows each; which columns is up to the data set


def image_name(number: int) -> str:
    """Name of an image in the label file, relative to the images folder."""
    return f"insta-train/{number // 12:02d}/{number % 12 // 4:02d}/{number:06d}.jpg"


def write_pixels(root: Path, scene: DemoScene, broken: str = "") -> None:
    """Write picture and depth map of one scene, spoilt as `broken` (a key of `breakages.BREAKAGES`) says."""
    jpeg = encode_picture(scene.picture)
    if broken == "truncated_image":
        jpeg = jpeg[: int(_KEPT_OF_TRUNCATED * len(jpeg))]
    picture = root / "images" / image_name(scene.number)
    if broken != "missing_image":
        write_bytes_atomic(picture, jpeg)
    disparity = scene.disparity.values
    if broken == "zero_disparity":
        disparity = np.zeros_like(disparity)
    write_map(root / "depth", image_name(scene.number), disparity)


def encode_picture(picture: Picture) -> bytes:
    """A picture as the JPEG that all synthetic data sets hold."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture.rgb), quality=_JPEG_QUALITY)


def write_map(folder: Path, name: str, values: np.ndarray) -> None:
    """Write the (H, W) map of an image as npy, named as the image is."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes_atomic((folder / name).with_suffix(".npy"), buffer.getvalue())


def person_rows(scene: DemoScene, broken: str = "") -> PersonRows:
    """Rows of the P people of one scene, spoilt as `broken` says."""
    labels, crowd, people = scene.labels, scene.crowd, scene.crowd.num_people
    pose, masks = labels.pose.copy(), scene.masks
    intrinsics = crowd.view.intrinsics
    if broken == "nan_pose":
        pose[-1, 5] = np.nan
    if broken == "wrong_size":
        intrinsics = intrinsics * [[_WRONG_SIZE], [_WRONG_SIZE], [1.0]]
    if broken == "empty_mask":
        masks = masks & (np.arange(people) > 0)[:, None, None]
    line = (scene.disparity.scale, scene.disparity.offset)
    image = image_truth(image_name(scene.number), scene.number, people)
    rows = LabelRows(
        pose=pose,
        betas=np.pad(labels.betas, ((0, 0), (0, NUM_BETAS - labels.betas.shape[1]))),
        transl=labels.transl,
        bbox_xyxy=scene.boxes,
        intrinsics=np.repeat(intrinsics[None], people, axis=0),
    )
    return PersonRows(
        labels=rows,
        keypoints=scene.keypoints,
        age_years=labels.age,
        male_prob=labels.male_prob,
        mask_rle=[encode_rle(mask) for mask in masks],
        mask_size=np.tile(np.array(masks.shape[1:], dtype=np.int32), (people, 1)),
        truth=image | person_truth(crowd, scene.truth, labels, line) | {"broken": np.full(people, broken)},
    )


def join_rows(parts: list[PersonRows]) -> PersonRows:
    """The rows of several scenes of one data set, one after the other."""

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    fields = ("pose", "betas", "transl", "bbox_xyxy", "intrinsics")
    labels: dict[str, Any] = {name: np.concatenate([getattr(part.labels, name) for part in parts]) for name in fields}
    return PersonRows(
        labels=LabelRows(**labels),
        keypoints=joined("keypoints"),
        age_years=joined("age_years"),
        male_prob=joined("male_prob"),
        mask_rle=[rle for part in parts for rle in part.mask_rle],
        mask_size=joined("mask_size"),
        truth={name: np.concatenate([part.truth[name] for part in parts]) for name in parts[0].truth},
    )


def write_people(root: Path, people: PersonRows, labels: str = LABELS, sidecar: str = SIDECAR) -> None:
    """Write label file, sidecar and truth below `root`; row i of each is the same person."""
    write_camerahmr(root / labels, people.truth["image_name"], people.labels, people.keypoints)
    write_sidecar(
        root / sidecar,
        np.arange(len(people.age_years)),
        age_years=people.age_years,
        male_prob=people.male_prob,
        mask_rle=people.mask_rle,
        mask_height=people.mask_size[:, 0],
        mask_width=people.mask_size[:, 1],
    )
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **people.truth)
    write_bytes_atomic(root / TRUTH, buffer.getvalue())


def image_truth(name: str, number: int, people: int) -> dict[str, np.ndarray]:
    """`IMAGE_TRUTH` of one image, a row for each of its people."""
    return {"image_name": np.full(people, name), "image_number": np.full(people, number, dtype=np.int64)}


def person_truth(crowd: Crowd, truth: Bodies, labels: Labels, line: tuple[float, float]) -> dict[str, np.ndarray]:
    """`PERSON_TRUTH` of the P people of one image.

    Args:
        crowd: as planned; truth: their true bodies; labels: what the label file says of them.
        line: a and b of disparity = a / z + b.
    """
    return {
        "transl": truth.transl,
        "pelvis": truth.joints[:, 0],
        "pose": truth.pose,
        "betas": truth.betas,
        "height": truth.height,
        "height_class": crowd.height_class.astype(np.int64),
        "age_years": crowd.age.astype(np.float64),
        "label_factor": labels.factor,
        "disparity_line": np.tile(np.array(line), (crowd.num_people, 1)),
    }
