"""Disparity of images by a depth network of transformers: Depth Anything (V1, V2, metric) or Depth Pro.

Owns the network. Images of one network size are done together; a batch that does not fit into the accelerator's memory
is halved; a map that is not finite fails its own image only. float32 on a CPU; on a GPU what `depth.precision` says,
where the last layer stays in float32: eight bits of mantissa would cut distances into steps of 0.4 %. Positions are
stretched as published, see `models.depth_recipes`. All batches of a window are begun before any of them is waited
for, and maps stay on the device.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForDepthEstimation

from dto_pipeline.config import BY_DEVICE, DepthConfig
from dto_pipeline.models.depth import DISPARITY, METRES_PER_DEPTH, DepthInvalid
from dto_pipeline.models.depth_recipes import recipe_for, stretch_as_published
from dto_pipeline.models.network_input import map_alone, plan_windows, seen_at_once
from dto_pipeline.models.networks import LICENCES, ModelError, depth_reference, licence_lines
from dto_pipeline.models.pretrained import load_pretrained

_LOG = logging.getLogger(__name__)
_HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_SWITCHES = threading.RLock()  # on CUDA's own switches of precision, which all threads share


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
        hint = f"Licences: {'; '.join(licence_lines())}"
        network, identity = load_pretrained(
            AutoModelForDepthEstimation, reference, self.device, hint, spare_weights=False
        )
        self.at_once = seen_at_once(self.device, config.batch or BY_DEVICE["depth.batch"][1])
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
            In the same order: (H, W) float32 disparity on the device, done, finite and >= 0, or what is wrong with this
            image's map.

        Raises:
            torch.OutOfMemoryError: not even one image fits.
        """
        plan = plan_windows([self.recipe.size(*image.shape[:2]) for image in images], self.at_once)

        lengths = np.full(len(images), np.nan) if focal is None else np.asarray(focal)

        def begin(positions: list[int]) -> Iterable[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
            return zip(positions, self._begin([images[p] for p in positions], lengths[positions]), strict=True)

        with torch.cuda.stream(self._stream):  # nothing where there is none
            begun = dict(pair for pairs in map_alone(self.device, begin, plan) for pair in pairs)
            if self._stream is not None:
                done = torch.cuda.Event()
                done.record(self._stream)
                done.synchronize()  # the only wait of a window; its ranges are on the host now
        return [self._judge(*begun[position]) for position in range(len(images))]

    def positions_at(self, size: tuple[int, int]) -> np.ndarray:
        """(1 + h w / 196, C) positions of a Depth Anything network at a network size (h, w) [px], class token first."""
        embeddings = self.network.backbone.embeddings
        tokens = embeddings.position_embeddings.new_zeros(1, 1 + size[0] * size[1] // 196, 1)
        return embeddings.interpolate_pos_encoding(tokens, *size)[0].detach().cpu().numpy()

    def _begin(self, images: Sequence[np.ndarray], focal: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
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
        return [values for part in parts for values in self._begin(images[part], focal[part])]

    @torch.inference_mode()
    def _run(self, images: Sequence[np.ndarray], focal: np.ndarray) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per image its disparity (H, W) on the device, and least and largest value (2,) on the host, once done."""
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
        """What the network gives for inputs (B, 3, h, w) float32, in the precision asked for; nothing is waited for."""
        if self._halved:
            inputs = inputs.to(_HALF[self.precision])
        with computing_in("float32" if self._halved else self.precision, self.device):
            return self.network(pixel_values=inputs)

    def _judge(self, disparity: torch.Tensor, lowest_and_highest: torch.Tensor) -> torch.Tensor | DepthInvalid:
        lowest, highest = lowest_and_highest.tolist()
        if not np.isfinite(lowest + highest):
            return DepthInvalid(f"the depth network {self.identity.short} gave values that are not finite")
        if highest <= 0:
            return DepthInvalid(f"the depth network {self.identity.short} gave no disparity above zero")
        return disparity


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
    """Keep the weights of Depth Anything in half precision but for the last convolution of its head.

    Autocast would copy float32 weights at every call, and needs twice the operations. False: not such a network, and
    nothing was done; autocast is what is left.
    """
    head = getattr(network, "head", None)
    last = getattr(head, "conv3", None)
    if head is None or not isinstance(last, nn.Conv2d):
        return False
    head.conv3 = nn.Identity()
    network.to(half)
    head.conv3 = _InFloat32(last)
    return True


class _InFloat32(nn.Module):
    """A layer that computes in float32 whatever the rest does, TF32 and autocast left."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False), computing_in("float32", values.device):
            return self.layer(values.float())
