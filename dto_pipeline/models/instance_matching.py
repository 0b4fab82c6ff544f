"""Which found instance is which labelled person's: one to one, by silhouette and joints. No networks here.

Pixels of the person map (see `maths.camera.map_size`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

_BODY_JOINTS = 24  # of smplx's 45: those of the tree


@dataclass(frozen=True)
class Instances:
    """People found in one image, at person-map size."""

    masks: np.ndarray  # (Q, h, w) bool
    score: np.ndarray  # (Q,) float32 in 0 .. 1: of the class times the mean over the mask


def match_instances(
    instances: Instances, silhouettes: np.ndarray, joints: np.ndarray, min_match: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which instance is whose.

    Args:
        instances: Q found; silhouettes: (P, h, w) bool of the labelled bodies, each on its own.
        joints: (P, J, 2) of the same in pixels of the person map; NaN or outside the map = not counted.
        min_match: mean of IoU and share of joints inside under which a pair is no match.

    Returns:
        (P,) int64 index of the instance, -1 = none, and (P,) float64 match, NaN = none.
    """
    people, found = len(silhouettes), len(instances.masks)
    index, match = np.full(people, -1), np.full(people, np.nan)
    if people == 0 or found == 0:
        return index, match
    quality = (_overlap(silhouettes, instances.masks) + _joints_inside(joints, instances.masks)) / 2
    for person, instance in zip(*linear_sum_assignment(quality, maximize=True), strict=True):
        if quality[person, instance] >= min_match:
            index[person], match[person] = instance, quality[person, instance]
    return index, match


def map_joints(joints: np.ndarray, image: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(P, 24, 2) body joints in pixels of an h x w map, from (P, 45, 2) in those of an H x W image."""
    return joints[:, :_BODY_JOINTS] * (size[1] / image[1], size[0] / image[0])


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P, Q) intersection over union of masks (P, h, w) and (Q, h, w)."""
    flat, other = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (first, second))
    shared = flat @ other.T
    union = flat.sum(1)[:, None] + other.sum(1) - shared
    return shared / np.maximum(union, 1)


def _joints_inside(joints: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(P, Q) share of each person's counted joints that lie in each mask; 0 where none counts."""
    height, width = masks.shape[1:]
    column, row = np.floor(np.nan_to_num(joints, nan=-1.0).clip(-1, 1 << 20)).astype(np.int64).transpose(2, 0, 1)
    counted = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = masks[:, np.where(counted, row, 0), np.where(counted, column, 0)] & counted  # (Q, P, J)
    return (hit.sum(2) / np.maximum(counted.sum(1), 1)).T
