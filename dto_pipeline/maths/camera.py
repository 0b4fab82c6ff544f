"""Pinhole camera: projection, people under another camera, the camera of a person map. Pure tensors; metres, pixels."""

from __future__ import annotations

import torch


def project(points: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """(..., 2) u, v [px] of points in the camera frame; meaningless where z <= 0.

    Args: points (..., 3) [m]; intrinsics (..., 3, 3) [px] without skew, broadcast over the leading axes of `points`.
    """
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)
    centre = intrinsics[..., :2, 2]
    return points[..., :2] / points[..., 2:] * focal + centre


def carry_to_camera(
    transl: torch.Tensor, pelvis: torch.Tensor, own: torch.Tensor, camera: torch.Tensor
) -> torch.Tensor:
    """(n, 3) translation [m] under another camera, with the same place of the pelvis and size of the body in the image.

    Weak perspective: z changes by the ratio of the focal lengths. Meaningless where the pelvis is not in front of the
    camera. Args: transl, pelvis (n, 3) [m] under the camera `own`; own, camera (n, 3, 3) [px].
    """
    z = pelvis[:, 2:] * (camera[:, 1, 1] / own[:, 1, 1])[:, None]
    focal = torch.stack([camera[:, 0, 0], camera[:, 1, 1]], dim=-1)
    xy = (project(pelvis, own) - camera[:, :2, 2]) / focal * z
    return transl + torch.cat([xy, z], dim=-1) - pelvis


def map_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Size (h, w) of the person map of an H x W image: scaled down to a longest side of `max_side`, never up."""
    scale = min(1.0, max_side / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def map_intrinsics(
    intrinsics: torch.Tensor, image_size: torch.Tensor, map_sizes: torch.Tensor, max_side: int
) -> torch.Tensor:
    """(B, 3, 3) float64 camera of the person map: that of the image, scaled.

    The map is up to a pixel smaller than the scaled image, because its size is truncated; as in the published renderer,
    that fraction is cut off at the left and upper border. A centred principal point becomes (w - cx s, h - cy s), as
    published; an off-centre one keeps its side, while the published renderer mirrors it.

    Args: intrinsics (B, 3, 3) float64 [px]; image_size, map_sizes (B, 2) int64 as (H, W) and (h, w).
    """
    size = image_size.to(intrinsics.dtype)
    scale = (max_side / size.amax(dim=-1)).clamp(max=1.0)
    scaled = intrinsics.clone()
    scaled[:, :2] = intrinsics[:, :2] * scale[:, None, None]
    truncated = map_sizes.to(intrinsics.dtype) - size * scale[:, None]
    scaled[:, :2, 2] = scaled[:, :2, 2] + truncated.flip(-1)
    return scaled
