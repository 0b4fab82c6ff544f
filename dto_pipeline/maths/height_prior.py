"""Height priors: how tall people of an age and gender are.

Pure tensors; metres and years. The table lives in `PriorConfig`. Unknown age (NaN) means an adult of unknown gender,
and so does the unknown gender (NaN) of an adult: the published code turns the one into a baby and fails on the other.
"""

from __future__ import annotations

import torch

from dto_pipeline.axes import ADULT, ADULT_FEMALE, ADULT_MALE
from dto_pipeline.config import PriorConfig
from dto_pipeline.maths.devices import constant
from dto_pipeline.scene import HeightPrior


def classify_heights(age_years: torch.Tensor, male_prob: torch.Tensor, config: PriorConfig) -> torch.Tensor:
    """Height class of each person after the two switches of `config`.

    Args:
        age_years: (...), NaN = unknown; male_prob: (...) in 0..1, NaN = unknown.

    Returns:
        (...) int64, see HEIGHT_CLASSES.
    """
    adult = torch.full(age_years.shape, ADULT, dtype=torch.int64, device=age_years.device)
    if config.gender_prior:
        adult = torch.where(male_prob < config.female_below, ADULT_FEMALE, adult)
        adult = torch.where(male_prob >= config.male_from, ADULT_MALE, adult)
    if not config.age_prior:
        return adult
    limits = constant(config.age_limits, age_years.device, age_years.dtype)
    child = torch.bucketize(age_years, limits, right=True)  # baby, kid, teen = 0, 1, 2
    grown = torch.where(age_years.isnan(), ADULT, adult)  # who may be a child is no man or woman of known height
    return torch.where(age_years < limits[-1], child, grown)


def build_height_prior(height: torch.Tensor, height_class: torch.Tensor, config: PriorConfig) -> HeightPrior:
    """Mean and sigma of each person's height.

    An adult's mean is averaged with the label's own height; without the gender prior it is the label's height.

    Args:
        height: (...) float64 label height [m]; height_class: (...) int64.
    """
    mean = constant(config.mean, height.device, height.dtype)[height_class]
    sigma = constant(config.sigma, height.device, height.dtype)[height_class]
    adult = height_class >= ADULT_FEMALE
    if config.gender_prior:
        mean = torch.where(adult, (height + mean) / 2, mean)
    else:
        mean = torch.where(adult, height, mean)
        sigma = torch.where(adult, config.adult_sigma_without_gender, sigma)
    return HeightPrior(height=height, height_class=height_class, mean=mean, sigma=sigma)
