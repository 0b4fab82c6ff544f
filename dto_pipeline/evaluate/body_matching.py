"""Which found person is which true person: nearest joints in the image first, if their boxes overlap.

The rule of the multi-person benchmarks (3DPW, AGORA): pairs of one image whose boxes overlap with an intersection over
union of at least 0.1 may match; they are taken greedily by the distance of their joints in the image. Plain arrays,
pixels; all images at once. Knows no bodies and no files.
"""

from __future__ import annotations

import numpy as np

MIN_IOU = 0.1
_PAIRS_AT_ONCE = 1 << 15  # bounds memory: 45 distances each


def match_bodies(
    found: np.ndarray, truth: np.ndarray, found_image: np.ndarray, true_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match people one to one inside each image, where the boxes around their joints overlap by `MIN_IOU`.

    Args:
        found: (n, J, 2) joints in the image [px], NaN where a joint has no image; truth: (m, J, 2).
        found_image: (n,) int image of each person; true_image: (m,).

    Returns:
        Positions (k,) of found people and (k,) of true people, ordered by the true person. At equal distance the lower
        positions come first, so the result does not depend on how images are numbered.
    """
    first, second = _pairs(found_image, true_image)
    overlap = box_iou(joint_boxes(found)[first], joint_boxes(truth)[second])
    distance = _joint_distance(found, truth, first, second)
    may = (overlap >= MIN_IOU) & np.isfinite(distance)
    first, second, distance = first[may], second[may], distance[may]
    order = np.lexsort((second, first, distance))
    first, second = _take_greedily(first[order], second[order], len(found), len(truth))
    by_truth = np.argsort(second, kind="stable")
    return first[by_truth], second[by_truth]


def joint_boxes(joints: np.ndarray) -> np.ndarray:
    """(n, 4) left, top, right, bottom around the joints (n, J, 2) that are finite; NaN where none is [px]."""
    seen = np.isfinite(joints).all(-1, keepdims=True)
    low = np.where(seen, joints, np.inf).min(1)
    high = np.where(seen, joints, -np.inf).max(1)
    return np.where(seen.any(1), np.concatenate([low, high], -1), np.nan)


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) intersection over union of boxes (n, 4), corners as points of the plane; 0 where a box is unknown."""
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = size.clip(0).prod(-1)
    areas = [(box[:, 2:] - box[:, :2]).prod(-1) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.nan_to_num(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _pairs(found_image: np.ndarray, true_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Everyone found with everyone true of the same image: positions (k,), (k,)."""
    order = np.argsort(true_image, kind="stable")
    start = np.searchsorted(true_image[order], found_image, "left")
    stop = np.searchsorted(true_image[order], found_image, "right")
    count = stop - start
    first = np.repeat(np.arange(len(found_image)), count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first, order[np.repeat(start, count) + within]


def _joint_distance(found: np.ndarray, truth: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(k,) root mean square distance of the joints both people of a pair have in the image [px], inf without any."""
    distance = np.full(len(first), np.inf)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        square = ((found[first[part]] - truth[second[part]]) ** 2).sum(-1)
        both = np.isfinite(square)
        total = np.where(both, square, 0.0).sum(-1)
        distance[part] = np.sqrt(np.divide(total, both.sum(-1), out=distance[part], where=both.any(-1)))
    return distance


def _take_greedily(
    first: np.ndarray, second: np.ndarray, num_first: int, num_second: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in order of preference -> those a greedy pass takes.

    In every round all pairs are taken that come first for both of their people; a greedy pass takes the same ones.
    """
    taken_first, taken_second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    while len(first):
        place = np.arange(len(first))
        best_first, best_second = np.full(num_first, len(first)), np.full(num_second, len(first))
        np.minimum.at(best_first, first, place)
        np.minimum.at(best_second, second, place)
        chosen = (best_first[first] == place) & (best_second[second] == place)
        taken_first.append(first[chosen])
        taken_second.append(second[chosen])
        left = ~(np.isin(first, first[chosen]) | np.isin(second, second[chosen]))
        first, second = first[left], second[left]
    return np.concatenate(taken_first), np.concatenate(taken_second)
