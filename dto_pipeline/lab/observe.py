"""What networks would say about a rendered picture: a relative depth map, instance masks, 2D keypoints.

Knows what is true at each pixel and spoils it the way such networks do; knows nothing of labels or files. Pixels,
metres, camera frame.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

import numpy as np
from scipy.ndimage import gaussian_filter

from dto_pipeline.lab.crowd import View
from dto_pipeline.lab.people import Bodies
from dto_pipeline.lab.scenery import noise_tile, sample_noise

DISPARITY_SCALE = (380.0, 620.0)  # a of disparity = a / z + b; with b = 0 it is the alpha a fit should find [m]
DISPARITY_OFFSET = (-1.0, 1.0)  # the demo's b
_MASK_WOBBLE = 0.9  # how far mask borders stray [px]
_OPENPOSE_JOINTS = (24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, *range(25, 35))  # of smplx's 45, BODY_25 order
NUM_KEYPOINTS = 44  # 25 of BODY_25 and the 19 of `SMPL_to_J19`
_J19_IN_TREE = (8, 5, 2, 1, 4, 7, 21, 19, 17, 16, 18, 20, 12)  # the first of `SMPL_to_J19`, among smplx's joints
_J19_PELVIS = 14
_HIDDEN_BEHIND = 0.12  # a joint this far behind what the picture shows is hidden [m]
_KEYPOINT_NOISE = 0.004  # of a keypoint, relative to the person's height in the image


def observe_disparity(
    z: np.ndarray,
    person: np.ndarray,
    line: tuple[float, float],
    rng: np.random.Generator,
    *,
    person_error: float = 0.02,
    largest_error: float = 0.15,
    row_tilt: float = 0.04,
    pixel_noise: float = 0.004,
    blur: float = 1.2,
    laws: Callable[[], np.ndarray | float] = lambda: 1.0,
) -> np.ndarray:
    """A depth map as a monocular network gives it; the defaults are the demo's.

    Args:
        z: (H, W) true distance along the camera axis [m]; person: (H, W) index of the person seen, -1 = nobody.
        line: a and b of disparity = a / z + b.
        person_error: scale of the relative error (Student's t, 3 degrees of freedom) of one person's disparity as a
            whole, which stops at `largest_error`.
        row_tilt: relative error from the upper to the lower border; pixel_noise: relative, per pixel; blur: [px].
        laws: gives (H, W) factors of further errors, asked after all other draws.

    Returns:
        (H, W) float64 disparity, larger is nearer, >= 0.
    """
    error = np.clip(person_error * rng.standard_t(3, int(person.max()) + 2), -largest_error, largest_error)
    error[-1] = 0.0  # index -1 is the background
    tilt = rng.normal(0.0, row_tilt) * (np.arange(len(z)) / len(z) - 0.5)
    noise = rng.normal(0.0, pixel_noise, z.shape)
    values = (line[0] / z + line[1]) * (1 + error[person]) * laws()
    return (gaussian_filter(values, blur) * (1 + tilt[:, None] + noise)).clip(0)


def observe_masks(person: np.ndarray, people: int, rng: np.random.Generator) -> np.ndarray:
    """(P, H, W) bool, disjoint masks of the visible parts, their borders a little off.

    Args:
        person: (H, W) index of the person seen, -1 = nobody; people: P.
    """
    height, width = person.shape
    row, column = np.mgrid[:height, :width].astype(np.float32)
    shift_row, shift_column = (
        1.6 * _MASK_WOBBLE * sample_noise(noise_tile(rng), column / 7.3, row / 7.3) for _ in range(2)
    )
    row = np.clip(np.rint(row + shift_row), 0, height - 1).astype(np.int64)
    column = np.clip(np.rint(column + shift_column), 0, width - 1).astype(np.int64)
    return person[row, column] == np.arange(people)[:, None, None]


def observe_keypoints(view: View, truth: Bodies, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """2D keypoints of the P true bodies, where the picture shows `z` (H, W) [m].

    Returns:
        (P, 44, 3) float32 u, v [px] and confidence: low where hidden, 0 outside the picture and (at 0, 0) for joints
        that the bodies' model does not have.
    """
    points = keypoints_3d(truth)
    uv = points[..., :2] / points[..., 2:] * view.focal + (view.width / 2, view.height / 2)
    size = (np.nanmax(uv[..., 1], axis=1) - np.nanmin(uv[..., 1], axis=1))[:, None, None]
    uv = uv + rng.normal(0.0, _KEYPOINT_NOISE, uv.shape) * size
    inside = ((uv >= 0) & (uv < (view.width, view.height))).all(-1)
    column, row = np.moveaxis(np.where(inside[..., None], uv, 0).astype(np.int64), -1, 0)
    hidden = points[..., 2] > z[row, column] + _HIDDEN_BEHIND
    confidence = np.where(hidden, rng.uniform(0.15, 0.45, hidden.shape), rng.uniform(0.7, 1.0, hidden.shape))
    return np.concatenate([np.nan_to_num(uv), np.where(inside, confidence, 0.0)[..., None]], axis=-1).astype(np.float32)


def keypoints_3d(truth: Bodies) -> np.ndarray:
    """(P, 44, 3) [m]: BODY_25's joints, then the 19 regressed ones (see `assets/names.json`).

    Bodies that are no SMPL mesh have joints in the places of regressed ones, NaN where they have none.
    """
    with (files("dto_pipeline.assets") / "SMPL_to_J19.npy").open("rb") as stream:
        regressor = np.load(stream, allow_pickle=False)
    if truth.vertices.shape[1] == regressor.shape[1]:
        regressed = regressor @ truth.vertices
    else:
        regressed = np.full((len(truth.joints), len(regressor), 3), np.nan, np.float32)
        regressed[:, : len(_J19_IN_TREE)] = truth.joints[:, _J19_IN_TREE]
        regressed[:, _J19_PELVIS] = truth.joints[:, 0]
    return np.concatenate([truth.joints[:, _OPENPOSE_JOINTS], regressed], axis=1)
