"""Disparity of images by a depth network of transformers: Depth Anything (V1, V2, metric) or Depth Pro.

Owns the network. Images of one network size are done together; a batch that does not fit into the accelerator's memory
is halved; a map that is not finite fails its own image only. float32 on a CPU; on a GPU what `depth.precision` says,
where the last layer stays in float32: eight bits of mantissa would cut distances into steps of 0.4 %. Positions are
stretched as published, see `models.depth_positions`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForDepthEstimation

from dto_pipeline.config import DepthConfig
from dto_pipeline.models.alone import map_alone, seen_at_once
from dto_pipeline.models.depth import DepthInvalid
from dto_pipeline.models.depth_kinds import as_disparity
from dto_pipeline.models.depth_licences import LICENCES, describe_licences
from dto_pipeline.models.depth_positions import stretch_as_published
from dto_pipeline.models.depth_recipes import recipe_for
from dto_pipeline.models.depth_resize import plan_windows
from dto_pipeline.models.networks import ModelError, depth_reference
from dto_pipeline.models.pretrained import load_pretrained

_LOG = logging.getLogger(__name__)


class DepthNetwork:
    """A loaded depth network; see `estimate`."""

    def __init__(self, config: DepthConfig, device: torch.device | str = "cpu") -> None:
        """Load the network.

        Raises:
            ModelMissing, ModelError: it cannot be had, is not pinned, or is of an unknown family.
        """
        self.device = torch.device(device)
        reference = depth_reference(config)
        self.precision = resolve_precision(config.precision, self.device)
        network, identity = load_pretrained(
            AutoModelForDepthEstimation, reference, self.device, describe_licences(), spare_weights=False
        )
        self.at_once = seen_at_once(self.device, config.batch)
        self.recipe = recipe_for(network.config, config.short_side)
        self.config = config
        self.identity = identity
        self.origin = f"{self.recipe.kind} of {identity.short}"
        self.network = network
        self.positions = stretch_as_published(network)
        if self.precision != "float32":
            keep_last_layer_precise(network)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @property
    def facts(self) -> dict[str, str]:
        """What the labels' metadata says of the network; equal on every machine."""
        return {
            "depth_model": self.identity.name,
            "depth_revision": self.identity.revision,
            "depth_sha256": self.identity.sha256,
            "depth_kind": self.recipe.kind,
            "depth_positions": self.positions,
            "depth_way_back": self.recipe.way_back,
            "depth_precision": self.precision,
            "depth_licence": LICENCES.get(self.config.model, "unknown: see the model's own card"),
        }

    def estimate(
        self, images: Sequence[np.ndarray], focal: Sequence[float] | None = None
    ) -> list[np.ndarray | DepthInvalid]:
        """Disparity of a window of images.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes.
            focal: of the labels' cameras [px], one per image, where they are known.

        Returns:
            In the same order: (H, W) float32 disparity, finite and >= 0, or what is wrong with this image's map.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        plan = plan_windows([self.recipe.size(*image.shape[:2]) for image in images], self.at_once)

        def see(positions: list[int]) -> Iterable[tuple[int, np.ndarray | DepthInvalid]]:
            lengths = None if focal is None else [focal[position] for position in positions]
            return zip(positions, self._estimate_batch([images[p] for p in positions], lengths), strict=True)

        with self._on_stream():
            results = dict(pair for pairs in map_alone(self.device, see, plan) for pair in pairs)
        return [results[position] for position in range(len(images))]

    def positions_at(self, size: tuple[int, int]) -> np.ndarray:
        """(1 + h w / 196, C) positions of a Depth Anything network at a network size (h, w) [px], class token first."""
        embeddings = self.network.backbone.embeddings
        tokens = embeddings.position_embeddings.new_zeros(1, 1 + size[0] * size[1] // 196, 1)
        return embeddings.interpolate_pos_encoding(tokens, *size)[0].detach().cpu().numpy()

    def _estimate_batch(
        self, images: Sequence[np.ndarray], focal: Sequence[float] | None
    ) -> list[np.ndarray | DepthInvalid]:
        """The maps of images of one network size; halves the batch where memory runs out."""
        try:
            return [self._checked(values) for values in self._run(images, focal)]
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
        # Outside the handler: the traceback held every tensor of the failed batch.
        half = (len(images) + 1) // 2
        _LOG.warning("depth network: %d images do not fit into memory, trying %d", len(images), half)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        parts = [
            self._estimate_batch(images[part], None if focal is None else focal[part])
            for part in (slice(half), slice(half, None))
        ]
        return [values for part in parts for values in part]

    @torch.inference_mode()
    def _run(self, images: Sequence[np.ndarray], focal: Sequence[float] | None) -> list[np.ndarray]:
        groups = list(_runs_of_one_shape(images))
        size = self.recipe.size(*images[0].shape[:2])
        inputs = torch.cat([self.recipe.prepare(self._upload(group), size) for group in groups])
        with computing_in(self.precision, self.device):
            output = self.network(pixel_values=inputs)
        maps: list[np.ndarray] = []
        for group in groups:
            rows = slice(len(maps), len(maps) + len(group))
            lengths = None if focal is None else torch.tensor(focal[rows])
            height, width = group[0].shape[:2]
            restored = self.recipe.restore(output, rows, height, width, lengths)
            maps.extend(restored.cpu().numpy())
        return maps

    def _upload(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """(B, H, W, 3) uint8 on the device; the copy to a GPU is asynchronous, from pinned memory."""
        pixels = torch.from_numpy(np.stack(images))
        return pixels.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else pixels

    def _checked(self, values: np.ndarray) -> np.ndarray | DepthInvalid:
        disparity = as_disparity(values, self.recipe.kind)
        highest = float(disparity.max())
        if not np.isfinite(float(disparity.min()) + highest):
            return DepthInvalid(f"the depth network {self.identity.short} gave values that are not finite")
        if highest <= 0:
            return DepthInvalid(f"the depth network {self.identity.short} gave no disparity above zero")
        return disparity.clip(min=0)

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def resolve_precision(asked: str, device: torch.device) -> str:
    """What `depth.precision` means on a device.

    Raises:
        ModelError: another one than float32 on a CPU.
    """
    if asked == "auto":
        return "float32" if device.type == "cpu" else "bfloat16"
    if device.type == "cpu" and asked != "float32":
        raise ModelError(f"depth.precision is {asked!r}, which needs a GPU; on a CPU set it to float32 (or auto)")
    return asked


@contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """Networks compute in a precision; TF32, which cuDNN would take by itself, only where it is asked for."""
    if device.type == "cpu":
        yield
        return
    half = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(precision)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(device.type, half, enabled=half is not None):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def keep_last_layer_precise(network: nn.Module) -> None:
    """Let the last convolution of Depth Anything's head compute in float32 whatever the rest does (others: nothing)."""
    head = getattr(network, "head", None)
    if isinstance(getattr(head, "conv3", None), nn.Conv2d):
        head.conv3 = _InFloat32(head.conv3)  # type: ignore[union-attr]


class _InFloat32(nn.Module):
    """A layer that leaves autocast and TF32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False), computing_in("float32", values.device):
            return self.layer(values.float())


def _runs_of_one_shape(images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    run: list[np.ndarray] = []
    for image in images:
        if run and image.shape != run[0].shape:
            yield run
            run = []
        run.append(image)
    yield run
