"""What a depth map may mean, and how each meaning becomes the disparity the method works on.

Disparity is larger where nearer and zero where nothing is known or everything is infinitely far. The method reads
``1 / disparity`` as relative depth with an unknown scale; its published thresholds (`EvidenceConfig.far_depth` = 0.02)
are in the unit of Depth Anything on crowds, where one unit of relative depth is about `METRES_PER_DEPTH`. Metric maps
are brought to this unit, so that the thresholds keep their meaning: far begins at 10 m. The unit of relative maps is
found in each image (`maths.depth_evidence`).
"""

from __future__ import annotations

import numpy as np

from dto_pipeline.config import METRES_PER_DEPTH

DISPARITY = "disparity"  # relative inverse depth, larger is nearer
DEPTH = "depth"  # relative depth, larger is farther, in units like 1 / disparity of Depth Anything
METRIC_DEPTH = "metric_depth"  # distance along the camera axis in metres
__all__ = ["DEPTH", "DISPARITY", "METRES_PER_DEPTH", "METRIC_DEPTH", "as_disparity", "is_metric"]


def as_disparity(values: np.ndarray, kind: str, scale: float = 1.0) -> np.ndarray:
    """A map of a declared kind as disparity.

    Args:
        values: (H, W) of any real type, times `scale` in the unit of `kind`; 0 = unknown, for depths infinity too.
        kind: `DISPARITY`, `DEPTH` or `METRIC_DEPTH`.
        scale: of stored numbers (0.001 for millimetres).

    Returns:
        (H, W) float32. NaN and negative values stay what they are wrong as: callers check.
    """
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # what overflows is reported as not finite
        scaled = values.astype(np.float32) * np.float32(scale)
        if kind == DISPARITY:
            return scaled
        unit = METRES_PER_DEPTH if kind == METRIC_DEPTH else 1.0
        return np.where(scaled == 0, np.float32(0), np.float32(unit) / scaled)


def is_metric(origin: str | None) -> bool:
    """Whether a map holds metres, by its origin (the label column `depth_origin`), which begins with the kind."""
    return (origin or "").startswith(METRIC_DEPTH)
