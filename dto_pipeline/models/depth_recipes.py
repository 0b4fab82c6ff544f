"""How each family of depth networks wants its images and its positions, and what its output means.

A recipe says at which size the network sees an image, prepares images on the device, and turns the network's output
into a map of the image's size, of a declared kind (see `models.depth`). Knows no files and no weights.

DINOv2's table of positions belongs to a square of patches; for every other size it is interpolated. The published code
does so by scale factors of (rows + 0.1) / side: row i of r reads the table at (i + 0.5) * side / (r + 0.1) - 0.5
(cubic, a = -0.75, borders repeated, no antialiasing); transformers interpolates to the size itself. On a trained small
network that is 0.01-0.08 % of a person's relative depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from dto_pipeline.models.depth import DISPARITY, METRIC_DEPTH
from dto_pipeline.models.network_input import network_size, resize_to_image, resize_to_network
from dto_pipeline.models.networks import ModelError, unknown_family_text

BILINEAR = "bilinear, corners not aligned"
_PRO_SIDE = 1536  # Depth Pro sees squares of this size [px]
OFFSET = 0.1  # patches, added by the published code so that rounding never loses one
AS_PUBLISHED = "stretched as published (offset of 0.1 patch)"
AS_TRANSFORMERS = "stretched as transformers does"
_PRO_RANGE = (1e-4, 1e4)  # of its inverse depth, as transformers clamps it [1/m]


@dataclass(frozen=True)
class DepthAnythingRecipe:
    """Depth Anything V1 and V2, relative (disparity) and metric: see `models.network_input`."""

    kind: str  # of the maps `restore` gives
    short_side: int  # [px]
    patch: int = 14  # [px]
    corners: bool = True  # maps come back corner on corner (V2); V1's code aligns no corners

    @property
    def way_back(self) -> str:
        """How maps come to the size of the image, for the labels' metadata."""
        return "bilinear, corner on corner" if self.corners else BILINEAR

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) the network sees an H x W image at [px]."""
        return network_size(height, width, self.short_side, self.patch)

    def prepare(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 3, h, w) float32 network input of (B, H, W, 3) uint8 images of one size."""
        return resize_to_network(images, size)

    def restore(self, output: Any, rows: slice, height: int, width: int, focal: np.ndarray) -> torch.Tensor:
        """(b, height, width) float32 maps of some rows of the network's batch.

        focal: (b,) focal lengths of the labels' cameras [px], NaN where they are not known.
        """
        return resize_to_image(output.predicted_depth[rows], height, width, self.corners)


@dataclass(frozen=True)
class DepthProRecipe:
    """Depth Pro: squares, normalised to -1 .. 1, then bilinear; inverse depth scaled by the camera's field of view.

    That is the labels' camera where it is known, as its authors' code takes a given focal length; else what it finds.
    """

    kind: str = METRIC_DEPTH
    side: int = _PRO_SIDE

    @property
    def way_back(self) -> str:
        return BILINEAR

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def prepare(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        return functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)

    def restore(self, output: Any, rows: slice, height: int, width: int, focal: np.ndarray) -> torch.Tensor:
        inverse = output.predicted_depth[rows].to(torch.float32)
        found = output.field_of_view
        told = torch.from_numpy((width / focal).astype(np.float32)).to(inverse.device, non_blocking=True)
        own = torch.ones_like(told) if found is None else 2 * torch.tan(torch.deg2rad(found[rows].float()) / 2)
        inverse = inverse * torch.where(told.isnan(), own, told)[:, None, None]  # width over focal length
        maps = functional.interpolate(inverse[:, None], size=(height, width), mode="bilinear", align_corners=False)
        return 1 / maps[:, 0].clamp(*_PRO_RANGE)


DepthRecipe = DepthAnythingRecipe | DepthProRecipe  # what a family of networks needs: the same five words


def recipe_for(network_config: Any, short_side: int) -> DepthRecipe:
    """The recipe of a network by its transformers config.

    Raises:
        ModelError: a family without a recipe here.
    """
    family = network_config.model_type
    if family == "depth_anything":
        backbone = network_config.backbone_config
        layers, taken = getattr(backbone, "num_hidden_layers", 0), list(getattr(backbone, "out_indices", None) or [])
        # V1 takes the features of its last four blocks, V2 of four spread over all; of four blocks both are the same
        first_version = layers > len(taken) > 1 and taken == list(range(layers - len(taken) + 1, layers + 1))
        kind = _depth_anything_kind(network_config)
        return DepthAnythingRecipe(kind, short_side, int(network_config.patch_size), not first_version)
    if family == "depth_pro":  # cuts its input into patches: 1536 for the published weights, smaller ones in proportion
        return DepthProRecipe(side=int(network_config.patch_size / min(network_config.scaled_images_ratios)))
    raise ModelError(unknown_family_text(family))


def _depth_anything_kind(config: Any) -> str:
    """What a Depth Anything network's output means; transformers builds its last layer by the same word.

    Raises:
        ModelError: the config contradicts itself, or says in other words that it is metric: read as relative, such
            depth would come back inverted.
    """
    told, most = config.depth_estimation_type, config.max_depth
    others = {k: v for k, v in config.to_dict().items() if k not in ("depth_estimation_type", "max_depth")}
    hints = [
        f"{key} is {value!r}"
        for key, value in others.items()
        if (isinstance(value, str) and value.strip().lower() in ("metric", "metric_depth", "absolute"))
        or ("metric" in key.lower() and value not in (None, False))
    ]
    if told == "relative" and most not in (None, 1):
        hints.append(f"max_depth is {most!r}")
    if told == "relative" and hints:
        raise ModelError(
            f"depth.model: its config.json says that {' and '.join(hints)}, but depth_estimation_type, the word that "
            f'transformers goes by, is {told!r}. If it is a metric network, write "depth_estimation_type": "metric" '
            'and its "max_depth" (20 m indoors, 80 m outdoors) there; if it is not, take the other words out'
        )
    if told == "metric" and (not most or most == 1):
        raise ModelError(
            f"depth.model: its config.json says depth_estimation_type 'metric' and max_depth {most!r}; expected the "
            "distance in metres that it was trained for (20 indoors, 80 outdoors)"
        )
    return METRIC_DEPTH if told == "metric" else DISPARITY


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
    found: Any = embeddings.patch_embeddings.patch_size  # type: ignore[union-attr]
    patch = (found, found) if isinstance(found, int) else found

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
