"""Match images of two files by their names, and people of an image by boxes and joints, greedily. Pixels.

Data sets write the same image as ``insta-train/a/b/c.jpg``, ``a/b/c.jpg`` or ``c.jpg``. Compared are whole names first,
then their last 3, 2 and 1 parts; the longest form under which most images meet is used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dto_pipeline.errors import DtoError
from dto_pipeline.maths.person_matching import box_iou, joint_boxes

MIN_IOU = 0.1  # of boxes around joints under which the benchmarks (3DPW, AGORA) see two people
_PARTS = (None, 3, 2, 1)  # of a name that are compared, whole names first


class ImageJoinError(DtoError, ValueError):
    """Two files without a common image; the message shows names of both."""


@dataclass(frozen=True)
class ImageJoin:
    """N true images and where they are among the M found ones."""

    found: np.ndarray  # (N,) int64 position among the found images, -1 = none
    true: np.ndarray  # (M,) int64 position of each found image among the true ones, -1 = none
    note: str  # which parts of the names were compared; "" = whole names

    @property
    def unmatched(self) -> int:
        """Found images that are no true image."""
        return int((self.true < 0).sum())


def join_images(found: Sequence[str] | np.ndarray, truth: Sequence[str] | np.ndarray) -> ImageJoin:
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
        published: as 3DPW's and AGORA's scripts do it: by the spectral norm of the joints' difference, boxes with a
            border of one pixel, and a pair that does not overlap uses up a prediction. Takes finite joints only.

    Returns:
        (k, 2) int64 found and true person, ordered by the true one; at equal distance the lower numbers match first.
    """
    both = np.isfinite(found[:, None] - truth).all(-1)
    overlaps = box_iou(joint_boxes(found)[:, None], joint_boxes(truth), border=float(published)) >= MIN_IOU
    distance = pair_distance(found, truth, both, published)
    pairs = match_pairs(distance, overlaps & both.any(-1), published)
    return pairs[np.argsort(pairs[:, 1], kind="stable")]


def pair_distance(found: np.ndarray, truth: np.ndarray, counted: np.ndarray, published: bool) -> np.ndarray:
    """(n, m) distance of the joints (n, J, 2), (m, J, 2) of every pair over those that count [px].

    `counted`: (m, J) or (n, m, J) bool; `published`: largest singular value of the (J, 2) differences, in closed form,
    otherwise the root mean square.
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
    """Positions of the pairs (first, second) (k,) that a greedy pass in this order (k,) takes, each person once.

    `near`: (k,) bool, who can be one person, None = all; `budget`: of predictions, see `match_pairs`.
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
    """(k, 2) prediction and person of greedy pairs of an image, (n, m) by distance, at equal distance the lower ones.

    `near`: (n, m) bool, whether their boxes overlap enough; `published`: a pair that does not uses up one of the n
    predictions, and the matching ends where none is left.
    """
    first, second = (side.ravel() for side in np.indices(distance.shape))
    order, budget = np.argsort(distance, axis=None, kind="stable"), len(distance) if published else np.inf
    taken = take_greedily(first, second, order, near.ravel(), budget)
    return np.stack([first[taken], second[taken]], axis=-1)
