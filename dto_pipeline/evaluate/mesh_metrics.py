"""The field's errors of bodies that are matched one to one: joints, meshes, distances, cameras.

Plain arrays in, numbers out, many people at once; knows no files, no body model and no matching. Metres, pixels,
degrees. All errors of points are means over a body's points of the Euclidean distance:

| measure        | before the distance is taken                                                             |
|----------------|------------------------------------------------------------------------------------------|
| absolute       | nothing                                                                                  |
| root-relative  | both bodies are moved so that their roots coincide (MPJPE; MVE, PVE of vertices)          |
| aligned        | the found body gets the rotation, scale and shift that fit best (PA-MPJPE, PA-MVE)        |

The best fit is least squares over all points, reflections excluded (Umeyama, 1991).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

_SAME_POINT = 1e-9  # bodies whose points spread less than this are points [m]
_FLAT = 1e-6  # second singular value over the first under which a turn is not determined


class Alignment(IntEnum):
    """What can be said about the best similarity between two bodies."""

    OK = 0
    NOT_FINITE = 1  #: a coordinate is NaN or infinite; no error can be given
    POINT = 2  #: all points of one body coincide: neither turn nor scale is determined; no error can be given
    LINE = 3  #: the points of one body lie on a line: the turn about it is free; the error is that of one such turn


@dataclass(frozen=True)
class Aligned:
    """n found bodies after the similarity that brings each nearest to its truth."""

    points: np.ndarray  # (n, J, 3) [m]; NaN where there is none
    scale: np.ndarray  # (n,)
    status: np.ndarray  # (n,) int64, see `Alignment`


def mean_distance(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean distance between corresponding points. Args: (n, J, 3) each [m]. Returns: (n,) float64 [m]."""
    gap = np.asarray(found, np.float64) - np.asarray(truth, np.float64)
    return np.sqrt((gap * gap).sum(-1)).mean(-1)


def root_relative_error(
    found: np.ndarray, truth: np.ndarray, found_root: np.ndarray, true_root: np.ndarray
) -> np.ndarray:
    """MPJPE of joints, MVE of vertices.

    Args:
        found, truth: (n, J, 3) [m]; found_root, true_root: (n, 3) [m], brought to the origin.

    Returns:
        (n,) float64 [m].
    """
    return mean_distance(found - found_root[:, None], truth - true_root[:, None])


def aligned_error(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PA-MPJPE of joints, PA-MVE of vertices. Returns: (n,) [m], NaN where undefined, and (n,) `Alignment`."""
    aligned = align_similarity(found, truth)
    return mean_distance(aligned.points, truth), aligned.status


def align_similarity(found: np.ndarray, truth: np.ndarray) -> Aligned:
    """Rotate, scale and shift each found body so that its squared distances to the truth are least.

    Args:
        found, truth: (n, J, 3) [m].

    Returns:
        Proper rotations only: a mirrored body stays mirrored.
    """
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    finite = np.isfinite(found).all((1, 2)) & np.isfinite(truth).all((1, 2))
    own, other = (np.where(finite[:, None, None], points, 0.0) for points in (found, truth))
    centre, target = own.mean(1, keepdims=True), other.mean(1, keepdims=True)
    own, other = own - centre, other - target
    u, singular, vt = np.linalg.svd(own.transpose(0, 2, 1) @ other)
    sign = np.ones_like(singular)
    sign[:, 2] = np.where(np.linalg.det(u) * np.linalg.det(vt) < 0, -1.0, 1.0)
    turn = (u * sign[:, None]) @ vt
    size, true_size = (own * own).sum((1, 2)), (other * other).sum((1, 2))
    is_point = np.minimum(size, true_size) <= found.shape[1] * _SAME_POINT**2
    is_line = singular[:, 1] <= _FLAT * singular[:, 0]
    kinds = [Alignment.NOT_FINITE, Alignment.POINT, Alignment.LINE]
    status = np.select([~finite, is_point, is_line], kinds, Alignment.OK)
    undefined = np.isin(status, (Alignment.NOT_FINITE, Alignment.POINT))
    scale = np.where(undefined, np.nan, (singular * sign).sum(1) / np.where(size > 0, size, 1.0))
    return Aligned(scale[:, None, None] * (own @ turn) + target, scale, status)


def vertical_field_of_view(focal: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Full opening angle from the upper to the lower border [degree]. Args: fy [px], image height [px]."""
    return np.degrees(2 * np.arctan2(np.asarray(height, np.float64) / 2, np.asarray(focal, np.float64)))
