"""Networks of transformers that look at people: instance masks, and ages and genders.

Masks come from any network of `AutoModelForUniversalSegmentation` that classifies queries (Mask2Former, MaskFormer,
EoMT) and has a class for people; `models.seeing` assigns them to people. Ages and genders come from plain classifiers,
whose class names are ages (``20-29``, ``3-9``, ``more than 70``), genders (``male``, ``woman``) or both, or from
MiVOLO, which sees face and body. Every crop is seen twice, once mirrored. Years; probabilities 0 .. 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForImageClassification, AutoModelForUniversalSegmentation
from transformers.image_processing_base import ImageProcessingMixin

from dto_pipeline.config import AttributeConfig, MaskConfig
from dto_pipeline.models.network_input import (
    CROP_SIDE,
    Instances,
    images_at_once,
    network_size,
    resize_to_network,
    run_in_batches,
)
from dto_pipeline.models.networks import ModelError, ModelReference, attribute_references, reference_of
from dto_pipeline.models.pretrained import load_pretrained, source_options

_MULTIPLE = 32  # sides of the segmentation network's input are multiples of it [px]
_OPEN_RANGE = 5.0  # a class without upper end (70+) is taken to have its middle this far above its lower end [years]
_MAX_AGE = 110.0  # larger numbers in names of classes are not ages [years]
_FEMALE = re.compile(r"\b(female|woman|women|girl|girls)\b")
_MALE = re.compile(r"\b(male|man|men|boy|boys)\b")


class InstanceNetwork:
    """A loaded segmentation network; see `find`."""

    def __init__(self, config: MaskConfig, device: torch.device | str = "cpu") -> None:
        """Load the network.

        Raises: ModelMissing, ModelError: it cannot be loaded, or has no class of people.
        """
        self.device = torch.device(device)
        self.config = config
        reference = reference_of("masks", config)
        self.network, self.identity = load_pretrained(AutoModelForUniversalSegmentation, reference, self.device)
        names: dict[int, str] = self.network.config.id2label
        self._person = [int(n) for n, name in names.items() if name.strip().lower() in ("person", "people", "human")]
        if not self._person:
            some = ", ".join(list(names.values())[:8])
            raise ModelError(f"masks.model knows no class 'person' (it knows {some} ...); choose one trained on COCO")

    def find(self, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """People in images.

        Args: images: (H, W, 3) uint8 RGB each; sizes: (h, w) of each image's person map [px].

        Returns: One `Instances` per image, scores at least `config.min_score`.
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


def read_class_names(names: dict[int, str]) -> np.ndarray:
    """(C, 2) the middle of each class's range of ages [years], and 1 for male, 0 for female; NaN = the name has none.

    Raises: ModelError: no name says either.
    """
    ordered = [str(names[key]).lower().replace("_", " ") for key in sorted(names, key=int)]
    male = [0.0 if _FEMALE.search(name) else 1.0 if _MALE.search(name) else np.nan for name in ordered]
    meaning = np.array([[_age_of(name) for name in ordered], male]).T
    if np.isnan(meaning).all():
        raise ModelError(
            f"attributes.model has classes {', '.join(ordered[:6])} ...; expected ages like '20-29' or 'more than 70', "
            "or genders like 'female'; MiVOLO needs attributes.trust_remote_code=true"
        )
    return meaning


def expect_attributes(probability: np.ndarray, meaning: np.ndarray) -> np.ndarray:
    """(n, 2) float32 expected age [years] and probability of being male, NaN = unknown.

    Args: probability (n, C) of the classes of n people; meaning (C, 2), see `read_class_names`.
    """
    found = np.full((len(probability), 2), np.nan, np.float32)
    for column, value in enumerate(meaning.T):
        known = ~np.isnan(value)
        if known.any():
            share = probability[:, known]
            found[:, column] = share @ value[known] / np.maximum(share.sum(1), 1e-9)
    return found


