"""Which predicted people are in the released labels already: agreement in the image, assignment, duplicates.

Pure tensors. *Queries* are predicted people, *references* the bodies they are compared with. The measure is PCKh's
(Andriluka et al., CVPR 2014) at 0.6: a keypoint agrees within 0.6 of the head's size, and two people are the same if
more than half of the query's visible keypoints agree. A query without visible keypoints is compared by the overlap of
the boxes around both bodies' joints. Metres in the camera frame, pixels in the image; joints are smplx's 45.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

from dto_pipeline.maths.camera import project

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

    joints: torch.Tensor  # (n, 45, 2) float64 [px], NaN where a joint is not in front of the camera
    head: torch.Tensor  # (n,) float64 size of the head [px]
    box: torch.Tensor  # (n, 4) float64 left, top, right, bottom of the joints [px], NaN if none is in front

    def __getitem__(self, index: torch.Tensor) -> BodyViews:
        return BodyViews(self.joints[index], self.head[index], self.box[index])


@dataclass(frozen=True)
class Queries:
    """n predicted people: their bodies, and the keypoints a detector saw."""

    views: BodyViews
    keypoints: torch.Tensor  # (n, 45, 2) float64 [px]
    visible: torch.Tensor  # (n, 45) bool; nowhere = compared by overlap


def view_bodies(joints: torch.Tensor, intrinsics: torch.Tensor) -> BodyViews:
    """Project bodies.

    PCKh's size of the head comes from an annotated box; here it is the length from the neck to the head top, on the
    line from the neck through the middle of the ears, were it parallel to the image.

    Args: joints (n, 45, 3) in the camera frame [m]; intrinsics (n, 3, 3) [px].
    """
    joints, intrinsics = joints.double(), intrinsics.double()
    in_front = (joints[..., 2] > _NEAREST)[..., None]
    points = torch.where(in_front, project(joints, intrinsics[:, None]), torch.nan)
    low = torch.where(in_front, points, torch.inf).amin(dim=1)
    high = torch.where(in_front, points, -torch.inf).amax(dim=1)
    box = torch.where(in_front.any(dim=1), torch.cat([low, high], dim=-1), torch.nan)
    neck = joints[:, _NECK]
    length = _HEAD_TOP * (joints[:, _EARS].mean(dim=1) - neck).norm(dim=-1)
    focal = (intrinsics[:, 0, 0] + intrinsics[:, 1, 1]) / 2
    return BodyViews(points, focal * length / neck[:, 2].clamp(min=_NEAREST), box)


def pair_people(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All pairs of people of two lists in the same image.

    Args: first, second: (m,) int64 number of people of each image in either list; lists are ordered by image.

    Returns: (n,) and (n,) int64 positions in the first and in the second list; image by image, first list slowest.
    """
    pairs = first * second
    image = torch.repeat_interleave(torch.arange(pairs.numel()), pairs)
    place = torch.arange(image.numel()) - (pairs.cumsum(0) - pairs)[image]
    starts = first.cumsum(0) - first, second.cumsum(0) - second
    return starts[0][image] + place // second[image], starts[1][image] + place % second[image]


