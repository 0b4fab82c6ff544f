"""Age and gender of people: what a classifier's class names mean, and crops to show it. No networks here.

A class name says what it knows: ages (``20-29``, ``3-9``, ``more than 70``), genders (``male``, ``woman``),
or both in one name. Years; probabilities 0 .. 1; pixels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from dto_pipeline.models.networks import ModelError

_OPEN_RANGE = 5.0  # a class without upper end (70+) is taken to lie this far above its lower one [years]
_MAX_AGE = 110.0  # numbers above are no ages [years]
_FEMALE = re.compile(r"\b(female|woman|women|girl|girls)\b")
_MALE = re.compile(r"\b(male|man|men|boy|boys)\b")
CROP_SIDE = 224  # of crops [px]


@dataclass(frozen=True)
class Attributes:
    """What is believed of n people."""

    age_years: np.ndarray  # (n,) float32, NaN = unknown
    male_prob: np.ndarray  # (n,) float32, NaN = unknown


@dataclass(frozen=True)
class ClassMeaning:
    """What the classes of a classifier say; NaN where a class does not say it."""

    age: np.ndarray  # (C,) middle of the class's range [years]
    male: np.ndarray  # (C,) 1 male, 0 female

    def read(self, probability: np.ndarray) -> Attributes:
        """Expected age and probability of being male of n people from class probabilities (n, C)."""
        return Attributes(_expected(probability, self.age), _expected(probability, self.male))


def read_class_names(names: dict[int, str]) -> ClassMeaning:
    """What the names of a classifier's classes say.

    Raises:
        ModelError: neither an age nor a gender in any of them.
    """
    ordered = [str(names[key]).lower().replace("_", " ") for key in sorted(names, key=int)]
    age = np.array([_age_of(name) for name in ordered])
    male = np.array([0.0 if _FEMALE.search(name) else 1.0 if _MALE.search(name) else np.nan for name in ordered])
    if np.isnan(age).all() and np.isnan(male).all():
        raise ModelError(
            f"attributes.model has classes {', '.join(ordered[:6])} ...; expected ages like '20-29' or 'more than 70', "
            "or genders like 'female'; MiVOLO needs attributes.trust_remote_code=true"
        )
    return ClassMeaning(age, male)


def cut_crops(image: np.ndarray, boxes: np.ndarray, side: int = CROP_SIDE) -> torch.Tensor:
    """Square crops of one image.

    Args:
        image: (H, W, 3) uint8 RGB; boxes: (n, 4) left, top, right, bottom [px], widened to squares.
        side: of the crops [px].

    Returns:
        (n, 3, side, side) float32 in 0 .. 1; black outside the image.
    """
    height, width = image.shape[:2]
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(torch.float32) / 255
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True) / 2
    steps = (np.arange(side) + 0.5) / side * 2 - 1
    x = (centre[:, :1] + half * steps) / width * 2 - 1
    y = (centre[:, 1:] + half * steps) / height * 2 - 1
    n = len(boxes)
    grid = np.stack([np.broadcast_to(x[:, None], (n, side, side)), np.broadcast_to(y[:, :, None], (n, side, side))], -1)
    crops = pixels.expand(n, -1, -1, -1)
    return functional.grid_sample(crops, torch.from_numpy(grid).to(torch.float32), align_corners=False)


def join_attributes(found: Sequence[Attributes]) -> Attributes:
    """The first known age and the first known gender of each person."""

    def first(name: str) -> np.ndarray:
        values = [getattr(part, name) for part in found]
        joined = values[0]
        for other in values[1:]:
            joined = np.where(np.isnan(joined), other, joined)
        return joined

    return Attributes(first("age_years"), first("male_prob"))


def _expected(probability: np.ndarray, value: np.ndarray) -> np.ndarray:
    """(n,) float32 mean of the values (C,) that are known, NaN where none is."""
    known = ~np.isnan(value)
    share = probability[:, known]
    if not known.any():
        return np.full(len(probability), np.nan, np.float32)
    return (share @ value[known] / np.maximum(share.sum(1), 1e-9)).astype(np.float32)


def _age_of(name: str) -> float:
    numbers = [float(text) for text in re.findall(r"\d+", name)]
    if not numbers or max(numbers) > _MAX_AGE:
        return np.nan
    if len(numbers) >= 2:
        return (numbers[0] + numbers[1] + 1) / 2  # 20-29 ends where 30 begins
    is_open = "+" in name or "more" in name or "over" in name
    return numbers[0] + (_OPEN_RANGE if is_open else 0.0)
