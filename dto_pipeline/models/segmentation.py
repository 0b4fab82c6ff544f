"""Instance masks of people by a segmentation network of transformers; whose is which: `models.body_pixels`.

Knows images; owns the network. Any network of `AutoModelForUniversalSegmentation` that classifies queries works
(Mask2Former, MaskFormer, EoMT); its labels must name a person.
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
from dto_pipeline.models.network_input import map_alone, network_size, plan_windows, resize_to_network, seen_at_once
from dto_pipeline.models.networks import ModelError, mask_reference
from dto_pipeline.models.pretrained import load_pretrained

FAMILIES = ("mask2former", "maskformer", "eomt", "eomt_dinov3")
_MULTIPLE = 32  # sides of what the network sees are multiples of it [px]


class InstanceNetwork:
    """A loaded segmentation network; see `find`."""

    def __init__(self, config: MaskConfig, device: torch.device | str = "cpu") -> None:
        """Load the network.

        Raises:
            ModelMissing, ModelError: it cannot be had, is not pinned, or does not know people.
        """
        self.device = torch.device(device)
        self.config = config
        reference = mask_reference(config)
        self.network, self.identity = load_pretrained(AutoModelForUniversalSegmentation, reference, self.device)
        check_family(self.network.config.model_type)
        self._person = person_classes(self.network.config.id2label)

    @property
    def facts(self) -> dict[str, str]:
        """What the labels' metadata says of the network; equal on every machine."""
        found = self.identity
        return {"mask_model": found.name, "mask_revision": found.revision, "mask_sha256": found.sha256}

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
        plan = plan_windows(seen, seen_at_once(self.device, self.config.batch))

        @torch.inference_mode()
        def see(positions: list[int]) -> dict[int, Instances]:
            pixels = (torch.from_numpy(images[i])[None].to(self.device, non_blocking=True) for i in positions)
            inputs = torch.cat([resize_to_network(image, seen[positions[0]]) for image in pixels])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                output = self.network(pixel_values=inputs)
            return {i: self._read(output, row, sizes[i]) for row, i in enumerate(positions)}

        found = {i: instances for part in map_alone(self.device, see, plan) for i, instances in part.items()}
        return [found[i] for i in range(len(images))]

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


def check_family(family: str) -> None:
    """Refuse networks whose output is not read here, before a run has begun.

    Raises:
        ModelError: another family than `FAMILIES`.
    """
    if family not in FAMILIES:
        raise ModelError(f"masks.model is of the family {family!r}; expected one of {', '.join(FAMILIES)}")


def person_classes(names: dict[int, str]) -> list[int]:
    """Classes that mean a person.

    Raises:
        ModelError: there is none.
    """
    found = [int(index) for index, name in names.items() if name.strip().lower() in ("person", "people", "human")]
    if not found:
        some = ", ".join(list(names.values())[:8])
        raise ModelError(f"masks.model knows no class 'person' (it knows {some} ...); choose one trained on COCO")
    return found
