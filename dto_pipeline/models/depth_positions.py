"""Depth Anything's position table, stretched to other sizes as its authors do it.

DINOv2's table belongs to a square of patches; for every other size it is interpolated. The published code does so by
scale factors of (rows + 0.1) / side, so that row i of r reads the table at (i + 0.5) * side / (r + 0.1) - 0.5 (cubic,
a = -0.75, borders repeated, no antialiasing); transformers interpolates to the size itself. On a trained small network
that is 0.01-0.08 % of a person's relative depth. Wraps one network; transformers' classes stay as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

OFFSET = 0.1  # patches, added by the published code so that rounding never loses one
AS_PUBLISHED = "stretched as published (offset of 0.1 patch)"
AS_TRANSFORMERS = "stretched as transformers does"


def stretch_as_published(network: nn.Module) -> str:
    """Let a Depth Anything network stretch its positions as published.

    Returns:
        What is true from now on, for labels' metadata: a backbone that is no plain DINOv2 keeps its own way (with
        registers, DINOv2's own code has no offset).
    """
    backbone = getattr(network, "backbone", None)
    embeddings = getattr(backbone, "embeddings", None)
    is_dinov2 = getattr(getattr(backbone, "config", None), "model_type", "") == "dinov2"
    if not is_dinov2 or not hasattr(embeddings, "interpolate_pos_encoding"):
        return AS_TRANSFORMERS
    patch = _patch_size(embeddings)

    def interpolate(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        table = embeddings.position_embeddings  # type: ignore[union-attr]
        return stretch_positions(table, height // patch[0], width // patch[1]).to(tokens.dtype)

    embeddings.interpolate_pos_encoding = interpolate  # type: ignore[union-attr]
    return AS_PUBLISHED


def stretch_positions(table: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Positions of a grid of patches.

    Args:
        table: (1, 1 + n * n, C) class token first.

    Returns:
        (1, 1 + rows * columns, C) in the type of the table, computed in float32; the table itself for its own size.
    """
    side, width = round((table.shape[1] - 1) ** 0.5), table.shape[-1]
    if (rows, columns) == (side, side):
        return table
    square = table[:, 1:].reshape(1, side, side, width).permute(0, 3, 1, 2).to(torch.float32)
    scale = ((rows + OFFSET) / side, (columns + OFFSET) / side)
    with torch.autocast(table.device.type, enabled=False):
        stretched = functional.interpolate(square, scale_factor=scale, mode="bicubic")
    patches = stretched.permute(0, 2, 3, 1).reshape(1, rows * columns, width)
    return torch.cat([table[:, :1], patches.to(table.dtype)], dim=1)


def _patch_size(embeddings: Any) -> tuple[int, int]:
    found = embeddings.patch_embeddings.patch_size
    return (found, found) if isinstance(found, int) else (int(found[0]), int(found[1]))
