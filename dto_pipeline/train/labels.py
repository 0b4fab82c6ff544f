"""The people of one image as labels tell them, and as targets once the image is varied. Knows no file.

A source of labels is anything that makes `ImageLabels`. Metres, radians, pixels of the photograph.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.augment import MIRROR_JOINTS, NUM_JOINTS, Bodies, Draw, Varied, inside_image, move_points, vary
from dto_pipeline.train.data_config import AugmentConfig
from dto_pipeline.train.targets import cut_boxes, mark_cells, person_boxes, project_vertices

_HIPS = [1, 2]
_FIRST_JOINTS = 22  # a person of whom none of these is seen spoils a variation
_LEAST_SIDE = 1e-6  # of a box, share of S
_LEAST_SEEN = 2  # joints that make a box


@dataclass(frozen=True)
class ImageLabels:
    """The P people of one image. Arrays are not changed in place."""

    intrinsics: np.ndarray  # (3, 3) float64 [px]
    has_camera: bool
    has_body: np.ndarray  # (P,) bool; pose, betas and transl mean nothing where it is False
    pose: np.ndarray  # (P, 72) float32 axis-angle, root first
    betas: np.ndarray  # (P, 11) float32
    transl: np.ndarray  # (P, 3) float32 [m]
    boxes: np.ndarray  # (P, 4) float32 left, top, right, bottom [px], NaN = unknown
    keypoints: np.ndarray  # (P, 24, 2) float32 of people without a body [px], NaN = unknown
    z_covariance: np.ndarray  # (P, P) float32 [m2], NaN = unknown
    depth_layer: np.ndarray  # (P,) int64, -1 = unknown
    trusted: bool = True  # poses, shapes and distances are labels; False: only what is seen in the picture
    complete: bool = True  # everybody in the image is there

    @property
    def num_people(self) -> int:
        return len(self.has_body)

    def take(self, people: np.ndarray) -> ImageLabels:
        """The people named by an index or a mask, in that order."""
        names = ("has_body", "pose", "betas", "transl", "boxes", "keypoints", "depth_layer")
        taken = {name: getattr(self, name)[people] for name in names}
        return dataclasses.replace(self, **taken, z_covariance=self.z_covariance[people][:, people])


@dataclass(frozen=True)
class SeenPeople:
    """The P people whom a varied image shows: rows of `targets.Targets`, without their image."""

    people: dict[str, np.ndarray]  # by name of `Targets`, (P, ...)
    z_covariance: np.ndarray  # (P, P)
    scale_map: np.ndarray  # (n, 2)
    intrinsics: np.ndarray  # (3, 3)
    image_focal: float  # [px], 0 = unknown
    complete: bool
    mapped: bool
    corners: np.ndarray  # (P, 4) of the boxes [px]
    good: bool  # somebody is there, and of everybody something

    @property
    def num_people(self) -> int:
        return len(self.z_covariance)


def see_people(
    labels: ImageLabels, size: tuple[int, int], side: int, draw: Draw, body: BodyModel, edges: np.ndarray,
    config: AugmentConfig, least_joints: int, most_people: int,
) -> tuple[SeenPeople, Varied]:  # fmt: skip
    """Labels -> targets of a varied image.

    Args:
        labels: of the photograph.
        size: its width and height [px].
        side: S.
        draw: how it is varied.
        body, edges: the model of the labels, and the edges of its mesh.
        config: rules.
        least_joints: a body with fewer of its 45 joints inside is left out.
        most_people: the nearest are kept.
    """
    bodies = Bodies(labels.pose, labels.betas, labels.transl, labels.intrinsics[None])
    varied = vary(bodies, *size, side, draw, body, config.half_pixel)
    points, seen = _image_joints(labels, size, side, draw, varied, config)
    inside = inside_image(points, varied.frame) & seen
    boxes = _boxes(labels, points, np.where(labels.has_body[:, None], seen, inside), size, side, draw, varied)
    shown = np.where(
        labels.has_body, inside.sum(1) >= least_joints, inside.any(1) | _centre_inside(boxes, varied, side)
    )
    shown &= np.isfinite(boxes).all(1) & (boxes[:, 2:] > _LEAST_SIDE).all(1)
    distance = np.where(labels.has_body, varied.joints[:, 0, 2], np.inf)
    kept = np.flatnonzero(shown)
    kept = np.sort(kept[np.argsort(distance[kept], kind="stable")[:most_people]])
    good = bool(len(kept)) and bool((~labels.has_body[kept] | inside[kept, :_FIRST_JOINTS].any(1)).all())
    counted = inside | (labels.has_body[:, None] if config.all_joints_count else False)
    focal = float(varied.intrinsics[0, 0, 0]) if labels.has_camera else 0.0
    own = labels.has_body[kept] & labels.trusted
    flat = boxes[kept].astype(np.float32)
    people = {
        "has_body": own,
        "boxes": flat,
        "poses": varied.pose[kept].astype(np.float32),
        "betas": labels.betas[kept],
        "j3ds": varied.joints[kept].astype(np.float32),
        "j2ds": np.where(counted[kept][..., None], points[kept], 0).astype(np.float32),
        "j2ds_mask": np.repeat(counted[kept][..., None], 2, axis=-1),
        "transl": varied.transl[kept].astype(np.float32),
        "pelvis_z": varied.joints[kept, 0, 2].astype(np.float32),
        "focals": np.full(len(kept), focal, np.float32),
        "depth_layer": labels.depth_layer[kept],
    }
    corners = np.concatenate([flat[:, :2] - flat[:, 2:] / 2, flat[:, :2] + flat[:, 2:] / 2], axis=1) * side
    return SeenPeople(
        people=people,
        z_covariance=labels.z_covariance[kept][:, kept],
        scale_map=_cells(labels, kept, varied, flat, body, edges, config.clamp_cells),
        intrinsics=varied.intrinsics[0],
        image_focal=focal,
        complete=labels.complete,
        mapped=config.clamp_cells or bool(labels.has_body[kept].all()),
        corners=corners,
        good=good,
    ), varied


def nobody(size: tuple[int, int]) -> SeenPeople:
    """An image in which truly nobody is: `size` w, h."""
    none = np.zeros((0, 2))
    flat: dict[str, Any] = {
        "has_body": np.zeros(0, bool),
        "boxes": (4,),
        "poses": (72,),
        "betas": (11,),
        "j3ds": (NUM_JOINTS, 3),
    }
    flat |= {"j2ds": (NUM_JOINTS, 2), "j2ds_mask": np.zeros((0, NUM_JOINTS, 2), bool), "transl": (3,), "pelvis_z": ()}
    flat |= {"focals": (), "depth_layer": np.zeros(0, np.int64)}
    people = {k: np.zeros((0, *v), np.float32) if isinstance(v, tuple) else v for k, v in flat.items()}
    cells = mark_cells(np.zeros((0, 0, 2)), np.zeros(0), np.zeros(0), size, np.zeros((0, 2), np.int64), clamp=False)
    camera = np.array([[max(size), 0, size[0] / 2], [0, max(size), size[1] / 2], [0, 0, 1]], np.float64)
    return SeenPeople(
        people, np.zeros((0, 0), np.float32), cells, camera, 0.0, True, True, np.concatenate([none, none], 1), False
    )


def _image_joints(
    labels: ImageLabels, size: tuple[int, int], side: int, draw: Draw, varied: Varied, config: AugmentConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(P, 45, 2) places in the varied image and (P, 45) whether they are known."""
    names = list(MIRROR_JOINTS) if draw.flip else list(range(len(MIRROR_JOINTS)))
    keypoints = move_points(labels.keypoints[:, names], size, side, draw, varied.frame)
    marked = np.isfinite(keypoints).all(-1)
    if not config.vary_flat:
        marked[:, _HIPS] = False
    has_body = labels.has_body[:, None]
    beyond = ((0, 0), (0, NUM_JOINTS - len(names)))
    points = np.where(has_body[..., None], varied.image_joints, np.pad(keypoints, (*beyond, (0, 0))))
    in_front = (varied.joints[..., 2] > 0) | config.all_joints_count
    return np.where(np.isfinite(points), points, 0.0), np.where(has_body, in_front, np.pad(marked, beyond))


