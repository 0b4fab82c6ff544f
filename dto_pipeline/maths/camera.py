"""Pinhole camera: projection, and the camera of a person map. Pure tensors; metres in, pixels out."""

from __future__ import annotations

import torch


def project(points: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Image positions of points in the camera frame.

    Args:
        points: (..., 3) [m]; the result means nothing where z <= 0.
        intrinsics: (..., 3, 3) [px], broadcast over the leading axes of `points` (without skew).

    Returns:
        (..., 2) u, v [px].
    """
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1)
    centre = intrinsics[..., :2, 2]
    return points[..., :2] / points[..., 2:] * focal + centre


def map_size(height: int, width: int, max_side: int) -> tuple[int, int]:
    """Size (h, w) of the person map of an H x W image: the longest side at most `max_side`, truncated, never larger."""
    scale = min(1.0, max_side / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def map_intrinsics(
    intrinsics: torch.Tensor, image_size: torch.Tensor, map_sizes: torch.Tensor, max_side: int
) -> torch.Tensor:
    """Camera of the person map: the image's camera scaled, flush with the map's right and lower border.

    The map is up to a pixel smaller than the scaled image (its size is truncated); the published renderer lets that
    fraction fall off the left and upper border, and so do we. For a centred principal point this gives (w - cx s,
    h - cy s), as published; an off-centre one keeps its side, where the published renderer mirrors it.

    Args:
        intrinsics: (B, 3, 3) float64 [px]; image_size, map_sizes: (B, 2) int64 as (H, W) and (h, w).

    Returns:
        (B, 3, 3) float64 [px of the map].
    """
    size = image_size.to(intrinsics.dtype)
    scale = (max_side / size.amax(dim=-1)).clamp(max=1.0)
    scaled = intrinsics.clone()
    scaled[:, :2] = intrinsics[:, :2] * scale[:, None, None]
    truncated = map_sizes.to(intrinsics.dtype) - size * scale[:, None]
    scaled[:, :2, 2] = scaled[:, :2, 2] + truncated.flip(-1)
    return scaled
