"""Instance masks by a segmentation network of transformers, given to the labelled people they fit.

Knows images and labelled bodies; owns the network. Any network of `AutoModelForUniversalSegmentation` that classifies
queries works (Mask2Former, MaskFormer, EoMT); its labels must name a person. Instances are assigned one to one to
people by the best total of silhouette IoU and share of body joints inside; who gets none keeps no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional
from transformers import AutoModelForUniversalSegmentation

from dto_pipeline.config import MaskConfig
from dto_pipeline.models.depth_resize import network_size, plan_windows, resize_to_network
from dto_pipeline.models.networks import ModelError, mask_reference
from dto_pipeline.models.pretrained import load_pretrained

_MULTIPLE = 32  # sides of what the network sees are multiples of it [px]
_BODY_JOINTS = 24  # of smplx's 45: those of the tree


@dataclass(frozen=True)
class Instances:
    """People found in one image, at person-map size."""

    masks: np.ndarray  # (Q, h, w) bool
    score: np.ndarray  # (Q,) float32 in 0 .. 1: of the class times the mean over the mask


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
        self._person = person_classes(self.network.config.id2label)

    @property
    def facts(self) -> dict[str, str]:
        """What the labels' metadata says of the network; equal on every machine."""
        found = self.identity
        return {"mask_model": found.name, "mask_revision": found.revision, "mask_sha256": found.sha256}

    @torch.inference_mode()
    def find(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """People in images.

        Args:
            images: (H, W, 3) uint8 RGB each; sizes: (h, w) of each image's person map [px].

        Returns:
            One `Instances` per image, scores at least `config.min_score`.
        """
        seen = [self._size_seen(*image.shape[:2]) for image in images]
        found: dict[int, Instances] = {}
        for positions in plan_windows(seen, self.config.batch):
            pixels = (torch.from_numpy(images[i])[None].to(self.device, non_blocking=True) for i in positions)
            inputs = torch.cat([resize_to_network(image, seen[positions[0]]) for image in pixels])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                output = self.network(pixel_values=inputs)
            found.update({i: self._read(output, row, sizes[i]) for row, i in enumerate(positions)})
        return [found[i] for i in range(len(images))]

    def _size_seen(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) the network sees an H x W image at; EoMT sees squares, whatever the image's shape."""
        config = self.network.config
        if str(config.model_type).startswith("eomt"):
            side = config.image_size
            return (side, side) if isinstance(side, int) else tuple(side)
        return network_size(height, width, self.config.short_side, _MULTIPLE)

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


def match_instances(
    instances: Instances, silhouettes: np.ndarray, joints: np.ndarray, min_match: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which instance is whose.

    Args:
        instances: Q found; silhouettes: (P, h, w) bool of the labelled bodies, each on its own.
        joints: (P, J, 2) of the same in pixels of the person map; NaN or outside the map = not counted.
        min_match: mean of IoU and share of joints inside under which a pair is no match.

    Returns:
        (P,) int64 index of the instance, -1 = none, and (P,) float64 match, NaN = none.
    """
    people, found = len(silhouettes), len(instances.masks)
    index, match = np.full(people, -1), np.full(people, np.nan)
    if people == 0 or found == 0:
        return index, match
    quality = (_overlap(silhouettes, instances.masks) + _joints_inside(joints, instances.masks)) / 2
    for person, instance in zip(*linear_sum_assignment(quality, maximize=True), strict=True):
        if quality[person, instance] >= min_match:
            index[person], match[person] = instance, quality[person, instance]
    return index, match


def map_joints(joints: np.ndarray, image: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """(P, 24, 2) body joints in pixels of an h x w map, from (P, 45, 2) in those of an H x W image."""
    return joints[:, :_BODY_JOINTS] * (size[1] / image[1], size[0] / image[0])


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


def _overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P, Q) intersection over union of masks (P, h, w) and (Q, h, w)."""
    flat, other = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (first, second))
    shared = flat @ other.T
    union = flat.sum(1)[:, None] + other.sum(1) - shared
    return shared / np.maximum(union, 1)


def _joints_inside(joints: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """(P, Q) share of each person's counted joints that lie in each mask; 0 where none counts."""
    height, width = masks.shape[1:]
    column, row = np.floor(np.nan_to_num(joints, nan=-1.0).clip(-1, 1 << 20)).astype(np.int64).transpose(2, 0, 1)
    counted = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    hit = masks[:, np.where(counted, row, 0), np.where(counted, column, 0)] & counted  # (Q, P, J)
    return (hit.sum(2) / np.maximum(counted.sum(1), 1)).T