def _boxes(
    labels: ImageLabels,
    points: np.ndarray,
    seen: np.ndarray,
    size: tuple[int, int],
    side: int,
    draw: Draw,
    varied: Varied,
) -> np.ndarray:
    """(P, 4) centred boxes as shares of S: around the joints; of people without a body joined with the labelled box."""
    own = person_boxes(points, seen, varied.frame.size, side)
    given = labels.boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(np.float64)  # four corners
    moved = move_points(given, size, side, draw, varied.frame) / side
    low, high = moved.min(1), moved.max(1)
    enough = (seen.sum(1) >= _LEAST_SEEN)[:, None] & np.isfinite(own).all(1)[:, None]
    low = np.where(enough, np.fmin(low, own[:, :2] - own[:, 2:] / 2), low)
    high = np.where(enough, np.fmax(high, own[:, :2] + own[:, 2:] / 2), high)
    return np.where(labels.has_body[:, None], own, cut_boxes((low + high) / 2, high - low, varied.frame.size, side))


def _centre_inside(boxes: np.ndarray, varied: Varied, side: int) -> np.ndarray:
    """(P,) bool: cut to the image, something of the box is left."""
    least = 1 / side
    return (boxes[:, 2] > least) & (boxes[:, 3] > least)


def _cells(
    labels: ImageLabels,
    kept: np.ndarray,
    varied: Varied,
    boxes: np.ndarray,
    body: BodyModel,
    edges: np.ndarray,
    clamp: bool,
) -> np.ndarray:
    """The scale map of those who have a body."""
    shaped = labels.has_body[kept]
    rows = kept[shaped]
    parts = (
        torch.from_numpy(np.ascontiguousarray(p, dtype=np.float32))
        for p in (varied.pose[rows], labels.betas[rows], varied.transl[rows])
    )
    vertices = body.vertices(*parts).numpy().astype(np.float64)
    places = project_vertices(vertices, varied.intrinsics, behind=clamp)
    distance = varied.joints[rows, 0, 2] / varied.intrinsics[0, 0, 0]
    scale = np.hypot(*boxes[shaped, 2:].T).clip(0, 1)
    return mark_cells(places, distance, scale, varied.frame.size, edges, clamp)
