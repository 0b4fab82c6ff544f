"""Joints and meshes of people of files, and distances between bodies. Metres."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dto_pipeline.data.people import People
from dto_pipeline.models.body import BodyModel

TREE = 24  # joints of SMPL's tree, the first of smplx's 45
_AT_ONCE = 128  # meshes in memory: 20 MB
_SAME_POINT = 1e-9  # bodies whose points spread less than this are points [m]


def tensors(people: People) -> Iterator[torch.Tensor]:
    """Pose, betas and transl as tensors."""
    return (torch.from_numpy(np.ascontiguousarray(x)) for x in (people.pose, people.betas, people.transl))


def joints_of(people: People, body: BodyModel) -> np.ndarray:
    """(n, 45, 3) float32 joints [m]."""
    return body.joints(*tensors(people)).numpy()


def vertices_of(people: People, body: BodyModel) -> np.ndarray:
    """(n, V, 3) float32 meshes [m]; for many people use `in_chunks`."""
    return body.vertices(*tensors(people)).numpy()


def in_chunks(count: int) -> list[np.ndarray]:
    """Positions 0 .. count - 1 in chunks whose meshes fit into memory; at least one chunk, which may be empty."""
    return np.array_split(np.arange(count), max(1, -(-count // _AT_ONCE)))


def mean_distance(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean distance between corresponding points. Args: (n, J, 3) each [m]. Returns: (n,) float64 [m]."""
    gap = np.asarray(found, np.float64) - np.asarray(truth, np.float64)
    return np.sqrt((gap * gap).sum(-1)).mean(-1)


def aligned_error(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PA-MPJPE of joints, PA-MVE of vertices: the mean distance after each found body is rotated, scaled and shifted so
    that its squared distances to the truth are least (Umeyama, 1991). A mirrored body is not mirrored back.

    Args:
        found, truth: (n, J, 3) [m].

    Returns:
        (n,) [m], NaN where a body is not finite or all its points coincide.
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
    defined = finite & (np.minimum(size, true_size) > found.shape[1] * _SAME_POINT**2)
    scale = np.where(defined, (singular * sign).sum(1) / np.where(size > 0, size, 1.0), np.nan)
    return mean_distance(scale[:, None, None] * (own @ turn) + target, truth)
