"""Match images of two files by their names, and the people of an image greedily by boxes and joints. Pixels.

Data sets write the same image as ``insta-train/a/b/c.jpg``, ``a/b/c.jpg`` or ``c.jpg``. Whole names are compared, and
their last 3, 2 and 1 parts. The form that matches most images is used, of equally good ones the longest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dto_pipeline.errors import DtoError
from dto_pipeline.maths.person_matching import box_iou, joint_boxes

MIN_IOU = 0.1  # boxes around joints that overlap less belong to two people in the benchmarks 3DPW and AGORA
_PARTS = (None, 3, 2, 1)  # of a name that are compared, whole names first


class ImageJoinError(DtoError, ValueError):
    """Two files without a common image; the message shows names of both."""


@dataclass(frozen=True)
class ImageJoin:
    """Which of M found images is which of N true images."""

    found: np.ndarray  # (N,) int64 position of each true image among the found ones, -1 = none
    true: np.ndarray  # (M,) int64 position of each found image among the true ones, -1 = none
    note: str  # says which parts of the names were compared; "" = whole names

    @property
    def unmatched(self) -> int:
        """How many found images are no true image."""
        return int((self.true < 0).sum())


def join_images(found: Sequence[str] | np.ndarray, truth: Sequence[str] | np.ndarray) -> ImageJoin:
    """Find every true image among the found ones.

    Args:
        found, truth: names, each only once on its side.

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
    note = "" if shown is None else f"images were recognised by the last {shown} part(s) of their names"
    return ImageJoin(where, back, note)


def _key(name: str, parts: int | None) -> str:
    pieces = [piece for piece in str(name).replace("\\", "/").split("/") if piece not in ("", ".")]
    return "/".join(pieces if parts is None else pieces[-parts:])


def match_bodies(found: np.ndarray, truth: np.ndarray, published: bool = False) -> np.ndarray:
    """Match the people of one image one to one, nearest first, where the boxes around their joints overlap enough.

    The rule of the multi-person benchmarks: pairs whose boxes have an intersection over union of at least `MIN_IOU`,
    taken greedily by the root mean square distance of the joints that both have in the image.

    Args:
        found: (n, J, 2) joints in the image [px], NaN where a joint has no image; truth: (m, J, 2).
        published: as the scripts of 3DPW and AGORA do it: ordered by the spectral norm of the joints' difference, boxes
            with a border of one pixel, and a pair that does not overlap uses up a prediction. All joints are finite.

    Returns:
        (k, 2) int64 found and true person, ordered by the true one; at equal distance the lower numbers match first.
    """
    both = np.isfinite(found[:, None] - truth).all(-1)
    overlaps = box_iou(joint_boxes(found)[:, None], joint_boxes(truth), border=float(published)) >= MIN_IOU
    distance = pair_distance(found, truth, both, published)
    pairs = match_pairs(distance, overlaps & both.any(-1), published)
    return pairs[np.argsort(pairs[:, 1], kind="stable")]


def pair_distance(found: np.ndarray, truth: np.ndarray, counted: np.ndarray, published: bool) -> np.ndarray:
    """(n, m) distance of every pair of found (n, J, 2) and true (m, J, 2) joints over the joints that count [px].

    `counted`: (m, J) or (n, m, J) bool; `published`: the largest singular value of the (J, 2) differences, in closed
    form; otherwise their root mean square.
    """
    x, y = np.moveaxis(np.where(counted[..., None], found.astype(np.float64)[:, None] - truth, 0.0), -1, 0)
    xx, xy, yy = (x * x).sum(-1), (x * y).sum(-1), (y * y).sum(-1)
    if published:
        return np.sqrt((xx + yy + np.hypot(xx - yy, 2.0 * xy)) / 2.0)
    return np.sqrt((xx + yy) / np.maximum(counted.sum(-1), 1))


def by_image(owner: np.ndarray, images: int) -> list[np.ndarray]:
    """Positions of the people of each image. Args: owner (n,) int, the image of each person, in any order."""
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.searchsorted(owner[order], np.arange(1, images)))


def take_greedily(
    first: np.ndarray, second: np.ndarray, order: np.ndarray, near: np.ndarray | None = None, budget: float = np.inf
) -> np.ndarray:
    """Go through the pairs (first, second) (k,) in this order (k,) and take each whose people are both free.

    `near`: (k,) bool, the pairs that can be taken, None = all; `budget`: how many pairs may be taken or be too far
    apart, see `match_pairs`. Returns the positions of the taken pairs.
    """
    free, free_second = (bytearray(b"\1") * (int(side.max(initial=-1)) + 1) for side in (first, second))
    possible, taken = np.ones(len(first), bool) if near is None else near, []
    sides = (values[order].tolist() for values in (first, second, possible))
    for pair, one, two, is_near in zip(order.tolist(), *sides, strict=True):
        if budget <= 0:
            break
        if is_near and free[one] and free_second[two]:
            free[one] = free_second[two] = 0
            taken.append(pair)
            budget -= 1
        elif not is_near:
            budget -= 1
    return np.array(taken, np.int64)


def match_pairs(distance: np.ndarray, near: np.ndarray, published: bool) -> np.ndarray:
    """Match n predictions and m people of an image greedily by distance (n, m), at equal distance the lower numbers.

    `near`: (n, m) bool, whether their boxes overlap enough; `published`: a pair that does not overlap uses up one of
    the n predictions, and the matching ends when none is left. Returns (k, 2) prediction and person.
    """
    first, second = (side.ravel() for side in np.indices(distance.shape))
    order, budget = np.argsort(distance, axis=None, kind="stable"), len(distance) if published else np.inf
    taken = take_greedily(first, second, order, near.ravel(), budget)
    return np.stack([first[taken], second[taken]], axis=-1)
