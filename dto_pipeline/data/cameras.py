"""Pinhole cameras as matrices, and as the columns fx, fy, cx, cy of this project's files. Pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from dto_pipeline.data.images import ImageHeader

CENTRE_TOLERANCE = 1.0  # |2 c - size| that still counts as centred [px]
CAMERA_COLUMNS = ("fx", "fy", "cx", "cy")


def camera_matrices(numbers: np.ndarray) -> np.ndarray:
    """(..., 3, 3) float64 matrices of cameras (..., 4) in the order of `CAMERA_COLUMNS`."""
    matrices = np.zeros((*numbers.shape[:-1], 3, 3))
    matrices[..., [0, 1, 0, 1], [0, 1, 2, 2]] = numbers
    matrices[..., 2, 2] = 1
    return matrices


def camera_columns(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """The columns `CAMERA_COLUMNS` (n,) of matrices (n, 3, 3)."""
    return dict(zip(CAMERA_COLUMNS, matrices[:, [0, 1, 0, 1], [0, 1, 2, 2]].T, strict=True))


def read_cameras(columns: Any) -> np.ndarray:
    """(..., 3, 3) matrices from `CAMERA_COLUMNS` of a table, of a dict of columns or of one row; null becomes NaN."""
    return camera_matrices(np.stack([np.asarray(columns[name], np.float64) for name in CAMERA_COLUMNS], axis=-1))


def is_off_centre(camera: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(n,) bool: the principal point of (n, 3, 3) is not the middle of an image of (n, 2) width and height."""
    return (np.abs(2 * camera[:, :2, 2] - sizes) > CENTRE_TOLERANCE).any(axis=1)


def describe_off_centre(image_file: str, header: ImageHeader, camera: np.ndarray) -> str:
    """Message about an image that does not have the size its camera (3, 3) expects."""
    cx, cy = camera[:2, 2]
    return (
        f"image {image_file} is {header.width} x {header.height}, its principal point {cx:g}, {cy:g} "
        f"expects {2 * cx:g} x {2 * cy:g}{header.explain(2 * cx, 2 * cy)}; "
        "if off-centre cameras are right here, set principal_point: free (--principal-point free)"
    )
