"""What one training step sees: B images, each of its own size, and their people. Knows shapes and devices only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from dto_pipeline.train.targets import Targets


@dataclass(frozen=True)
class TrainBatch:
    """Images with their labels.

    Attributes:
        images: B of (3, h, w) uint8 RGB, the longer side S.
        intrinsics: (B, 3, 3) float32 camera of the varied image [px]; the principal point is where it is.
        targets: the people of all of them.
        image_ids: B keys; "" = a black image in the place of a batch of which nothing could be read.
        skipped: "key: reason" of each image of this batch that could not be used and is not in it.
    """

    images: tuple[torch.Tensor, ...]
    intrinsics: torch.Tensor
    targets: Targets
    image_ids: tuple[str, ...]
    skipped: tuple[str, ...] = ()

    @property
    def centres(self) -> torch.Tensor:
        """(B, 2) principal points [px]."""
        return self.intrinsics[:, :2, 2]

    def to(self, device: torch.device | str) -> TrainBatch:
        """The batch on another device."""
        images = tuple(image.to(device, non_blocking=True) for image in self.images)
        intrinsics = self.intrinsics.to(device, non_blocking=True)
        return dataclasses.replace(self, images=images, intrinsics=intrinsics, targets=self.targets.to(device))