def compare_people(
    queries: Queries, references: BodyViews, pairs: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """How well the two people of each pair agree. Args: pairs: (k,) positions in queries and in references.

    Returns:
        share (k,) float64 in 0 .. 1: of the query's visible keypoints within `HEAD_FACTOR` head sizes of the joints of
        the reference, or the intersection over union of the boxes where no keypoint is visible.
        distance (k,) float64 in 0 .. 1, for pairs of equal share: mean distance over that radius, or 1 - overlap.
    """
    parts = [
        _compare(queries, references, first, second)
        for first, second in zip(*(side.split(_PAIRS_AT_ONCE) for side in pairs), strict=True)
    ]
    share, distance = zip(*parts, strict=True)
    return torch.cat(share), torch.cat(distance)


def assign_people(
    share: torch.Tensor, distance: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """Assign every query at most one reference of its image, each reference once, with the largest sum of shares.

    Args:
        share, distance: (k,) of the pairs that `pair_people(first, second)` makes, see `compare_people`.
        first, second: (m,) int64 queries and references of each image.

    Returns: (n,) int64 position of each query's reference, -1 = none.
    """
    gain = torch.where(share > MIN_SHARE, share - _NEARNESS_WEIGHT * distance, 0.0).numpy()
    partner = torch.full((int(first.sum()),), -1, dtype=torch.int64)
    blocks = torch.stack([first, second, first.cumsum(0) - first, second.cumsum(0) - second]).T.tolist()
    start = 0
    for queries, references, own, other in blocks:
        matrix = gain[start : start + queries * references].reshape(queries, references)
        start += queries * references
        if not matrix.any():
            continue
        rows, columns = linear_sum_assignment(matrix, maximize=True)
        real = matrix[rows, columns] > 0
        partner[own + torch.from_numpy(rows[real])] = other + torch.from_numpy(columns[real])
    return partner


def suppress_duplicates(
    share: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor], rank: torch.Tensor
) -> torch.Tensor:
    """Non-maximum suppression: (n,) int64 position of the kept person whom each one duplicates, -1 = is kept.

    Args:
        share: (k,) of each pair with the first as query, see `compare_people`.
        pairs: (k,) and (k,) positions of people of one image.
        rank: (n,) int64 order of precedence inside each image, 0 first, each once.
    """
    first, second = pairs
    same = (share > MIN_SHARE) & (rank[second] < rank[first])
    first, second = first[same], second[same]
    order = torch.argsort(rank[second], stable=True)
    first, second = first[order], second[order]
    original = torch.full_like(rank, -1)
    for number in torch.unique(rank[second]).tolist():  # all images at once, one rank after the other
        here = slice(*torch.searchsorted(rank[second], torch.tensor([number, number + 1])).tolist())
        one, other = first[here], second[here]
        acts = (original[other] < 0) & (original[one] < 0)
        original[one[acts]] = other[acts]
    return original


def carry_to_camera(
    transl: torch.Tensor, pelvis: torch.Tensor, own: torch.Tensor, camera: torch.Tensor
) -> torch.Tensor:
    """(n, 3) translation [m] under another camera, with the same place of the pelvis and size of the body in the image.

    Weak perspective: z changes by the ratio of the focal lengths. Meaningless where the pelvis is not in front of the
    camera. Args: transl, pelvis (n, 3) [m] under the camera `own`; own, camera (n, 3, 3) [px].
    """
    z = pelvis[:, 2:] * (camera[:, 1, 1] / own[:, 1, 1])[:, None]
    focal = torch.stack([camera[:, 0, 0], camera[:, 1, 1]], dim=-1)
    xy = (project(pelvis, own) - camera[:, :2, 2]) / focal * z
    return transl + torch.cat([xy, z], dim=-1) - pelvis


def _compare(
    queries: Queries, references: BodyViews, first: torch.Tensor, second: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    visible = queries.visible[first]
    radius = HEAD_FACTOR * references.head[second][:, None]
    away = (queries.keypoints[first] - references.joints[second]).norm(dim=-1) / radius
    away = away.nan_to_num(nan=torch.inf, posinf=torch.inf)
    seen = visible.sum(dim=1)
    agreeing = (visible & (away <= 1)).sum(dim=1) / seen
    mean_away = torch.where(visible, away.clamp(max=1), 0.0).sum(dim=1) / seen
    overlap = _overlap(queries.views.box[first], references.box[second])
    return torch.where(seen > 0, agreeing, overlap), torch.where(seen > 0, mean_away, 1 - overlap)


def _overlap(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(k,) intersection over union of boxes (k, 4), 0 where one is unknown."""
    low, high = torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (one, other)]
    return (shared / (areas[0] + areas[1] - shared)).nan_to_num(nan=0.0)
