"""Changing a body without moving it in the picture: exact heights, and translations fitted to the joints' 2D places.

Pure tensors, M bodies at once, a fixed number of steps for all. Metres; picture positions are normalised, x / z and
y / z, so no camera is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dto_pipeline.config import JointConfig

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
    size = (seen.amax(1) - seen.amin(1)).norm(dim=-1).clamp(min=1e-6)
    weight = (config.joint_sigma * size).reciprocal()[:, None, None]
    wanted_z, z_weight = transl[:, 2], (config.hold_z_sigma * transl[:, 2]).reciprocal()
    for _ in range(_PLACE_STEPS):
        placed = joints + transl[:, None]
        inverse = placed[..., 2:].reciprocal()
        at = placed[..., :2] * inverse
        moves = torch.eye(2, dtype=at.dtype, device=at.device).expand(*at.shape, 2)
        jacobian = torch.cat([moves, -at[..., None]], -1) * (inverse * weight)[..., None]
        miss = ((seen - at) * weight).flatten(1)
        rows = jacobian.flatten(1, 2)
        normal = rows.mT @ rows
        right = (rows.mT @ miss[..., None]).squeeze(-1)
        normal[:, 2, 2] += z_weight.square()
        right[:, 2] += z_weight.square() * (wanted_z - transl[:, 2])
        transl = transl + torch.linalg.solve_ex(normal, right).result
    return transl
