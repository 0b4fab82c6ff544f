"""From labelled bodies to pixels: outlines and joints, matching of found masks to people, crops of faces and bodies.

No networks. A pixel that two people without masks claim counts for neither, because the method is to find out which of
them stands in front. Pixels are those of the person map (see `maths.camera.map_size`) unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from dto_pipeline.maths.camera import map_intrinsics, project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.rasterizer import rasterize
from dto_pipeline.scene import Scene

CROP_SIDE = 224  # of crops [px]
_NEAREST = 0.05  # a label nearer than this, or behind the camera, has no outline [m]
_BODY_JOINTS = 24  # of smplx's 45: those of the tree
_FACE = slice(24, 29)  # nose, eyes and ears of smplx's 45 joints
_NECK = 12
_FACE_REACH = 1.1  # half side of a face crop, in distances from neck to the middle of the face
_BODY_REACH = 1.15  # a body crop is this many times as large as the box of the joints


@dataclass(frozen=True)
class Instances:
    """People found in one image, at person-map size."""

    masks: np.ndarray  # (Q, h, w) bool
    score: np.ndarray  # (Q,) float32 in 0 .. 1: of the class times the mean over the mask


@dataclass(frozen=True)
class Attributes:
    """Ages and genders of n people."""

    age_years: np.ndarray  # (n,) float32, NaN = unknown
    male_prob: np.ndarray  # (n,) float32, NaN = unknown


@torch.no_grad()
def render_silhouettes(scene: Scene, body: BodyModel, max_side: int) -> np.ndarray:
    """(P, h, w) bool: pixels that each labelled body covers on its own, none for labels that cannot be used.

    h and w are those of the scene's masks; `max_side`: longest side of person maps [px].
    """
    assert scene.masks is not None
    people = usable_people(scene)
    silhouettes = np.zeros(scene.masks.shape, bool)
    if len(people) == 0:
        return silhouettes
    device = body.faces.device
    vertices = body.vertices(*_label(scene, people, device))
    image_size, size = torch.tensor([[scene.height, scene.width]]), torch.tensor([scene.masks.shape[1:]])
    camera = map_intrinsics(torch.from_numpy(scene.intrinsics)[None], image_size, size, max_side).to(device)
    present = torch.ones(len(people), 1, dtype=torch.bool, device=device)
    sizes = size.to(device).expand(len(people), 2)
    raster = rasterize(vertices[:, None], body.faces, camera.expand(len(people), 3, 3), sizes, present)
    silhouettes[people] = (raster.person >= 0).cpu().numpy()
    return silhouettes


@torch.no_grad()
def project_joints(scene: Scene, body: BodyModel) -> np.ndarray:
    """(P, 45, 2) float64 positions of smplx's joints in the image [px]; NaN for labels that cannot be used."""
    joints = np.full((scene.num_people, 45, 2), np.nan)
    people = usable_people(scene)
    if len(people):
        points = body.joints(*_label(scene, people, body.faces.device)).double().cpu()
        joints[people] = project(points, torch.from_numpy(scene.intrinsics)).numpy()
    return joints


def claim_pixels(masks: np.ndarray, has_mask: np.ndarray, silhouettes: np.ndarray) -> np.ndarray:
    """(P, h, w) bool masks; people without one get their outline minus what anybody else claims.

    Args: masks (P, h, w) bool; has_mask (P,) bool, whose mask is real and kept; silhouettes (P, h, w) bool.
    """
    claims = np.where(has_mask[:, None, None], masks, silhouettes)
    alone = claims.sum(0) == 1
    return np.where(has_mask[:, None, None], masks, claims & alone)


def usable_people(scene: Scene) -> np.ndarray:
    """(n,) indices of people whose labels can be drawn."""
    sound = np.array([problem is None for problem in scene.person_problem], bool)
    finite = np.isfinite(scene.transl).all(1) & (scene.transl[:, 2] > _NEAREST)
    return np.flatnonzero(sound & finite)