def _age_of(name: str) -> float:
    numbers = [float(text) for text in re.findall(r"\d+", name)]
    if not numbers or max(numbers) > _MAX_AGE:
        return np.nan
    if len(numbers) >= 2:
        return (numbers[0] + numbers[1] + 1) / 2  # 20-29 ends where 30 begins
    is_open = "+" in name or "more" in name or "over" in name
    return numbers[0] + (_OPEN_RANGE if is_open else 0.0)


class CropClassifier:
    """A plain image classifier on face or body crops."""

    def __init__(self, reference: ModelReference, crop: str, device: torch.device) -> None:
        self.network, self.identity = load_pretrained(AutoModelForImageClassification, reference, device)
        self.meaning = read_class_names(self.network.config.id2label)
        self._crop, self._device = crop, device
        side = getattr(self.network.config, "image_size", CROP_SIDE)
        self._side = side if isinstance(side, int) else side[0]
        try:
            found = ImageProcessingMixin.get_image_processor_dict(reference.located, **source_options(reference))[0]
        except OSError:  # it has no preprocessor_config.json, which is optional
            found = {}
        channels = [found.get(key, [0.5] * 3) for key in ("image_mean", "image_std")]
        self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in channels)

    @torch.inference_mode()
    def estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> np.ndarray:
        """(n, 2) float32 ages and probabilities of being male, from (n, 3, s, s) float32 crops in 0 .. 1."""
        crops = (faces if self._crop == "face" else bodies).to(self._device)
        crops = functional.interpolate(crops, (self._side, self._side), mode="bilinear", antialias=True)
        inputs = (crops - self._mean) / self._std
        seen = [self.network(pixel_values=pixels).logits.float().softmax(-1) for pixels in (inputs, inputs.flip(-1))]
        return expect_attributes(((seen[0] + seen[1]) / 2).cpu().numpy().astype(np.float64), self.meaning)


class MiVolo:
    """MiVOLO v2: face and body together, through its repository's own code (`trust_remote_code`)."""

    def __init__(self, reference: ModelReference, device: torch.device) -> None:
        self.network, self.identity = load_pretrained(AutoModelForImageClassification, reference, device)
        options = {"trust_remote_code": reference.trust_remote_code, **source_options(reference)}
        self._processor = AutoImageProcessor.from_pretrained(reference.located, **options)
        self._device = device
        genders = self.network.config.gender_id2label.items()
        self._male = next(int(index) for index, name in genders if name.lower() == "male")

    @torch.inference_mode()
    def estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> np.ndarray:
        """(n, 2) float32 ages and probabilities of being male, from (n, 3, s, s) float32 crops in 0 .. 1."""
        return np.mean([self._classify(faces, bodies), self._classify(faces.flip(-1), bodies.flip(-1))], axis=0)

    def _classify(self, faces: torch.Tensor, bodies: torch.Tensor) -> np.ndarray:
        inputs = []
        for crops in (faces, bodies):
            # as its processor takes them: (s, s, 3) uint8, OpenCV's channel order
            pixels = (crops * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flip(-1).cpu().numpy()
            inputs.append(self._processor(images=[np.ascontiguousarray(crop) for crop in pixels])["pixel_values"])
        output = self.network(faces_input=inputs[0].to(self._device), body_input=inputs[1].to(self._device))
        certain = output.gender_probs.flatten().float()  # of the class that was chosen
        male = torch.where(output.gender_class_idx.flatten() == self._male, certain, 1 - certain)
        return torch.stack([output.age_output.flatten().float(), male], 1).cpu().numpy()


AttributeModel = CropClassifier | MiVolo


def build_attribute_models(config: AttributeConfig, device: torch.device | str) -> list[AttributeModel]:
    """The networks a config asks for, one or two.

    Raises: ModelMissing, ModelError: one cannot be loaded, or its classes are neither ages nor genders.
    """
    where = torch.device(device)
    return [
        MiVolo(reference, where) if config.trust_remote_code else CropClassifier(reference, config.crop, where)
        for reference in attribute_references(config)
    ]
