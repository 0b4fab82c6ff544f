"""`solver.mode: joint`: all people of an image on one depth line, each with a depth noise and a height prior.

Pure tensors. Builds several fits of an image (by depth model, noise level, and what may be wrong with the image),
averages them by their evidence, and returns the same container as the published fit (`paper_solver.fit_groups`), with a
posterior. People without usable depth are placed by their height prior. Method and origin of constants:
docs/joint_solver.md. Metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.special import stdtrit

from dto_pipeline.axes import FAR, MEAN, NEAR
from dto_pipeline.config import METRES_PER_DEPTH, CrowdConfig
from dto_pipeline.maths.line_posterior import (
    AFFINE_DEPTH,
    AFFINE_DISPARITY,
    DEPTH_MODELS,
    CrowdPosterior,
    CrowdProblem,
    find_lines,
    integrate_lines,
    line_coefficients,
)
from dto_pipeline.maths.ordered import constant, fold_softmax, fold_sum
from dto_pipeline.maths.paper_solver import CODE
from dto_pipeline.scene import DepthEvidence, GroupFits, HeightPrior, Posterior, SceneBatch
from dto_pipeline.status import PersonStatus

_UNMEASURED = 1e6  # variance of log z of a depth that says nothing
_LOG_GROWN = math.log(1.7)  # height of people whom networks put neither too far nor too near [log m]
_LEAST_VARIANCE = 1e-12  # of log z, for its logarithm
_LARGEST_DEVIATION = 0.8  # larger ones widen sigmas no further: they come from wrong ages [sigma]
_TWO = 2  # depths that make a comparison
# Errors of z over the sigma of the posterior follow a Student t. Fitted on seeds 1, 2, 11, 12, 31 and 32 to our own and
# to foreign crowds with equal weight it has, by likelihood, 7.0 degrees of freedom and scale 0.95, by the shares inside
# 50, 80 and 95 % intervals 6 to 8 and 0.94 to 0.97 (docs/joint_solver.md)
_ERROR_FREEDOM, _ERROR_SCALE = 6.0, 0.94


def interval_halfwidth(level: float) -> float:
    """Half the width, in units of `z_sigma_m`, of the interval about z that holds the true z with probability `level`.

    The same for the difference of two people's z, in units of its standard deviation by `z_covariance`. 0.67, 1.35 and
    2.30 for levels of 0.5, 0.8 and 0.95: high levels are wider than in a normal law, because a few people have a
    grossly wrong age, label or depth.
    """
    return _ERROR_SCALE * float(stdtrit(_ERROR_FREEDOM, (1 + level) / 2))


@dataclass(frozen=True)
class _Crowd:
    """What is known of the people of B scenes before the fit."""

    evidence: DepthEvidence
    prior: HeightPrior
    z: torch.Tensor  # (B, P) [m] of the label, over the measured pixels where there are any
    typical_depth: torch.Tensor  # (B,) geometric mean of those measured, 1 where there is none
    measured: torch.Tensor  # (B, P) bool: the depth means something
    present: torch.Tensor  # (B, P) bool: is to be placed
    unknown_ages: torch.Tensor  # (B,) float64 share of the people present
    metric: torch.Tensor  # (B,) bool: the depth is in metres


def fit_crowds(
    evidence: DepthEvidence,
    prior: HeightPrior,
    batch: SceneBatch,
    config: CrowdConfig,
    max_height: float,
) -> GroupFits:
    """Place everybody who is present in a batch.

    Args:
        evidence, prior, batch: of the same B scenes and P people; the prior has a mixture.
        max_height: largest height [m]; a person who would be taller is placed at the distance that gives this height.

    Returns: `GroupFits` with `posterior` set.
    """
    depth, present = evidence.depth[..., MEAN], batch.present
    measured = evidence.usable & present & (depth > 0) & depth.isfinite()
    log_depths = fold_sum(torch.where(measured, depth, 1.0).log())
    label_z = batch.transl[..., 2].to(torch.float64)
    unknown_ages = (batch.age_years.isnan() & present).sum(1).to(torch.float64)
    crowd = _Crowd(
        evidence=evidence,
        prior=prior,
        z=torch.where(measured, evidence.z[..., MEAN], torch.where(present, label_z, 1.0)),
        typical_depth=(log_depths / measured.sum(1).clamp(min=1)).exp(),
        measured=measured,
        present=present,
        unknown_ages=unknown_ages / present.sum(1).clamp(min=1),
        metric=measured.any(1) & batch.metric,
    )
    found, model = _solve(crowd, _build_problem(crowd, config), config)
    tallest = (max_height * crowd.z / torch.where(present, prior.height, 1.0)).log()
    return _conclude(crowd, found._replace(log_z=torch.minimum(found.log_z, tallest)), model, config)


def _build_problem(crowd: _Crowd, config: CrowdConfig) -> CrowdProblem:
    """One fit per scene: affine in depth, noise level 1, no fault of the image."""
    evidence, mixture, measured, z = crowd.evidence, crowd.prior.mixture, crowd.measured, crowd.z
    assert mixture is not None
    depth = torch.where(measured, evidence.depth[..., MEAN], crowd.typical_depth[:, None])
    used = measured & (evidence.corr > config.min_corr)
    gain = torch.where(used, evidence.corr, 1.0)
    elasticity = torch.where(used, evidence.slope, torch.nan) * depth / z / (gain.log() * config.slope_gain).exp()
    height = torch.where(crowd.present, crowd.prior.height, 1.0).log()
    tails = constant(config.tail_widths, z.device)
    weights = constant(config.tail_weights, z.device)
    pixels = evidence.pixels[..., 2].clamp(min=1).to(torch.float64)
    noise = config.depth_sigma**2 + config.edge_sigma**2 / pixels  # the network's own error, and borders that blur
    return CrowdProblem(
        log_depth=(depth / crowd.typical_depth[:, None]).log(),
        measured=measured,
        present=crowd.present,
        log_weight=(mixture.weight / fold_sum(mixture.weight)[..., None]).log(),
        centre=mixture.mean - (height - z.log())[..., None],
        spread=mixture.variance + config.size_sigma**2,
        tail_log_weight=(weights / weights.sum()).log().expand(len(z), -1),
        noise=torch.where(measured, noise, _UNMEASURED)[..., None] * tails.square(),
        elasticity=elasticity,
        elasticity_sigma=config.slope_sigma / gain,
        model=torch.full((len(z),), AFFINE_DEPTH, device=z.device),
        share_sigma=config.share_sigma,
        log_prior=torch.zeros(len(z), dtype=torch.float64, device=z.device),
        metric_scale=torch.where(crowd.metric, (crowd.typical_depth * METRES_PER_DEPTH).log(), torch.nan)[:, None],
        metric_sigma=config.metric_sigma,
    )


def _solve(crowd: _Crowd, problem: CrowdProblem, config: CrowdConfig) -> tuple[CrowdPosterior, torch.Tensor]:
    """Both models x all faults x all noise levels, averaged by their evidence (a fixed set of fits per scene)."""
    device, scenes = problem.model.device, len(problem.model)
    chosen = [DEPTH_MODELS.index(name) for name in DEPTH_MODELS if config.depth_model in ("auto", name)]
    models = constant(tuple(chosen), device, torch.int64)
    faults = _faults(config, device)
    levels = constant(config.noise_levels, device)
    model, fault = torch.cartesian_prod(models, torch.arange(len(faults), device=device)).unbind(1)
    rows = torch.arange(scenes, device=device).repeat_interleave(len(model))
    fits = _with_fault(problem.take(rows), crowd, rows, faults[fault].repeat(scenes, 1), config)
    fits = fits.replace(model=model.repeat(scenes))
    mean, covariance = find_lines(fits.replace(noise=fits.noise * levels[len(levels) // 2].square()))

    log_levels = _log_levels(crowd, config).repeat_interleave(len(model), 0).flatten()
    rows = torch.arange(len(rows), device=device).repeat_interleave(len(levels))
    level, fits = levels.repeat(len(fits.model)), fits.take(rows)
    noise = fits.noise * level.square()[:, None, None]
    fits = fits.replace(noise=noise, log_prior=fits.log_prior + log_levels)
    return _average(*integrate_lines(fits, mean[rows], covariance[rows]), models, scenes)


def _log_levels(crowd: _Crowd, config: CrowdConfig) -> torch.Tensor:
    """(B, L) log probability of the noise levels: maps too blurred to show bodies are seldom precise."""
    clear, blurred = (
        constant(tuple(weight / sum(weights) for weight in weights), crowd.z.device)
        for weights in (config.noise_level_weights, config.blurred_level_weights)
    )
    corr = fold_sum(torch.where(crowd.measured, crowd.evidence.corr.clamp(min=0), 0))
    low, high = config.blurred_corr
    share = ((high - corr / crowd.measured.sum(1).clamp(min=1)) / (high - low)).clamp(0, 1)[:, None]
    return ((1 - share) * clear + share * blurred).log()


def _faults(config: CrowdConfig, device: torch.device) -> torch.Tensor:
    """(3, 3) what may be wrong with a whole image: nothing, its ages, or depth that follows size.

    Columns: exponent of the size error; probability that an age is another person's; log probability of such an image.
    """
    ages, size = config.wrong_ages_probability, config.size_error_probability
    nothing = (0.0, config.anybody_weight, 1 - ages - size)
    wrong_ages = (0.0, config.wrong_ages_weight, ages)
    sizes = (config.size_error, config.anybody_weight, size)
    table = constant((*nothing, *wrong_ages, *sizes), device).view(3, 3)
    return torch.cat([table[:, :2], table[:, 2:].log()], -1)


def _with_fault(
    problem: CrowdProblem, crowd: _Crowd, scene: torch.Tensor, fault: torch.Tensor, config: CrowdConfig
) -> CrowdProblem:
    """N fits in which something is wrong with the whole image.

    Where the network puts small people too far, depth is (1.7 m / h)^k times the truth. With h = slant z, the result is
    a line again, in another depth: log z = log scale + (log depth + k log slant) / (1 - k), with the noise of the
    depth over 1 - k. The constant of 1.7 m goes into the scale; densities stay those of the depth that was measured.

    Args: scene: (N,) the scene of each fit; fault: (N, 3), rows of `_faults`.
    """
    slant = torch.where(crowd.present, crowd.prior.height / crowd.z, 1.0).log()  # height over distance, of the picture
    typical = (fold_sum(torch.where(crowd.measured, slant, 0)) / crowd.measured.sum(1).clamp(min=1))[:, None]
    exponent, anybody, log_prior = fault.unbind(1)
    left = 1 - exponent
    fewer = ((1 - anybody) / (1 - config.anybody_weight)).log()[:, None, None]
    strange = anybody.log()[:, None, None].expand_as(problem.log_weight[..., -1:])
    shift = exponent[:, None] * (typical[scene] - _LOG_GROWN)
    return problem.replace(
        log_depth=(problem.log_depth + exponent[:, None] * (slant - typical)[scene]) / left[:, None],
        log_weight=torch.cat([problem.log_weight[..., :-1] + fewer, strange], -1),
        noise=problem.noise / left.square()[:, None, None],
        metric_scale=(problem.metric_scale + shift) / left[:, None],
        log_prior=problem.log_prior + log_prior - problem.measured.sum(1) * left.log(),
    )


def _average(
    result: CrowdPosterior, log_evidence: torch.Tensor, models: torch.Tensor, scenes: int
) -> tuple[CrowdPosterior, torch.Tensor]:
    """Moments over the fits of each scene, weighted by evidence, of the line those of the more probable model, and this
    model, (B,) of `models`.

    Variances are averaged as logarithms: the fits of a scene differ much in width, and the interval that holds half or
    four fifths of such a mixture is about as wide as that of most fits, not of the widest.
    """

    def per_scene(value: torch.Tensor) -> torch.Tensor:
        return value.view(scenes, -1, *value.shape[1:])

    weight = fold_softmax(per_scene(log_evidence))
    means = per_scene(result.log_z)
    log_z = fold_sum(weight[..., None] * means, 1)
    apart = means - log_z[:, None]
    within = per_scene(result.covariance) + apart[..., :, None] * apart[..., None, :]
    covariance = fold_sum(weight[..., None, None] * within, 1)
    variance = within.diagonal(dim1=-2, dim2=-1).clamp(min=_LEAST_VARIANCE)
    usual = fold_sum(weight[..., None] * variance.log(), 1).exp()
    narrower = (usual / fold_sum(weight[..., None] * variance, 1)).sqrt()
    covariance = covariance * narrower[:, :, None] * narrower[:, None, :]

    by_model = weight.view(scenes, len(models), -1)
    best = fold_sum(by_model).argmax(1)

    def of_best(value: torch.Tensor) -> torch.Tensor:
        value = fold_sum(by_model * value.view(by_model.shape)) / fold_sum(by_model)
        return value.gather(1, best[:, None]).squeeze(1)

    return CrowdPosterior(of_best(result.log_scale), of_best(result.share), log_z, covariance), models[best]


def _conclude(crowd: _Crowd, found: CrowdPosterior, model: torch.Tensor, config: CrowdConfig) -> GroupFits:
    """Statuses, places and calibrated variances, in the container of the published fit."""
    evidence, prior, measured, present = crowd.evidence, crowd.prior, crowd.measured, crowd.present
    own = found.covariance.diagonal(dim1=-2, dim2=-1)
    placed = present & found.log_z.isfinite() & own.isfinite()
    compared = measured.sum(1) >= _TWO
    by_depth = torch.where(measured & compared[:, None], CODE[PersonStatus.MOVED], CODE[PersonStatus.PLACED_BY_PRIOR])
    outcome = torch.where(present, CODE[PersonStatus.NO_FIT], CODE[PersonStatus.NOT_RUN])
    outcome = torch.where(placed, by_depth, outcome)

    new_z = torch.where(placed, found.log_z.exp(), torch.nan)
    height = prior.height / crowd.z * new_z
    moved = outcome == CODE[PersonStatus.MOVED]
    people = moved.sum(1)
    off = fold_sum(torch.where(moved, (height - prior.mean).abs() / prior.sigma, 0)) / people.clamp(min=1)
    # Where people end far from their priors, these fit the image badly, and variances grow: by the posterior mean of
    # the squared deviation, with a prior of the weight of `deviation_people` people.
    known, usual = config.deviation_people, config.usual_deviation
    square = off.clamp(max=_LARGEST_DEVIATION).square()
    spread = (known * usual**2 + people * square) / ((known + people) * usual**2)
    population = config.population_sigma**2 + (crowd.unknown_ages * config.unknown_ages_sigma).square()

    def calibrate(variance: torch.Tensor) -> torch.Tensor:
        """Of log z. What all people have in common is simply added, because the line's scale has no prior of its
        own."""
        per_image = (-1, *(1,) * (variance.dim() - 1))
        return (variance * config.temperature**2 + population.view(per_image)) * spread.view(per_image)

    z_variance = calibrate(found.covariance) + config.focal_sigma**2
    member = torch.stack([moved & (evidence.group == group) for group in (NEAR, FAR)], 1)
    line = torch.stack(line_coefficients(found.log_scale, found.share, crowd.typical_depth, model), -1)
    straight, inverse = (
        torch.where((compared & (model == kind))[:, None], line, torch.nan) for kind in (AFFINE_DEPTH, AFFINE_DISPARITY)
    )
    return GroupFits(
        alpha=straight[:, :1].expand(-1, 2),
        beta=straight[:, 1:].expand(-1, 2),
        used_ground=torch.zeros_like(compared),
        z=crowd.z,
        new_z=new_z,
        outcome=outcome,
        num_optimized=member.sum(-1),
        is_optimized=people >= _TWO,
        deviation=off,
        posterior=Posterior(
            z_covariance=z_variance * new_z[:, :, None] * new_z[:, None, :],
            height_sigma=height * calibrate(own.clamp(min=0) + config.size_sigma**2).sqrt(),
            depth_model=torch.where(compared, model, -1),
            disparity_line=inverse,
        ),
    )
