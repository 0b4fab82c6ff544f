"""Disparity of images by a depth network of transformers: Depth Anything (V1, V2, metric) or Depth Pro.

Images of one network size are computed together. A batch that does not fit into the accelerator's memory is halved; a
map that is not finite fails its own image only. All batches of a window are started before the first is waited for, and
maps stay on the device. Computed in float32 on a CPU and in `depth.precision` on a GPU, but for the last layer, which
is always computed in float32: eight bits of mantissa would cut distances into steps of 0.4 %.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForDepthEstimation

from dto_pipeline.config import BY_DEVICE, DepthConfig
from dto_pipeline.models.depth import DISPARITY, METRES_PER_DEPTH, METRIC_DEPTH, DepthInvalid
from dto_pipeline.models.network_input import (
    OFFSET,
    images_at_once,
    network_size,
    resize_to_image,
    resize_to_network,
    run_in_batches,
    stretch_positions,
)
from dto_pipeline.models.networks import LICENCES, ModelError, reference_of
from dto_pipeline.models.pretrained import load_pretrained

_LOG = logging.getLogger(__name__)
_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SWITCHES = threading.RLock()  # for CUDA's own switches of precision, which all threads share
_PRO_RANGE = (1e-4, 1e4)  # to which transformers clamps Depth Pro's inverse depth [1/m]


class DepthNetwork:
    """A loaded depth network; see `see`."""

    def __init__(self, config: DepthConfig, device: torch.device | str = "cpu") -> None:
        """Load the network.

        Raises: ModelMissing, ModelError: it cannot be had, is not pinned, or is of an unknown family.
        """
        self.device = torch.device(device)
        reference = reference_of("depth", config)
        self.precision = resolve_precision(config.precision, self.device)
        network, identity = load_pretrained(AutoModelForDepthEstimation, reference, self.device, spare_weights=False)
        self.at_once = images_at_once(self.device, config.batch or BY_DEVICE["depth.batch"][1])
        self.recipe = recipe_for(network.config, config.short_side)
        self.config = config
        self.identity = identity
        self.origin = f"{self.recipe.kind} of {identity.short}"
        self.network = network
        self.positions = stretch_as_published(network)
        half = _HALF.get(self.precision)
        self._halved = half is not None and halve_weights(network, half)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def facts(self) -> dict[str, str]:
        """Entries of the labels' metadata; equal on every machine."""
        return self.identity.facts("depth") | {
            "depth_kind": self.recipe.kind,
            "depth_positions": self.positions,
            "depth_way_back": "bilinear, corner on corner" if self.recipe.corners else "bilinear, corners not aligned",
            "depth_precision": self.precision,
            "depth_licence": LICENCES.get(self.config.model, "unknown: see the model's own card"),
        }

    def estimate(
        self, images: Sequence[np.ndarray], focal: Sequence[float] | None = None
    ) -> list[np.ndarray | DepthInvalid]:
        """`see`, with the maps on the host."""
        return [found.cpu().numpy() if torch.is_tensor(found) else found for found in self.see(images, focal)]

    def see(
        self, images: Sequence[np.ndarray], focal: Sequence[float] | None = None
    ) -> list[torch.Tensor | DepthInvalid]:
        """Disparity of a window of images.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes.
            focal: of the labels' cameras [px], one per image, where they are known.

        Returns:
            In the same order: (H, W) float32 disparity on the device, computed, finite and >= 0, or what is wrong with
            the image's map.

        Raises: torch.OutOfMemoryError: not even one image fits.
        """
        sizes = [self.recipe.size(*image.shape[:2]) for image in images]
        lengths = np.full(len(images), np.nan) if focal is None else np.asarray(focal)

        def start(positions: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
            return self._start([images[p] for p in positions], lengths[positions])

        with torch.cuda.stream(self._stream):  # without effect on a CPU
            started = run_in_batches(self.device, sizes, self.at_once, start)
            if self._stream is not None:
                done = torch.cuda.Event()
                done.record(self._stream)
                done.synchronize()  # the only wait of a window; its ranges are on the host now
        return [self._check(*found) for found in started]

    def positions_at(self, size: tuple[int, int]) -> np.ndarray:
        """(1 + h w / 196, C) positions of a Depth Anything network at a network size (h, w) [px], class token first."""
        embeddings = self.network.backbone.embeddings
        tokens = embeddings.position_embeddings.new_zeros(1, 1 + size[0] * size[1] // 196, 1)
        return embeddings.interpolate_pos_encoding(tokens, *size)[0].detach().cpu().numpy()

    def _start(self, images: Sequence[np.ndarray], focal: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Maps and ranges of images of one network size; halves the batch where memory runs out."""
        try:
            return self._run(images, focal)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        # Outside the handler: the traceback held every tensor of the failed batch.
        half = (len(images) + 1) // 2
        _LOG.warning("depth network: %d images do not fit into memory, trying %d", len(images), half)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        parts = (slice(half), slice(half, None))
        return [values for part in parts for values in self._start(images[part], focal[part])]

    @torch.inference_mode()
    def _run(self, images: Sequence[np.ndarray], focal: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Disparity (H, W) of each image on the device, and its least and largest value (2,), on the host once done."""
        groups = [list(group) for _, group in groupby(images, key=lambda image: image.shape)]
        size, inputs = self.recipe.size(*images[0].shape[:2]), []
        for group in groups:
            pixels = torch.from_numpy(np.stack(group))
            if self.device.type == "cuda":  # an asynchronous copy, from pinned memory
                pixels = pixels.pin_memory().to(self.device, non_blocking=True)
            inputs.append(self.recipe.prepare(pixels, size))
        output = self.compute(torch.cat(inputs))
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group in groups:
            rows = slice(len(found), len(found) + len(group))
            height, width = group[0].shape[:2]
            maps = self.recipe.restore(output, rows, height, width, focal[rows])
            if self.recipe.kind != DISPARITY:
                maps = torch.where(maps == 0, 0.0, METRES_PER_DEPTH / maps)
            ranges = torch.stack([maps.amin((1, 2)), maps.amax((1, 2))], 1).to("cpu", non_blocking=True)
            found.extend(zip(maps.clamp_(min=0), ranges, strict=True))
        return found

    def compute(self, inputs: torch.Tensor) -> Any:
        """The network's output for inputs (B, 3, h, w) float32 in its precision, without waiting for it."""
        if self._halved:
            inputs = inputs.to(_HALF[self.precision])
        with computing_in("float32" if self._halved else self.precision, self.device):
            return self.network(pixel_values=inputs)

    def _check(self, disparity: torch.Tensor, limits: torch.Tensor) -> torch.Tensor | DepthInvalid:
        lowest, highest = limits.tolist()
        if not np.isfinite(lowest + highest):
            return DepthInvalid(f"the depth network {self.identity.short} gave values that are not finite")
        if highest <= 0:
            return DepthInvalid(f"the depth network {self.identity.short} gave no disparity above zero")
        return disparity


@dataclass(frozen=True)
class DepthAnythingRecipe:
    """Input and output of Depth Anything V1 and V2, relative and metric: see `models.network_input`."""

    kind: str  # of the maps that `restore` returns, see `models.depth`
    short_side: int  # [px]
    patch: int = 14  # [px]
    corners: bool = True  # maps come back corner on corner (V2); V1's code aligns no corners

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) of the network's input for an H x W image [px]."""
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

    The field of view is that of the labels' camera where it is known, as its authors' code takes a given focal length;
    else what the network finds.
    """

    side: int = 1536  # of the squares that the published weights see [px]
    kind: str = METRIC_DEPTH
    corners: bool = False

    def size(self, height: int, width: int) -> tuple[int, int]:
        return self.side, self.side

    def prepare(self, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        pixels = images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
        return functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False)

    def restore(self, output: Any, rows: slice, height: int, width: int, focal: np.ndarray) -> torch.Tensor:
        inverse = output.predicted_depth[rows].to(torch.float32)
        found = output.field_of_view
        given = torch.from_numpy((width / focal).astype(np.float32)).to(inverse.device, non_blocking=True)
        own = torch.ones_like(given) if found is None else 2 * torch.tan(torch.deg2rad(found[rows].float()) / 2)
        inverse = inverse * torch.where(given.isnan(), own, given)[:, None, None]  # width over focal length
        return 1 / resize_to_image(inverse, height, width, self.corners).clamp(*_PRO_RANGE)


def recipe_for(network_config: Any, short_side: int) -> DepthAnythingRecipe | DepthProRecipe:
    """The recipe of a network of a known family by its transformers config.

    Raises: ModelError: a metric Depth Anything without its largest depth, or one whose config says in other words than
        transformers' own, depth_estimation_type, that it is metric: read as relative, its depth would be inverted.
    """
    if network_config.model_type == "depth_pro":  # cuts its input into patches: 1536 px for the published weights
        return DepthProRecipe(int(network_config.patch_size / min(network_config.scaled_images_ratios)))
    said = network_config.depth_estimation_type
    is_metric, has_limit = said == "metric", network_config.max_depth not in (None, 0, 1)
    hints = [
        f"{key} {value!r}"
        for key, value in network_config.to_dict().items()
        if key != "depth_estimation_type"
        and (
            (isinstance(value, str) and value.strip().lower() in ("metric", "metric_depth", "absolute"))
            or ("metric" in key.lower() and value not in (None, False))
            or (key == "max_depth" and has_limit != is_metric)
        )
    ]
    if hints and not (is_metric and has_limit):
        raise ModelError(
            f"depth.model: its config.json has {' and '.join(hints)}, but depth_estimation_type, the word that "
            f'transformers uses, is {said!r}. For a metric network write "depth_estimation_type": "metric" and the '
            '"max_depth" in metres that it was trained for (20 indoors, 80 outdoors); for a relative one leave the '
            "other words out"
        )
    backbone = network_config.backbone_config
    layers, taken = getattr(backbone, "num_hidden_layers", 0), list(getattr(backbone, "out_indices", None) or [])
    # V1 takes the features of its last four blocks, V2 of four spread over all; of four blocks both are the same
    first_version = layers > len(taken) > 1 and taken == list(range(layers - len(taken) + 1, layers + 1))
    kind = METRIC_DEPTH if is_metric else DISPARITY
    return DepthAnythingRecipe(kind, short_side, int(network_config.patch_size), not first_version)


def stretch_as_published(network: nn.Module) -> str:
    """Let a Depth Anything network stretch its positions as published, see `stretch_positions`.

    Returns: what is done now, for labels' metadata. A backbone that is not a plain DINOv2 keeps its own way (DINOv2's
    own code for registers has no offset).
    """
    backbone = getattr(network, "backbone", None)
    embeddings: Any = getattr(backbone, "embeddings", None)
    is_dinov2 = getattr(getattr(backbone, "config", None), "model_type", "") == "dinov2"
    if not is_dinov2 or not hasattr(embeddings, "interpolate_pos_encoding"):
        return "stretched as transformers does"
    found = embeddings.patch_embeddings.patch_size
    patch = (found, found) if isinstance(found, int) else found

    def interpolate(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        table = embeddings.position_embeddings  # (1, 1 + n * n, C), class token first
        rows, columns = height // patch[0], width // patch[1]
        if rows == columns and rows * columns == table.shape[1] - 1:
            return table.to(tokens.dtype)
        patches = stretch_positions(table[0, 1:], rows, columns).flatten(0, 1)[None]
        return torch.cat([table[:, :1], patches.to(table.dtype)], dim=1).to(tokens.dtype)

    embeddings.interpolate_pos_encoding = interpolate
    return f"stretched as published (offset of {OFFSET} patch)"


def resolve_precision(asked: str, device: torch.device) -> str:
    """`depth.precision` on a device. Raises: ModelError: a precision other than float32 on a CPU."""
    if asked == "auto":
        return "float32" if device.type == "cpu" else "bfloat16"
    if device.type == "cpu" and asked != "float32":
        raise ModelError(f"depth.precision is {asked!r}, which needs a GPU; on a CPU set it to float32 (or auto)")
    return asked


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Let networks compute in a precision. TF32, which cuDNN would use by itself, is used only where asked for."""
    if device.type == "cpu":
        yield
        return
    half = _HALF.get(precision)
    with _SWITCHES:
        before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        try:
            with torch.autocast(device.type, half, enabled=half is not None):
                yield
        finally:
            torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def halve_weights(network: nn.Module, half: torch.dtype) -> bool:
    """Let the last convolution of the head compute in float32; keep Depth Anything's other weights in half precision.

    Autocast would copy float32 weights at every call, and needs twice the operations. False: another network, whose
    weights stay in float32 and which needs autocast.
    """
    head = getattr(network, "head", nn.Identity())
    names = [name for name, module in head.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        return False
    place, _, own = names[-1].rpartition(".")
    parent, last = head.get_submodule(place), head.get_submodule(names[-1])
    is_depth_anything = names[-1] == "conv3"
    if is_depth_anything:
        setattr(parent, own, nn.Identity())
        network.to(half)
    setattr(parent, own, _InFloat32(last))
    return is_depth_anything


class _InFloat32(nn.Module):
    """A layer that computes in float32, without TF32 and autocast."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False), computing_in("float32", values.device):
            return self.layer(values.float())
