"""Synthetic crowds as files in the public formats: pictures, depth maps, label file, sidecar, truth, and a marker.

The marker is a small JSON, written last, that says all a data set was made from: it exists = the data set is whole.
Knows file formats; knows nothing of how scenes come about. Equal input gives identical bytes. Metres, camera frame.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
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
from dto_pipeline.errors import DtoError
from dto_pipeline.lab.crowd import Crowd
from dto_pipeline.lab.people import Bodies, Labels
from dto_pipeline.lab.picture import Picture

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
_JPEG_QUALITY = 93


class CrowdFilesError(DtoError, ValueError):
    """A folder that holds no whole synthetic data set, or another one; says how they differ and what to do."""


@dataclass(frozen=True)
class PersonRows:
    """n people of one or more images, a row each."""

    told: dict[str, np.ndarray]  # what label file and sidecar say
    truth: dict[str, np.ndarray]  # columns of `TRUTH`

    def __len__(self) -> int:
        return len(self.told["pose"])


def recognise(marker: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Contents of the marker of a data set, if it is whole and the one wanted; None: it is still to be written.

    Args:
        identity: settings and versions that determine the data set; the marker holds at least these.

    Raises:
        CrowdFilesError: the folder holds a data set of other settings.
    """
    if not marker.exists():
        return None
    facts = json.loads(marker.read_text())
    wanted = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    differing = [
        f"{key}: {facts.get(key)!r} there, {value!r} wanted" for key, value in wanted.items() if facts.get(key) != value
    ]
    if differing:
        found = "; ".join(differing)
        raise CrowdFilesError(f"{marker.parent} holds another data set ({found}); choose another folder or remove it")
    return facts


def encode_picture(picture: Picture) -> bytes:
    """A picture as the JPEG that all synthetic data sets hold."""
    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture.rgb), quality=_JPEG_QUALITY)


def write_map(folder: Path, name: str, values: np.ndarray) -> None:
    """Write the (H, W) map of an image as npy, named as the image is."""
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    write_bytes_atomic((folder / name).with_suffix(".npy"), buffer.getvalue())


def person_rows(
    image: tuple[str, int],
    crowd: Crowd,
    truth: Bodies,
    labels: Labels,
    masks: np.ndarray,
    keypoints: np.ndarray,
    line: tuple[float, float],
    intrinsics: np.ndarray,
    of_image: Mapping[str, Any] | None = None,
) -> PersonRows:
    """Rows of the P people of one image.

    Args:
        image: its name and number; crowd: as planned; truth: the true bodies; labels: what the label file says.
        masks: (P, H, W) bool; keypoints: (P, 44, 3); line: a and b of disparity = a / z + b.
        intrinsics: (3, 3) K that the labels tell [px]; of_image: further columns of the truth, one value for all.
    """
    people, view = crowd.num_people, crowd.view
    uv = truth.vertices[..., :2] / truth.vertices[..., 2:].clip(0.05) * view.focal + (view.width / 2, view.height / 2)
    uv = uv.clip(0, (view.width, view.height))  # boxes are of whole bodies, cut at the picture's borders
    told = {
        "pose": labels.pose,
        "betas": np.pad(labels.betas, ((0, 0), (0, NUM_BETAS - labels.betas.shape[1]))),
        "transl": labels.transl,
        "bbox_xyxy": np.concatenate([uv.min(axis=1), uv.max(axis=1)], axis=-1).astype(np.float32),
        "intrinsics": np.repeat(intrinsics[None], people, axis=0),
        "keypoints": keypoints,
        "age_years": labels.age,
        "male_prob": labels.male_prob,
        "mask_rle": np.array([encode_rle(mask) for mask in masks], object),
        "mask_size": np.tile(np.array(masks.shape[1:], dtype=np.int32), (people, 1)),
    }
    shared = {"image_name": image[0], "image_number": np.int64(image[1]), **(of_image or {})}
    columns = {name: np.repeat(np.asarray(value)[None], people, axis=0) for name, value in shared.items()}
    columns |= {
        "transl": truth.transl,
        "pelvis": truth.joints[:, 0],
        "pose": truth.pose,
        "betas": truth.betas,
        "height": truth.height,
        "height_class": crowd.height_class.astype(np.int64),
        "age_years": crowd.age.astype(np.float64),
        "label_factor": labels.factor,
        "disparity_line": np.tile(np.array(line), (people, 1)),
    }
    return PersonRows(told, columns)


def write_people(root: Path, parts: Sequence[PersonRows], labels: str, sidecar: str) -> int:
    """Write label file, sidecar and truth below `root`, row i of each the same person; how many there are."""
    told, truth = (
        {name: np.concatenate([getattr(part, side)[name] for part in parts]) for name in getattr(parts[0], side)}
        for side in ("told", "truth")
    )
    rows = LabelRows(*(told[name] for name in ("pose", "betas", "transl", "bbox_xyxy", "intrinsics")))
    write_camerahmr(root / labels, truth["image_name"], rows, told["keypoints"])
    write_sidecar(
        root / sidecar,
        np.arange(len(rows.pose)),
        age_years=told["age_years"],
        male_prob=told["male_prob"],
        mask_rle=told["mask_rle"].tolist(),
        mask_height=told["mask_size"][:, 0],
        mask_width=told["mask_size"][:, 1],
    )
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **truth)
    write_bytes_atomic(root / TRUTH, buffer.getvalue())
    return len(rows.pose)
