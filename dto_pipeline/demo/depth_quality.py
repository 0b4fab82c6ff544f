"""How good a depth network is on synthetic crowds: its maps against the true z.

Disparity is compared after one scale per picture, because that is all the method leaves open (`depth = 1 / disparity`,
an affine line to metres); the offset is not aligned away. Knows arrays only. Metres.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

SAME_DEPTH = 0.2  # people closer than this stand at the same depth [m]
MEASURES = {
    "pixel_error": "relative depth error of people's pixels, one scale per picture",
    "person_error": "relative depth error of people's mean depth, one scale per picture",
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
        depth = 1 / np.maximum(picture.disparity[seen], 1e-3)
        z, owner = picture.z[seen].astype(np.float64), picture.person[seen]
        pixel.append(np.abs(depth * np.median(z / depth) / z - 1).mean())
        count = np.bincount(owner)
        kept = count >= 100  # [px]
        mean_depth, mean_z = ((np.bincount(owner, values) / np.maximum(count, 1))[kept] for values in (depth, z))
        person.append(np.abs(mean_depth * np.median(mean_z / mean_depth) / mean_z - 1))
        if kept.sum() > 2:
            line.append(np.abs(np.polyval(np.polyfit(mean_depth, mean_z, 1, w=1 / mean_z), mean_depth) / mean_z - 1))
        apart, found = (np.subtract.outer(values, values) for values in (mean_z, mean_depth))
        order.append((np.sign(found) == np.sign(apart))[apart > SAME_DEPTH])
    everyone = np.concatenate(person)
    return {
        "persons": len(everyone),
        "pixel_error": float(np.mean(pixel)),
        "person_error": float(everyone.mean()),
        "person_error_line": float(np.concatenate(line).mean()),
        "order": float(np.concatenate(order).mean()),
    }
