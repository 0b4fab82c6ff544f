"""Height priors: class limits, the two switches, and what unknown means."""

from __future__ import annotations

import pytest
import torch

from dto_pipeline.axes import HEIGHT_CLASSES
from dto_pipeline.config import PriorConfig
from dto_pipeline.maths.heights import build_height_prior, classify_heights

NAN = float("nan")


CLASSES = (
    *((0.0, 0.9, "baby"), (2.99, 0.1, "baby"), (3.0, 0.5, "kid"), (5.0, NAN, "kid"), (8.0, 0.5, "teen")),
    *((14.99, 0.5, "teen"), (15.0, 0.1, "adult_female"), (40.0, 0.329, "adult_female"), (40.0, 0.33, "adult")),
    *((40.0, 0.669, "adult"), (40.0, 0.67, "adult_male"), (40.0, NAN, "adult"), (NAN, NAN, "adult")),
    (NAN, 0.9, "adult"),
)
NO_AGES, NO_GENDERS = PriorConfig(age_prior=False), PriorConfig(gender_prior=False)


@pytest.mark.parametrize(
    ("age", "male_prob", "expected", "config"),
    [
        *((*row, PriorConfig()) for row in CLASSES),
        (2.0, 0.9, "adult_male", NO_AGES),
        (NAN, 0.9, "adult_male", NO_AGES),
        (30.0, 0.9, "adult", NO_GENDERS),
    ],
)
def test_age_and_gender_choose_the_class_and_unknown_or_switched_off_means_adult(
    age: float, male_prob: float, expected: str, config: PriorConfig
) -> None:
    code = classify_heights(torch.tensor(age), torch.tensor(male_prob), config)
    assert HEIGHT_CLASSES[int(code)] == expected


def test_an_adults_mean_is_averaged_with_the_labels_own_height_and_a_childs_is_not() -> None:
    height = torch.tensor([1.9, 1.9], dtype=torch.float64)
    prior = build_height_prior(height, torch.tensor([4, 1]), PriorConfig())
    assert prior.mean.tolist() == pytest.approx([(1.9 + 1.784) / 2, 1.122])
    assert prior.sigma.tolist() == pytest.approx([0.0759, 0.12])


def test_without_the_gender_prior_an_adult_is_expected_at_the_labels_height() -> None:
    height = torch.tensor([1.9], dtype=torch.float64)
    prior = build_height_prior(height, torch.tensor([5]), NO_GENDERS)
    assert prior.mean.tolist() == [1.9]
    assert prior.sigma.tolist() == [0.073]