def _label(scene: Scene, people: np.ndarray, device: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(values[people]).to(device) for values in (scene.pose, scene.betas, scene.transl)]


def match_instances(
    instances: Instances, silhouettes: np.ndarray, joints: np.ndarray, min_match: float
) -> tuple[np.ndarray, np.ndarray]:
    """Assign instances to people: (P,) int64 index of the instance, -1 = none, and (P,) float64 match, NaN = none.

    Args:
        silhouettes: (P, h, w) bool of the labelled bodies, each on its own; joints: (P, J, 2) of the same, NaN or
            outside the map = not counted.
        min_match: least match, the mean of IoU and of the share of joints inside.
    """
    people, found = len(silhouettes), len(instances.masks)
    index, match = np.full(people, -1), np.full(people, np.nan)
    if people == 0 or found == 0:
        return index, match
    flat, other = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (silhouettes, instances.masks))
    shared = flat @ other.T
    iou = shared / np.maximum(flat.sum(1)[:, None] + other.sum(1) - shared, 1)
    height, width = instances.masks.shape[1:]
    column, row = np.floor(np.nan_to_num(joints, nan=-1.0).clip(-1, 1 << 20)).astype(np.int64).transpose(2, 0, 1)
    counted = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = instances.masks[:, np.where(counted, row, 0), np.where(counted, column, 0)] & counted  # (Q, P, J)
    inside = (hit.sum(2) / np.maximum(counted.sum(1), 1)).T  # (P, Q) share of joints in each mask; 0 where none counts
    quality = (iou + inside) / 2
    for person, instance in zip(*linear_sum_assignment(quality, maximize=True), strict=True):
        if quality[person, instance] >= min_match:
            index[person], match[person] = instance, quality[person, instance]
    return index, match


def map_joints(joints: np.ndarray, image: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(P, 24, 2) body joints in pixels of an h x w map, from (P, 45, 2) in those of an H x W image."""
    return joints[:, :_BODY_JOINTS] * (size[1] / image[1], size[0] / image[0])


def crop_people(scene: Scene, people: np.ndarray, body: BodyModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Face and body crops (n, 3, s, s) of some people, by their labelled bodies or, of bodies, by known boxes."""
    assert scene.image is not None
    joints = project_joints(scene, body)[people]
    face = joints[:, _FACE].mean(1)
    reach = _FACE_REACH * np.linalg.norm(face - joints[:, _NECK], axis=1, keepdims=True)
    faces = np.concatenate([face - reach, face + reach], axis=1)
    low, high = joints.min(1), joints.max(1)
    centre, half = (low + high) / 2, (high - low) / 2 * _BODY_REACH
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    known = scene.bbox_xyxy[people]
    boxes = np.where(np.isfinite(known).all(1, keepdims=True), known, boxes)
    return cut_crops(scene.image, faces), cut_crops(scene.image, boxes)


def cut_crops(image: np.ndarray, boxes: np.ndarray, side: int = CROP_SIDE) -> torch.Tensor:
    """(n, 3, side, side) float32 crops of one image in 0 .. 1, black outside.

    Args: image (H, W, 3) uint8 RGB; boxes (n, 4) left, top, right, bottom [px], widened to squares.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.float32) / 255
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    x = (centre[:, :1] + half * steps) / width * 2 - 1
    y = (centre[:, 1:] + half * steps) / height * 2 - 1
    grid = torch.from_numpy(np.stack(np.broadcast_arrays(x[:, None], y[:, :, None]), -1)).to(torch.float32)
    return functional.grid_sample(pixels.expand(len(boxes), -1, -1, -1), grid, align_corners=False)


def join_attributes(found: Sequence[Attributes]) -> Attributes:
    """The first known age and the first known gender of each person."""

    joined = found[0]
    for other in found[1:]:
        age, male = (
            np.where(np.isnan(own), new, own)
            for own, new in ((joined.age_years, other.age_years), (joined.male_prob, other.male_prob))
        )
        joined = Attributes(age, male)
    return joined
