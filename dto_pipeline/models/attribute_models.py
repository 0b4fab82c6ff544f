"""Ages and genders by image classification networks of transformers, from each crop and its mirror image.

Plain classifiers, whose class names are ages (``20-29``, ``3-9``, ``more than 70``), genders (``male``, ``woman``) or
both, and MiVOLO with its two inputs. Years; probabilities 0 .. 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoImageProcessor, AutoModelForImageClassification

from dto_pipeline.config import AttributeConfig
from dto_pipeline.models.body_pixels import CROP_SIDE, Attributes
from dto_pipeline.models.networks import ModelError, ModelReference, attribute_references
from dto_pipeline.models.pretrained import load_pretrained, read_preprocessing

_OPEN_RANGE = 5.0  # the middle of a class without upper end (70+) is this far above its lower end [years]
_MAX_AGE = 110.0  # larger numbers are no ages [years]
_FEMALE = re.compile(r"\b(female|woman|women|girl|girls)\b")
_MALE = re.compile(r"\b(male|man|men|boy|boys)\b")


@dataclass(frozen=True)
class ClassMeaning:
    """Age and gender of a classifier's classes; NaN = unknown."""

    age: np.ndarray  # (C,) middle of the class's range [years]
    male: np.ndarray  # (C,) 1 male, 0 female

    def read(self, probability: np.ndarray) -> Attributes:
        """Expected age and probability of being male of n people from class probabilities (n, C); NaN = unknown."""

        def expected(value: np.ndarray) -> np.ndarray:
            known = ~np.isnan(value)
            share = probability[:, known]
            mean = share @ value[known] / np.maximum(share.sum(1), 1e-9)
            return (mean if known.any() else np.full(len(probability), np.nan)).astype(np.float32)

        return Attributes(expected(self.age), expected(self.male))


def read_class_names(names: dict[int, str]) -> ClassMeaning:
    """Ages and genders in the names of classes. Raises: ModelError: there is none in any name."""
    ordered = [str(names[key]).lower().replace("_", " ") for key in sorted(names, key=int)]
    age = np.array([_age_of(name) for name in ordered])
    male = np.array([0.0 if _FEMALE.search(name) else 1.0 if _MALE.search(name) else np.nan for name in ordered])
    if np.isnan(age).all() and np.isnan(male).all():
        raise ModelError(
            f"attributes.model has classes {', '.join(ordered[:6])} ...; expected ages like '20-29' or 'more than 70', "
            "or genders like 'female'; MiVOLO needs attributes.trust_remote_code=true"
        )
    return ClassMeaning(age, male)


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
        found = read_preprocessing(reference)
        channels = [found.get(key, [0.5] * 3) for key in ("image_mean", "image_std")]
        self._mean, self._std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in channels)

    @torch.inference_mode()
    def estimate(self, faces: torch.Tensor, bodies: torch.Tensor) -> Attributes:
        """From (n, 3, s, s) float32 crops in 0 .. 1."""
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
        """From (n, 3, s, s) float32 crops in 0 .. 1."""
        seen = [self._classify(faces, bodies), self._classify(faces.flip(-1), bodies.flip(-1))]
        age, male = (np.mean([part[key] for part in seen], axis=0).astype(np.float32) for key in (0, 1))
        return Attributes(age, male)

    def _classify(self, faces: torch.Tensor, bodies: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        inputs = []
        for crops in (faces, bodies):
            # as its processor takes them: (s, s, 3) uint8, OpenCV's channel order
            pixels = (crops * 255).round().to(torch.uint8).permute(0, 2, 3, 1).flip(-1).cpu().numpy()
            inputs.append(self._processor(images=[np.ascontiguousarray(crop) for crop in pixels])["pixel_values"])
        output = self.network(faces_input=inputs[0].to(self._device), body_input=inputs[1].to(self._device))
        certain = output.gender_probs.flatten().float()  # of the class that was chosen
        male = torch.where(output.gender_class_idx.flatten() == self._male, certain, 1 - certain)
        return output.age_output.flatten().float().cpu().numpy(), male.cpu().numpy()


AttributeModel = CropClassifier | MiVolo


def build_attribute_models(config: AttributeConfig, device: torch.device | str) -> list[AttributeModel]:
    """The networks a config asks for, one or two.

    Raises:
        ModelMissing, ModelError: one cannot be loaded, or its classes are neither ages nor genders.
    """
    where = torch.device(device)
    return [
        MiVolo(reference, where) if config.trust_remote_code else CropClassifier(reference, config.crop, where)
        for reference in attribute_references(config)
    ]
