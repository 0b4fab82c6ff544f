"""Height priors by age and gender: a normal law per person for `paper`, a mixture of classes for `joint`.

Pure tensors; metres and years, in mixtures natural logarithms of metres. Means and sigmas of the classes are those of
`PriorConfig`, uncertainties of ages and genders those of `CrowdConfig`. A person of unknown age (NaN) is taken for an
adult of unknown gender (in a mixture: most likely); the published code takes it for a baby. An adult of unknown gender
(NaN) is of class `ADULT`; the published code fails there.
"""

from __future__ import annotations

import torch

from dto_pipeline.axes import ADULT, ADULT_FEMALE, ADULT_MALE
from dto_pipeline.config import CrowdConfig, PriorConfig
from dto_pipeline.maths.ordered import constant, fold_sum
from dto_pipeline.scene import HeightMixture, HeightPrior

_CLASSES_KEPT = 5  # of eight: no age is uncertain between babies and teens
_LEAST_WEIGHT = 1e-9  # of a class, so that logarithms stay finite


def classify_heights(age_years: torch.Tensor, male_prob: torch.Tensor, config: PriorConfig) -> torch.Tensor:
    """(...) int64 height classes, see HEIGHT_CLASSES, after the two switches of `config`.

    Args: age_years (...), NaN = unknown; male_prob (...) in 0..1, NaN = unknown.
    """
    adult = torch.full(age_years.shape, ADULT, dtype=torch.int64, device=age_years.device)
    if config.gender_prior:
        adult = torch.where(male_prob < config.female_below, ADULT_FEMALE, adult)
        adult = torch.where(male_prob >= config.male_from, ADULT_MALE, adult)
    if not config.age_prior:
        return adult
    limits = constant(config.age_limits, age_years.device, age_years.dtype)
    child = torch.bucketize(age_years, limits, right=True)  # baby, kid, teen = 0, 1, 2
    grown = torch.where(age_years.isnan(), ADULT, adult)  # may be a child: gender says little about the height
    return torch.where(age_years < limits[-1], child, grown)


def build_height_prior(height: torch.Tensor, height_class: torch.Tensor, config: PriorConfig) -> HeightPrior:
    """Mean and sigma of each person's height, from label heights (...) float64 [m] and classes (...) int64.

    An adult's mean is averaged with the label's own height; without the gender prior it is the label's height.
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


def build_height_mixture(
    height: torch.Tensor, age_years: torch.Tensor, male_prob: torch.Tensor, prior: PriorConfig, crowd: CrowdConfig
) -> HeightMixture:
    """Prior of each person's height as a mixture of K = 6 normal laws of its logarithm.

    Five are the likeliest of eight: the five classes from baby to adult male, and for a baby, kid or teen also the
    height expected at just this age. The sixth is "anybody", because some ages belong to another person. Means of adult
    classes are moved a little towards the label's own height.

    Args: height: (...) float64 label height [m]; age_years: (...), NaN = unknown; male_prob: (...), NaN = unknown.
    """
    years = age_years.to(torch.float64)
    share = class_shares(years, male_prob.to(torch.float64), prior, crowd)
    mean = constant(prior.mean[:ADULT], height.device)
    sigma = constant(prior.sigma[:ADULT], height.device) / mean
    centre = mean.log().expand_as(share)
    variance = sigma.square().expand_as(share)
    adult = torch.arange(ADULT, device=height.device) >= ADULT_FEMALE
    own = torch.where(adult, variance / (variance + crowd.label_height_sigma**2), 0)
    centre = centre + own * (height.log()[..., None] - centre)
    variance = variance * (1 - own)
    # (..., 3) log height at this age of a baby, kid or teen (the age limited to that class), and its variance
    ages = constant(crowd.growth_ages, years.device)
    means = constant((*prior.mean[:ADULT_FEMALE], prior.mean[ADULT]), years.device).log()
    steps = torch.diff(means) / torch.diff(ages)  # growth of the log height [1 / year]
    limits = constant((0.0, *prior.age_limits), years.device)
    of_class = torch.minimum(torch.maximum(years.nan_to_num()[..., None], limits[:-1]), limits[1:])
    piece = torch.bucketize(of_class, ages[1:-1])
    grown = means[piece] + steps[piece] * (of_class - ages[piece])
    spread = crowd.growth_sigma**2 + (steps[piece] * of_class * crowd.age_sigma).square()
    follows = years.isfinite().to(torch.float64)[..., None] * crowd.growth_weight
    children = share[..., :ADULT_FEMALE]
    share = torch.cat([children * follows, children * (1 - follows), share[..., ADULT_FEMALE:]], -1)
    centre = torch.cat([grown, centre], -1)
    variance = torch.cat([spread, variance], -1)

    anybody = torch.full_like(height, crowd.anybody_weight)[..., None]
    likely = share.topk(_CLASSES_KEPT, dim=-1).indices
    share, centre, variance = (value.gather(-1, likely) for value in (share, centre, variance))
    share = share / fold_sum(share)[..., None] * (1 - anybody)
    return HeightMixture(
        weight=torch.cat([share, anybody], -1).clamp(min=_LEAST_WEIGHT),
        mean=torch.cat([centre, torch.full_like(anybody, crowd.anybody_mean).log()], -1),
        variance=torch.cat([variance, torch.full_like(anybody, crowd.anybody_sigma**2)], -1),
    )


def class_shares(
    age_years: torch.Tensor, male_prob: torch.Tensor, prior: PriorConfig, crowd: CrowdConfig
) -> torch.Tensor:
    """(..., 5) probability of baby, kid, teen, adult female, adult male; true ages are log-normal about the given
    one."""
    limits = constant(prior.age_limits, age_years.device)
    deviates = (limits.log() - age_years.clamp(min=0.1).log()[..., None]) / crowd.age_sigma
    younger = torch.special.ndtr(deviates)
    unknown = constant(crowd.unknown_age_below, age_years.device)
    younger = torch.where(age_years.isnan()[..., None], unknown, younger)
    if not prior.age_prior:
        younger = torch.zeros_like(younger)
    male = torch.where(male_prob.isnan() | (not prior.gender_prior), 0.5, male_prob).clamp(1e-6, 1 - 1e-6)
    odds = ((male.log() - (1 - male).log()) * crowd.gender_power).exp()
    male = 0.5 + (odds / (1 + odds) - 0.5) * crowd.gender_trust
    child = torch.diff(younger, dim=-1, prepend=torch.zeros_like(younger[..., :1]))
    adult = 1 - younger[..., -1]
    return torch.cat([child, torch.stack([adult * (1 - male), adult * male], -1)], -1)


def summarise_mixture(mixture: HeightMixture, prior: HeightPrior) -> HeightPrior:
    """`prior` with the mixture, and with the mean and sigma [m] of it without its last part, "anybody"."""
    named = slice(0, _CLASSES_KEPT)
    weight = mixture.weight[..., named] / fold_sum(mixture.weight[..., named])[..., None]
    mean = fold_sum(weight * mixture.mean[..., named])
    spread = mixture.variance[..., named] + (mixture.mean[..., named] - mean[..., None]).square()
    sigma = fold_sum(weight * spread).sqrt()
    return prior.replace(mean=mean.exp(), sigma=mean.exp() * sigma, mixture=mixture)
