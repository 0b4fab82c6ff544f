"""How each family of depth networks wants its images and what its output means.

A recipe says at which size the network sees an image, prepares images on the device, and turns the network's output
into a map of the image's size, of a declared kind: ``disparity`` (larger is nearer, unknown scale), ``depth`` (larger
is farther, unknown scale) or ``metric_depth`` (metres). Knows no files and no weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from dto_pipeline.models.depth_resize import network_size, resize_to_image, resize_to_network
from dto_pipeline.models.networks import ModelError, unknown_family_text

BILINEAR = "bilinear, corners not aligned"
_PRO_SIDE = 1536  # Depth Pro sees squares of this size [px]
_PRO_RANGE = (1e-4, 1e4)  # of its inverse depth, as transformers clamps it [1/m]


class DepthRecipe(Protocol):
    """What a family of networks needs."""

    @property
    def kind(self) -> str:
        """Of the maps `restore` gives."""
        ...

    @property
    def way_back(self) -> str:
        """How maps come to the size of the image, for the labels' metadata."""
        ...

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) the network sees an H x W image at [px]."""
        ...

    def prepare(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """(B, 3, h, w) float32 network input of (B, H, W, 3) uint8 images of one size."""
        ...

    def restore(self, output: Any, rows: slice, height: int, width: int, focal: np.ndarray) -> torch.Tensor:
        """(b, height, width) float32 maps of some rows of the network's batch.

        focal: (b,) focal lengths of the labels' cameras [px], NaN where they are not known.
        """
        ...


@dataclass(frozen=True)
class DepthAnythingRecipe:
    """Depth Anything V1 and V2, relative (disparity) and metric: see `models.depth_resize`."""

    kind: str
    short_side: int  # [px]
    patch: int = 14  # [px]
    corners: bool = True  # maps come back corner on corner (V2); V1's code aligns no corners

    @property
    def way_back(self) -> str:
        return "bilinear, corner on corner" if self.corners else BILINEAR

    def size(self, height: int, width: int) -> tuple[int, int]:
        return network_size(height, width, self.short_side, self.patch)

    def prepare(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return resize_to_network(images, size)

    def restore(self, output: Any, rows: slice, height: int, width: int, focal: np.ndarray) -> torch.Tensor:
        return resize_to_image(output.predicted_depth[rows], height, width, self.corners)


@dataclass(frozen=True)
class DepthProRecipe:
    """Depth Pro: squares, normalised to -1 .. 1, then bilinear; inverse depth scaled by the camera's field of view.

    That is the labels' camera where it is known, as its authors' code takes a given focal length; else what it finds.
    """

    kind: str = "metric_depth"
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


def recipe_for(network_config: Any, short_side: int) -> DepthRecipe:
    """The recipe of a network by its transformers config.

    Raises:
        ModelError: a family without a recipe here.
    """
    family = network_config.model_type
    if family == "depth_anything":
        kind = _depth_anything_kind(network_config)
        return DepthAnythingRecipe(
            kind, short_side, int(network_config.patch_size), not _is_first_version(network_config)
        )
    if family == "depth_pro":
        return DepthProRecipe(side=_pro_side(network_config))
    raise ModelError(unknown_family_text(family))


def _depth_anything_kind(config: Any) -> str:
    """What a Depth Anything network's output means; transformers builds its last layer by the same word.

    Raises:
        ModelError: the config contradicts itself, or says in other words that it is metric: read as relative, such
            depth would come back inverted.
    """
    told, most = config.depth_estimation_type, config.max_depth
    known = ("depth_estimation_type", "max_depth")
    hints = [
        f"{key} is {value!r}"
        for key, value in config.to_dict().items()
        if key not in known and (_says_metric(value) or ("metric" in key.lower() and value not in (None, False)))
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
    return "metric_depth" if told == "metric" else "disparity"


def _says_metric(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() in ("metric", "metric_depth", "absolute")


def _is_first_version(config: Any) -> bool:
    """V1 takes the features of its last four blocks, V2 of four spread over all; of four blocks both are the same."""
    backbone = config.backbone_config
    layers, taken = getattr(backbone, "num_hidden_layers", 0), list(getattr(backbone, "out_indices", None) or [])
    return layers > len(taken) > 1 and taken == list(range(layers - len(taken) + 1, layers + 1))


def _pro_side(network_config: Any) -> int:
    """Depth Pro cuts its input into patches; 1536 for the published weights, in proportion for smaller ones."""
    return int(network_config.patch_size / min(network_config.scaled_images_ratios))
