"""Rotations in the three forms this project uses, all differentiable everywhere.

Axis-angle (..., 3) [rad] is what labels hold; matrices (..., 3, 3) are what is compared; 6D (..., 6), the first two
columns one after the other (Zhou et al., CVPR 2019), is what networks emit. Pure tensors.
"""

from __future__ import annotations

import torch

_TINY = 1e-12  # squared lengths below this have no direction


def axis_angle_to_matrix(axis_angle: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) matrices of axis-angle vectors (..., 3) [rad], by Rodrigues' formula."""
    square = (axis_angle**2).sum(-1)
    small = square < 1e-8
    angle = torch.where(small, torch.ones_like(square), square).sqrt()
    sine = torch.where(small, 1 - square / 6, angle.sin() / angle)[..., None, None]
    versine = torch.where(small, 0.5 - square / 24, (1 - angle.cos()) / angle**2)[..., None, None]
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return identity + sine * cross + versine * (cross @ cross)


def matrix_to_axis_angle(matrix: torch.Tensor) -> torch.Tensor:
    """(..., 3) axis-angle vectors of rotations (..., 3, 3), of at most pi [rad]; at pi one of the two axes."""
    # unit quaternions (..., 4), real part first: of four formulas the one with the largest divisor (Shepperd)
    m00, m01, m02, m10, m11, m12, m20, m21, m22 = matrix.flatten(-2).unbind(-1)
    squares = [1 + m00 + m11 + m22, 1 + m00 - m11 - m22, 1 - m00 + m11 - m22, 1 - m00 - m11 + m22]
    w, x, y, z = squares
    rows = [
        torch.stack([w, m21 - m12, m02 - m20, m10 - m01], dim=-1),
        torch.stack([m21 - m12, x, m10 + m01, m02 + m20], dim=-1),
        torch.stack([m02 - m20, m10 + m01, y, m12 + m21], dim=-1),
        torch.stack([m10 - m01, m02 + m20, m12 + m21, z], dim=-1),
    ]
    best = torch.stack(squares, dim=-1).argmax(dim=-1)
    row = torch.stack(rows, dim=-2).gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quaternion = torch.nn.functional.normalize(row, dim=-1)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    real, imaginary = quaternion[..., 0], quaternion[..., 1:]
    square = (imaginary**2).sum(-1)
    small = square < _TINY
    sine = torch.where(small, torch.ones_like(square), square).sqrt()
    per_sine = torch.where(small, 2 / real.clamp(min=0.5), 2 * torch.atan2(sine, real) / sine)
    return imaginary * per_sine[..., None]


def matrix_from_6d(six: torch.Tensor) -> torch.Tensor:
    """(..., 3, 3) rotations of any numbers (..., 6), by Gram-Schmidt; two parallel columns give none."""
    first, second = six[..., :3], six[..., 3:]
    x = torch.nn.functional.normalize(first, dim=-1)
    y = torch.nn.functional.normalize(second - (x * second).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)
