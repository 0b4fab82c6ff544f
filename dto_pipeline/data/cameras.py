"""Pinhole cameras as the files of this project hold them, columns fx, fy, cx, cy, and as matrices. Pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

CAMERA_COLUMNS = ("fx", "fy", "cx", "cy")


def camera_matrices(numbers: np.ndarray) -> np.ndarray:
    """(..., 3, 3) float64 matrices of cameras (..., 4) in the order of `CAMERA_COLUMNS`."""
    matrices = np.zeros((*numbers.shape[:-1], 3, 3))
    matrices[..., [0, 1, 0, 1], [0, 1, 2, 2]] = numbers
    matrices[..., 2, 2] = 1
    return matrices


def read_cameras(columns: Any) -> np.ndarray:
    """Matrices of `CAMERA_COLUMNS` as `columns` (a table, a dict of columns, one row) holds them; null becomes NaN."""
    return camera_matrices(np.stack([np.asarray(columns[name], np.float64) for name in CAMERA_COLUMNS], axis=-1))
