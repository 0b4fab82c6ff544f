"""Height priors without thresholds: age and gender as probabilities, so a height has a mixture of classes.

Pure tensors; metres and years in, natural logarithms of metres inside. Class means and sigmas are `PriorConfig`'s, the
uncertainty of ages and genders is `JointConfig`'s. Knows nothing of depth.
"""

from __future__ import annotations

import torch

from dto_pipeline.axes import ADULT, ADULT_FEMALE
from dto_pipeline.config import JointConfig, PriorConfig
from dto_pipeline.maths.devices import constant
from dto_pipeline.maths.ordered import fold_sum
from dto_pipeline.scene import HeightMixture, HeightPrior

_CLASSES_KEPT = 5  # of eight: no age is uncertain between babies and teens
_LEAST_WEIGHT = 1e-9  # of a class, so that logarithms stay finite


def build_height_mixture(
    height: torch.Tensor, age_years: torch.Tensor, male_prob: torch.Tensor, prior: PriorConfig, joint: JointConfig
) -> HeightMixture:
    """What age and gender say about each person's height before any depth is seen.

    The likeliest of five classes (baby to adult male), of the growth of children with their age, and, last, anybody:
    ages are sometimes somebody else's. An adult's class is drawn a little towards the label's own height.

    Args:
        height: (...) float64 label height [m]; age_years: (...), NaN = unknown; male_prob: (...), NaN = unknown.

    Returns:
        Mixture of K = 6 normal laws of the logarithm of the height.
    """
    share = class_shares(age_years.to(torch.float64), male_prob.to(torch.float64), prior, joint)
    mean = constant(prior.mean[:ADULT], height.device)
    sigma = constant(prior.sigma[:ADULT], height.device) / mean
    centre = mean.log().expand_as(share)
    variance = sigma.square().expand_as(share)
    adult = torch.arange(ADULT, device=height.device) >= ADULT_FEMALE
    own = torch.where(adult, variance / (variance + joint.label_height_sigma**2), 0)
    centre = centre + own * (height.log()[..., None] - centre)
    variance = variance * (1 - own)
    grown, spread = _growth(age_years.to(torch.float64), prior, joint)
    follows = age_years.isfinite().to(torch.float64)[..., None] * joint.growth_weight
    children = share[..., :ADULT_FEMALE]
    share = torch.cat([children * follows, children * (1 - follows), share[..., ADULT_FEMALE:]], -1)
    centre = torch.cat([grown, centre], -1)
    variance = torch.cat([spread, variance], -1)

    anybody = torch.full_like(height, joint.anybody_weight)[..., None]
    likely = share.topk(_CLASSES_KEPT, dim=-1).indices
    share, centre, variance = (value.gather(-1, likely) for value in (share, centre, variance))
    share = share / fold_sum(share)[..., None] * (1 - anybody)
    return HeightMixture(
        weight=torch.cat([share, anybody], -1).clamp(min=_LEAST_WEIGHT),
        mean=torch.cat([centre, torch.full_like(anybody, joint.anybody_mean).log()], -1),
        variance=torch.cat([variance, torch.full_like(anybody, joint.anybody_sigma**2)], -1),
    )


def _growth(age_years: torch.Tensor, prior: PriorConfig, joint: JointConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance (..., 3) of log height of a child of this age, were it a baby, a kid or a teen."""
    ages = constant(joint.growth_ages, age_years.device)
    means = constant((*prior.mean[:ADULT_FEMALE], prior.mean[ADULT]), age_years.device)
    steps = torch.diff(means.log()) / torch.diff(ages)  # growth of the log height [1 / year]
    limits = constant((0.0, *prior.age_limits), age_years.device)
    of_class = torch.minimum(torch.maximum(age_years.nan_to_num()[..., None], limits[:-1]), limits[1:])  # (..., 3)
    piece = torch.bucketize(of_class, ages[1:-1])
    grown = means.log()[piece] + steps[piece] * (of_class - ages[piece])
    return grown, joint.growth_sigma**2 + (steps[piece] * of_class * joint.age_sigma).square()


def class_shares(
    age_years: torch.Tensor, male_prob: torch.Tensor, prior: PriorConfig, joint: JointConfig
) -> torch.Tensor:
    """(..., 5) probability of baby, kid, teen, adult female, adult male; true ages are log-normal about estimates."""
    limits = constant(prior.age_limits, age_years.device)
    deviates = (limits.log() - age_years.clamp(min=0.1).log()[..., None]) / joint.age_sigma
    younger = torch.special.ndtr(deviates)
    unknown = constant(joint.unknown_age_below, age_years.device)
    younger = torch.where(age_years.isnan()[..., None], unknown, younger)
    if not prior.age_prior:
        younger = torch.zeros_like(younger)
    male = torch.where(male_prob.isnan() | (not prior.gender_prior), 0.5, male_prob).clamp(1e-6, 1 - 1e-6)
    odds = ((male.log() - (1 - male).log()) * joint.gender_power).exp()
    male = 0.5 + (odds / (1 + odds) - 0.5) * joint.gender_trust
    child = torch.diff(younger, dim=-1, prepend=torch.zeros_like(younger[..., :1]))
    adult = 1 - younger[..., -1]
    return torch.cat([child, torch.stack([adult * (1 - male), adult * male], -1)], -1)


def summarise_mixture(mixture: HeightMixture, prior: HeightPrior) -> HeightPrior:
    """`prior` with the mean and sigma [m] of the mixture without its last, anybody's, part; classes stay."""
    named = slice(0, _CLASSES_KEPT)
    weight = mixture.weight[..., named] / fold_sum(mixture.weight[..., named])[..., None]
    mean = fold_sum(weight * mixture.mean[..., named])
    spread = mixture.variance[..., named] + (mixture.mean[..., named] - mean[..., None]).square()
    sigma = fold_sum(weight * spread).sqrt()
    return prior.replace(mean=mean.exp(), sigma=mean.exp() * sigma)
