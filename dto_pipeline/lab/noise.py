"""Smooth noise that repeats without seams, for textures and the borders of masks.

Knows arrays and pixels only. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import numpy as np

_TILE = 64  # lattice points of a noise tile along each side


def noise_tile(rng: np.random.Generator) -> np.ndarray:
    """(64, 64) float32 lattice of values in -1 .. 1 for `sample_noise`."""
    return rng.uniform(-1, 1, (_TILE, _TILE)).astype(np.float32)


def sample_noise(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smoothly interpolated lattice values; one lattice step is one unit of x or y, repeating every 64.

    Args:
        tile: of `noise_tile`.
        x, y: equal shapes, any finite values.

    Returns:
        Values in -1 .. 1, same shape, float32.
    """
    column, row = np.floor(x), np.floor(y)
    u, v = (x - column).astype(np.float32), (y - row).astype(np.float32)
    u, v = u * u * (3 - 2 * u), v * v * (3 - 2 * v)
    c0, r0 = column.astype(np.int64) % _TILE, row.astype(np.int64) % _TILE
    c1, r1 = (c0 + 1) % _TILE, (r0 + 1) % _TILE
    upper = tile[r0, c0] * (1 - u) + tile[r0, c1] * u
    lower = tile[r1, c0] * (1 - u) + tile[r1, c1] * u
    return upper * (1 - v) + lower * v
