"""Which people of two lists are the same person: pairs, overlap of boxes, agreement in the image, assignment.

Pure arrays. *Queries* are predicted people, *references* the bodies they are compared with. The measure is PCKh's
(Andriluka et al., CVPR 2014) at 0.6: a keypoint agrees within 0.6 of the head's size, and two people are the same if
more than half of the query's visible keypoints agree. A query without visible keypoints is compared by the overlap of
the boxes around both bodies' joints. Metres in the camera frame, pixels in the image; joints are smplx's 45.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

HEAD_FACTOR = 0.6  # a keypoint agrees within this many head sizes
MIN_SHARE = 0.5  # two people are the same above this share of agreeing keypoints, or of overlap (strict)
MIN_CONFIDENCE = 0.3  # a keypoint below this confidence is not visible
_NECK, _EARS = 12, (27, 28)
_HEAD_TOP = 1.75  # neck to head top over neck to mid-ear: SMPL's joints end at the ears; 1.72 on the stand-in body
_NEAREST = 0.05  # joints nearer to the camera's plane than this have no image [m]
_NEARNESS_WEIGHT = 1e-3  # far below one keypoint of 45: decides between equal shares only
_PAIRS_AT_ONCE = 1 << 15  # bounds memory: 45 distances each


@dataclass(frozen=True)
class BodyViews:
    """n bodies as the camera sees them."""

    joints: np.ndarray  # (n, 45, 2) float64 [px], NaN where a joint is not in front of the camera
    head: np.ndarray  # (n,) float64 size of the head [px]
    box: np.ndarray  # (n, 4) float64 left, top, right, bottom of the joints [px], NaN if none is in front

    def __getitem__(self, index: np.ndarray) -> BodyViews:
        return BodyViews(self.joints[index], self.head[index], self.box[index])


def view_bodies(joints: np.ndarray, intrinsics: np.ndarray) -> BodyViews:
    """Project bodies.

    PCKh's size of the head comes from an annotated box; here it is the length from the neck to the head top, on the
    line from the neck through the middle of the ears, as if that line were parallel to the image.

    Args: joints (n, 45, 3) in the camera frame [m]; intrinsics (n, 3, 3) [px].
    """
    joints, intrinsics = np.asarray(joints, np.float64), np.asarray(intrinsics, np.float64)
    focal, z = intrinsics[:, [0, 1], [0, 1]], joints[..., 2:]
    neck = joints[:, _NECK]
    with np.errstate(invalid="ignore", over="ignore"):  # of bodies that are not finite
        seen = np.where(z > _NEAREST, joints[..., :2] / np.maximum(z, _NEAREST), np.nan)
        points = seen * focal[:, None] + intrinsics[:, None, :2, 2]
        length = _HEAD_TOP * np.linalg.norm(joints[:, _EARS].mean(axis=1) - neck, axis=-1)
        head = focal.mean(axis=1) * length / np.maximum(neck[:, 2], _NEAREST)
    return BodyViews(points, head, joint_boxes(points))


def joint_boxes(joints: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """(..., 4) float64 left, top, right, bottom around some of the joints (..., J, 2) [px]; NaN around none.

    counted: (..., J) bool, None = those that are finite.
    """
    points = np.asarray(joints, np.float64)
    seen = np.all(np.isfinite(points), axis=-1, keepdims=True) if counted is None else counted[..., None]
    low, high = np.where(seen, points, np.inf).min(-2), np.where(seen, points, -np.inf).max(-2)
    return np.where(seen.any(-2), np.concatenate([low, high], -1), np.nan)


def box_iou(one: np.ndarray, other: np.ndarray, border: float = 0.0) -> np.ndarray:
    """(...) float64 intersection over union of boxes (..., 4); NaN where a box is unknown or has no area.

    border: 0 = corners are points of the plane; 1 = the last pixel belongs to a box, as published metrics have it.
    """
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2]) + border
        shared = sides.clip(0).prod(-1)
        area, other_area = ((box[..., 2:] - box[..., :2] + border).clip(0).prod(-1) for box in (one, other))
        return np.where((area > 0) & (other_area > 0), shared / (area + other_area - shared), np.nan)


def pairs_within(image: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of people in the same image: positions (k,) in `image` (n,) and (k,) in `other` (m,), the first in
    order."""
    order = np.argsort(other, kind="stable")
    start = np.searchsorted(other[order], image, "left")
    count = np.searchsorted(other[order], image, "right") - start
    first = np.repeat(np.arange(len(image)), count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first, order[np.repeat(start, count) + within]


def compare_people(
    keypoints: np.ndarray, queries: BodyViews, references: BodyViews, pairs: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """How well the two people of each pair agree.

    Args:
        keypoints: (n, 45, 3) of the queries: u, v [px], confidence; nothing visible = compared by overlap.
        pairs: (k,) positions in queries and in references.

    Returns:
        share (k,) float64 in 0 .. 1: of the query's visible keypoints within `HEAD_FACTOR` head sizes of the joints of
        the reference, or the intersection over union of the boxes where no keypoint is visible.
        distance (k,) float64 in 0 .. 1, for pairs of equal share: mean distance over that radius, or 1 - overlap.
    """
    parts, (first, second) = [np.zeros((2, 0))], pairs
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        own, other = (side[start : start + _PAIRS_AT_ONCE] for side in (first, second))
        points = keypoints[own].astype(np.float64)
        visible = points[..., 2] >= MIN_CONFIDENCE
        seen, overlap = visible.sum(axis=1), np.nan_to_num(box_iou(queries.box[own], references.box[other]))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            away = np.linalg.norm(points[..., :2] - references.joints[other], axis=-1)
            away /= HEAD_FACTOR * references.head[other][:, None]
            agreeing = (visible & (away <= 1)).sum(axis=1) / seen
            mean_away = np.where(visible, np.where(away <= 1, away, 1.0), 0.0).sum(axis=1) / seen
        parts.append(np.where(seen > 0, [agreeing, mean_away], [overlap, 1 - overlap]))
    share, distance = np.concatenate(parts, axis=1)
    return share, distance


def assign_people(
    share: np.ndarray, distance: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], image: np.ndarray
) -> np.ndarray:
    """Assign every query at most one reference of its image, each reference once, with the largest sum of shares.

    Args:
        share, distance: (k,) of the pairs, see `compare_people`.
        pairs: (k,) queries and references, all of `pairs_within`.
        image: (n,) int64 image of each query.

    Returns: (n,) int64 position of each query's reference, -1 = none.
    """
    gain = np.where(share > MIN_SHARE, share - _NEARNESS_WEIGHT * distance, 0.0)
    partner, (first, second) = np.full(len(image), -1), pairs
    for block in np.split(np.arange(len(first)), np.flatnonzero(np.diff(image[first])) + 1):
        if not gain[block].any():
            continue
        matrix = gain[block].reshape(len(np.unique(first[block])), -1)
        rows, columns = linear_sum_assignment(matrix, maximize=True)
        chosen = block.reshape(matrix.shape)[rows, columns][matrix[rows, columns] > 0]
        partner[first[chosen]] = second[chosen]
    return partner


def suppress_duplicates(better: np.ndarray, worse: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Non-maximum suppression: (n,) int64 position of the best kept person whom each one duplicates, -1 = is kept.

    Args:
        better, worse: (k,) positions of two people who are the same; the better one has the lower rank.
        rank: (n,) int64 order of precedence, each once.
    """
    original = np.full(len(rank), -1)
    for pair in np.lexsort((rank[better], rank[worse])):  # by rank, so that it is known whether the better one is kept
        if original[worse[pair]] < 0 and original[better[pair]] < 0:
            original[worse[pair]] = better[pair]
    return original
