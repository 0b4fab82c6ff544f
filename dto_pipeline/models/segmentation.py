"""Instance masks of people by a segmentation network of transformers; `models.body_pixels` assigns them to people.

Any network of `AutoModelForUniversalSegmentation` that classifies queries works (Mask2Former, MaskFormer, EoMT); its
labels must name a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForUniversalSegmentation

from dto_pipeline.config import MaskConfig
from dto_pipeline.models.body_pixels import Instances
from dto_pipeline.models.network_input import images_at_once, network_size, resize_to_network, run_in_batches
from dto_pipeline.models.networks import ModelError, reference_of
from dto_pipeline.models.pretrained import load_pretrained

_MULTIPLE = 32  # sides of the network's input are multiples of it [px]


class InstanceNetwork:
    """A loaded segmentation network; see `find`."""

    def __init__(self, config: MaskConfig, device: torch.device | str = "cpu") -> None:
        """Load the network.

        Raises:
            ModelMissing, ModelError: it cannot be loaded, or has no class of people.
        """
        self.device = torch.device(device)
        self.config = config
        reference = reference_of("masks", config)
        self.network, self.identity = load_pretrained(AutoModelForUniversalSegmentation, reference, self.device)
        self._person = person_classes(self.network.config.id2label)

    def find(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """People in images.

        Args:
            images: (H, W, 3) uint8 RGB each; sizes: (h, w) of each image's person map [px].

        Returns:
            One `Instances` per image, scores at least `config.min_score`.
        """
        seen = [network_size(image.shape[0], image.shape[1], self.config.short_side, _MULTIPLE) for image in images]
        if str(self.network.config.model_type).startswith("eomt"):  # sees squares, whatever the image's shape
            side = self.network.config.image_size
            seen = [(side, side) if isinstance(side, int) else tuple(side)] * len(images)

        @torch.inference_mode()
        def see(positions: list[int]) -> list[Instances]:
            pixels = (torch.from_numpy(images[i])[None].to(self.device, non_blocking=True) for i in positions)
            inputs = torch.cat([resize_to_network(image, seen[positions[0]]) for image in pixels])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                output = self.network(pixel_values=inputs)
            return [self._read(output, row, sizes[i]) for row, i in enumerate(positions)]

        return run_in_batches(self.device, seen, images_at_once(self.device, self.config.batch), see)

    def _read(self, output: Any, row: int, size: tuple[int, int]) -> Instances:
        """The people of one image of the batch, at its map size."""
        classes = output.class_queries_logits[row].float().softmax(-1)[:, self._person].sum(-1)
        logits = output.masks_queries_logits[row].float()
        inside = logits > 0
        certain = (logits.sigmoid() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)
        score = classes * certain
        kept = (score >= self.config.min_score) & inside.any(2).any(1)
        if not kept.any():
            return Instances(np.zeros((0, *size), bool), np.zeros(0, np.float32))
        maps = functional.interpolate(logits[kept][:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return Instances((maps > 0).cpu().numpy(), score[kept].cpu().numpy())


def person_classes(names: dict[int, str]) -> list[int]:
    """Classes that mean a person. Raises: ModelError: there is none."""
    found = [int(index) for index, name in names.items() if name.strip().lower() in ("person", "people", "human")]
    if not found:
        some = ", ".join(list(names.values())[:8])
        raise ModelError(f"masks.model knows no class 'person' (it knows {some} ...); choose one trained on COCO")
    return found
