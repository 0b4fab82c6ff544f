"""What belongs together: images of two files by their names, people of an image by boxes and joints, greedily.

Plain names and arrays, pixels; all images at once. Knows no bodies and no files.

Data sets write the same image as ``insta-train/a/b/c.jpg``, ``a/b/c.jpg`` or ``c.jpg``. Compared are whole names first,
then their last 3, 2 and 1 parts; the longest form under which most images meet is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dto_pipeline.errors import DtoError

MIN_IOU = 0.1  # of boxes around joints under which the benchmarks (3DPW, AGORA) see two people
_PARTS = (None, 3, 2, 1)  # of a name that are compared, whole names first
_PAIRS_AT_ONCE = 1 << 15  # bounds memory: 45 distances each


class ImageJoinError(DtoError, ValueError):
    """Two files that have no image in common; the message shows names of both."""


@dataclass(frozen=True)
class ImageJoin:
    """N true images and where they are among the M found ones."""

    found: np.ndarray  # (N,) int64 position among the found images, -1 = it has none
    true: np.ndarray  # (M,) int64 the other way round, -1 = it is no true image
    unmatched: tuple[str, ...]  # found images that are no true image
    parts: int | None  # of the names that were compared; None = all

    @property
    def note(self) -> str:
        """How images were recognised, for the reader of the numbers."""
        return "" if self.parts is None else f"images were recognised by the last {self.parts} part(s) of their names"


def join_images(found: Sequence[str], truth: Sequence[str]) -> ImageJoin:
    """Find every true image among the found ones.

    Args:
        found, truth: names, each side's own once each.

    Raises:
        ImageJoinError: no image in common.
    """
    most, where, shown = 0, np.full(len(truth), -1), None
    for parts in _PARTS:
        sides = [[_key(name, parts) for name in names] for names in (found, truth)]
        once = [{key for key, times in Counter(keys).items() if times == 1} for keys in sides]
        both = once[0] & once[1]
        places = {key: place for place, key in enumerate(sides[0]) if key in both}
        if len(places) > most:
            most, where, shown = len(places), np.array([places.get(key, -1) for key in sides[1]]), parts
    if most == 0:
        raise ImageJoinError(
            f"no image in common: one side has {list(found[:2])} ..., the other {list(truth[:2])} ...; "
            "compare files of the same images"
        )
    back = np.full(len(found), -1)
    back[where[where >= 0]] = np.flatnonzero(where >= 0)
    return ImageJoin(where, back, tuple(name for name, place in zip(found, back, strict=True) if place < 0), shown)


def _key(name: str, parts: int | None) -> str:
    pieces = [piece for piece in str(name).replace("\\", "/").split("/") if piece not in ("", ".")]
    return "/".join(pieces if parts is None else pieces[-parts:])


def match_bodies(
    found: np.ndarray, truth: np.ndarray, found_image: np.ndarray, true_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Match people one to one inside each image, nearest joints first, where the boxes around them overlap enough.

    The rule of the multi-person benchmarks: pairs of one image whose boxes have an intersection over union of at least
    `MIN_IOU` may match; they are taken greedily by the root mean square distance of the joints both have in the image.

    Args:
        found: (n, J, 2) joints in the image [px], NaN where a joint has no image; truth: (m, J, 2).
        found_image: (n,) int image of each person; true_image: (m,).

    Returns:
        Positions (k,) of found people and (k,) of true people, ordered by the true person. At equal distance the lower
        positions come first, so the result does not depend on how images are numbered.
    """
    first, second = pairs_within(found_image, true_image)
    overlap = box_iou(joint_boxes(found)[first], joint_boxes(truth)[second])
    distance = np.full(len(first), np.inf)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        square = ((found[first[part]] - truth[second[part]]) ** 2).sum(-1)
        both = np.isfinite(square)
        total = np.where(both, square, 0.0).sum(-1)
        distance[part] = np.sqrt(np.divide(total, both.sum(-1), out=distance[part], where=both.any(-1)))
    may = (overlap >= MIN_IOU) & np.isfinite(distance)
    first, second, distance = first[may], second[may], distance[may]
    taken = take_greedily(first, second, np.lexsort((second, first, distance)))
    taken = taken[np.argsort(second[taken], kind="stable")]
    return first[taken], second[taken]


def pairs_within(image: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Everybody of one side with everybody of the other in the same image: positions (k,), (k,) in (n,) and (m,)."""
    order = np.argsort(other, kind="stable")
    start = np.searchsorted(other[order], image, "left")
    count = np.searchsorted(other[order], image, "right") - start
    first = np.repeat(np.arange(len(image)), count)
    within = np.arange(len(first)) - np.repeat(np.cumsum(count) - count, count)
    return first, order[np.repeat(start, count) + within]


def take_greedily(first: np.ndarray, second: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Which of the pairs (first, second) (k,) a pass in this order (k,) takes that uses nobody twice: positions.

    In every round all pairs are taken that come first for both of their people; a greedy pass takes the same ones.
    """
    taken = [np.zeros(0, np.int64)]
    while order.size:
        best, other_best = (np.unique(side[order], return_index=True)[1] for side in (first, second))
        chosen = order[np.intersect1d(best, other_best)]
        taken.append(chosen)
        order = order[~(np.isin(first[order], first[chosen]) | np.isin(second[order], second[chosen]))]
    return np.concatenate(taken)


def take_within_budget(distance: np.ndarray, overlaps: np.ndarray, spent: bool) -> np.ndarray:
    """Greedy pairs of n predictions and m people of an image, nearest first; at equal distance the lower ones.

    Args:
        distance, overlaps: (n, m) of every pair; bool, whether their boxes overlap enough.
        spent: as published metrics have it: a pair that does not overlap uses up a prediction, and where none is left
            the matching ends.

    Returns:
        (k, 2) int64: prediction, person, in the order taken.
    """
    pairs, used_up = list[tuple[int, int]](), 0
    free, free_person = (np.ones(count, bool) for count in distance.shape)
    for place in np.argsort(distance, axis=None, kind="stable"):
        if len(pairs) == len(free_person) or len(pairs) + used_up >= len(free):
            break
        first, second = divmod(int(place), len(free_person))
        if not overlaps[first, second]:
            used_up += spent
        elif free[first] and free_person[second]:
            pairs.append((first, second))
            free[first] = free_person[second] = False
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def joint_boxes(joints: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """(..., 4) float64 left, top, right, bottom around some of the joints (..., J, 2) [px]; NaN around none.

    counted: (..., J) bool, None = those that are finite.
    """
    points = np.asarray(joints, np.float64)
    seen = np.all(np.isfinite(points), axis=-1, keepdims=True) if counted is None else counted[..., None]
    low, high = np.where(seen, points, np.inf).min(-2), np.where(seen, points, -np.inf).max(-2)
    return np.where(seen.any(-2), np.concatenate([low, high], -1), np.nan)


def box_iou(a: np.ndarray, b: np.ndarray, border: float = 0.0) -> np.ndarray:
    """(...) intersection over union of boxes (..., 4); 0 where a box is unknown.

    border: 0 = corners are points of the plane; 1 = the last pixel belongs to a box, as published metrics have it.
    """
    shared = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + border).clip(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2] + border).prod(-1) for box in (a, b)]
    union = areas[0] + areas[1] - shared
    return np.nan_to_num(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))
