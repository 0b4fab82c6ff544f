"""Image classification networks of transformers that tell age and gender; every crop is seen twice, mirrored once.

Owns the networks. Knows plain classifiers, by their class names (see `models.attributes`), and MiVOLO's two inputs.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForImageClassification

from dto_pipeline.config import AttributeConfig
from dto_pipeline.models.attributes import CROP_SIDE, Attributes, read_class_names
from dto_pipeline.models.networks import ModelIdentity, ModelReference, attribute_references
from dto_pipeline.models.pretrained import load_pretrained, read_preprocessing


class AttributeModel(Protocol):
    """Whatever tells age and gender from crops."""

    identity: ModelIdentity

    def estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> Attributes:
        """From (n, 3, s, s) float32 crops in 0 .. 1."""
        ...


class CropClassifier:
    """A plain image classifier on face or body crops."""

    def __init__(self, reference: ModelReference, crop: str, device: torch.device) -> None:
        self.network, self.identity = load_pretrained(AutoModelForImageClassification, reference, device)
        self.meaning = read_class_names(self.network.config.id2label)
        self._crop, self._device = crop, device
        side = getattr(self.network.config, "image_size", CROP_SIDE)
        self._side = side if isinstance(side, int) else side[0]
        found = read_preprocessing(reference)
        channels = [found.get(key, [0.5] * 3) for key in ("image_mean", "image_std")]
        self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in channels)

    @torch.inference_mode()
    def estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> Attributes:
        crops = (faces if self._crop == "face" else bodies).to(self._device)
        crops = functional.interpolate(crops, (self._side, self._side), mode="bilinear", antialias=True)
        inputs = (crops - self._mean) / self._std
        seen = [self.network(pixel_values=pixels).logits.float().softmax(-1) for pixels in (inputs, inputs.flip(-1))]
        return self.meaning.read(((seen[0] + seen[1]) / 2).cpu().numpy().astype(np.float64))


class MiVolo:
    """MiVOLO v2: face and body together, through its repository's own code (`trust_remote_code`)."""

    def __init__(self, reference: ModelReference, device: torch.device) -> None:
        self.network, self.identity = load_pretrained(AutoModelForImageClassification, reference, device)
        options = {} if reference.is_folder else {"revision": reference.revision}
        self._processor = AutoImageProcessor.from_pretrained(
            reference.name, trust_remote_code=reference.trust_remote_code, local_files_only=reference.offline, **options
        )
        self._device = device
        genders = self.network.config.gender_id2label.items()
        self._male = next(int(index) for index, name in genders if name.lower() == "male")

    @torch.inference_mode()
    def estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> Attributes:
        seen = [self._look(faces, bodies), self._look(faces.flip(-1), bodies.flip(-1))]
        age, male = (np.mean([part[key] for part in seen], axis=0).astype(np.float32) for key in (0, 1))
        return Attributes(age, male)

    def _look(self, faces: torch.Tensor, bodies: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        inputs = [self._processor(images=_blue_first(crops))["pixel_values"] for crops in (faces, bodies)]
        output = self.network(faces_input=inputs[0].to(self._device), body_input=inputs[1].to(self._device))
        certain = output.gender_probs.flatten().float()  # of the class that was chosen
        male = torch.where(output.gender_class_idx.flatten() == self._male, certain, 1 - certain)
        return output.age_output.flatten().float().cpu().numpy(), male.cpu().numpy()


def build_attribute_models(config: AttributeConfig, device: torch.device | str) -> list[AttributeModel]:
    """The networks a config asks for, one or two.

    Raises:
        ModelMissing, ModelError: one cannot be had, is not pinned, or its classes say neither age nor gender.
    """
    where = torch.device(device)
    return [
        MiVolo(reference, where) if config.trust_remote_code else CropClassifier(reference, config.crop, where)
        for reference in attribute_references(config)
    ]


def _blue_first(crops: torch.Tensor) -> list[np.ndarray]:
    """Crops as MiVOLO's processor takes them: (s, s, 3) uint8, OpenCV's channel order."""
    pixels = (crops * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flip(-1)
    return [np.ascontiguousarray(crop) for crop in pixels.cpu().numpy()]
