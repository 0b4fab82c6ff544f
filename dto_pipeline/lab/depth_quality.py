"""How good a depth network is on synthetic crowds: its maps against the true z.

Disparity is compared after one scale per picture, because that is all the method leaves open (`depth = 1 / disparity`,
an affine line to metres); the offset is not aligned away. Knows arrays only. Metres.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

_LEAST_PIXELS = 100  # of a person that counts
SAME_DEPTH = 0.2  # people closer than this stand at the same depth [m]
MEASURES = {
    "pixel_error": "relative error of people's pixels in disparity, one scale per picture",
    "person_error": "relative error of people's depth (medians), one scale per picture",
    "person_error_line": "the same after the best line per picture, as the method fits one",
    "order": "share of pairs more than 0.2 m apart that are in the right order",
}


class TrueDepth(NamedTuple):
    """One picture's network output and truth."""

    disparity: np.ndarray  # (H, W) float32, larger is nearer
    z: np.ndarray  # (H, W) [m]
    person: np.ndarray  # (H, W) int, index of the person seen, -1 = nobody


def depth_quality(pictures: Iterable[TrueDepth]) -> dict[str, float]:
    """Means over all people (and pairs) of all pictures: `MEASURES`, and `persons`, the number of people."""
    pixel, person, line, order = [], [], [], []
    for picture in pictures:
        seen = picture.person >= 0
        disparity, z = np.maximum(picture.disparity[seen], 0).astype(np.float64), picture.z[seen].astype(np.float64)
        inverse = disparity * z  # constant for a perfect network
        pixel.append(np.abs(inverse / np.median(inverse) - 1).mean())
        depth, true = _person_depths(disparity, z, picture.person[seen])
        person.append(np.abs(depth * np.median(true / depth) / true - 1))
        if len(depth) > 2:
            line.append(np.abs(np.polyval(np.polyfit(depth, true, 1, w=1 / true), depth) / true - 1))
        found, apart = (np.subtract.outer(values, values) for values in (depth, true))
        order.append((np.sign(found) == np.sign(apart))[apart > SAME_DEPTH])
    everyone = np.concatenate(person)
    return {
        "persons": len(everyone),
        "pixel_error": float(np.mean(pixel)),
        "person_error": float(everyone.mean()),
        "person_error_line": float(np.concatenate(line).mean()),
        "order": float(np.concatenate(order).mean()),
    }


def _person_depths(disparity: np.ndarray, z: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (1 / disparity) and z of people of at least `_LEAST_PIXELS`: (n,) medians over their pixels."""
    kept = [pixels for index in np.unique(owner) if (pixels := owner == index).sum() >= _LEAST_PIXELS]
    medians = [[1 / max(np.median(disparity[pixels]), 1e-3), np.median(z[pixels])] for pixels in kept]
    depth, true = np.array(medians).reshape(-1, 2).T
    return depth, true
