"""Changing a body without moving it in the picture: exact heights, and translations fitted to the joints' 2D places.

Pure tensors, M bodies at once, a fixed number of steps for all. Metres; picture positions are normalised, x / z and
y / z, so no camera is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dto_pipeline.config import JointConfig
from dto_pipeline.maths.ordered import fold_sum

_HEIGHT_STEPS = 4  # the height is piecewise linear in a coefficient: two steps are exact but at the kinks
_PROBE = 1e-3  # of the coefficient, for its gain
_PLACE_STEPS = 4  # Gauss-Newton; the residual is nearly linear in the translation


def reach_height(
    betas: torch.Tensor,
    column: torch.Tensor,
    height: torch.Tensor,
    chosen: torch.Tensor,
    rest_height: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Betas whose rest-pose height is as wished (Newton steps on one coefficient each).

    Args:
        betas: (..., 11) float64, near the solution; column: (..., 1) int64 coefficient to change.
        height: (...) wished [m]; chosen: (...) bool, the others keep their betas.
        rest_height: betas (..., 11) -> (...) [m].
    """
    probe = torch.zeros_like(betas).scatter_(-1, column, _PROBE)
    for _ in range(_HEIGHT_STEPS):
        reached = rest_height(betas)
        gain = (rest_height(betas + probe) - reached) / _PROBE
        step = torch.where(chosen & (gain.abs() > _PROBE), (height - reached) / gain, 0)
        betas = betas.scatter_add(-1, column, step[..., None])
    return betas


def hold_joints(seen: torch.Tensor, joints: torch.Tensor, transl: torch.Tensor, config: JointConfig) -> torch.Tensor:
    """Translations (M, 3) that bring changed bodies back to where they were in the picture.

    Least squares over the joints' picture positions, in units of `config.joint_sigma` of the body's size there, with
    z held to where the scene's fit put it by `config.hold_z_sigma` of itself.

    Args:
        seen: (M, J, 2) x / z, y / z of the label's joints; joints: (M, J, 3) of the changed bodies, untranslated [m].
        transl: (M, 3) float64 to start from, z as the fit wants it [m].
    """
    extent = (seen.amax(1) - seen.amin(1)).square()
    size = (extent[:, 0] + extent[:, 1]).sqrt().clamp(min=1e-6)
    weight = (config.joint_sigma * size).reciprocal()[:, None]
    wanted_z, z_weight = transl[:, 2], (config.hold_z_sigma * transl[:, 2]).reciprocal().square()
    for _ in range(_PLACE_STEPS):
        placed = joints + transl[:, None]
        gain = weight / placed[..., 2]
        x, y = (placed[..., :2] / placed[..., 2:]).unbind(-1)
        miss_x, miss_y = ((seen[..., axis] - at) * weight for axis, at in enumerate((x, y)))
        # the normal equations: a joint's u moves with x and z, its v with y and z
        flat = fold_sum(gain * gain)
        x_z, y_z = fold_sum(gain * gain * x), fold_sum(gain * gain * y)
        deep = fold_sum(gain * gain * (x * x + y * y)) + z_weight
        right_x, right_y = fold_sum(gain * miss_x), fold_sum(gain * miss_y)
        right_z = z_weight * (wanted_z - transl[:, 2]) - fold_sum(gain * (x * miss_x + y * miss_y))
        step_z = (right_z + (x_z * right_x + y_z * right_y) / flat) / (deep - (x_z * x_z + y_z * y_z) / flat)
        step_x, step_y = (right_x + x_z * step_z) / flat, (right_y + y_z * step_z) / flat
        transl = transl + torch.stack([step_x, step_y, step_z], dim=-1)
    return transl
