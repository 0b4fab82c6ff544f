"""`solver.mode: joint`: all people of an image on one depth line, near and far, each with its own noise and prior.

Pure tensors. Builds the problem from evidence and priors, weighs both depth models and several noise levels by how
well they explain the image, and gives the same container as the published fit (`paper_solver.fit_groups`), with a
posterior. Who has no usable depth stands by its height prior. Metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.special import stdtrit

from dto_pipeline.axes import FAR, MEAN, NEAR
from dto_pipeline.config import METRES_PER_DEPTH, CrowdConfig
from dto_pipeline.maths.devices import constant
from dto_pipeline.maths.line_posterior import (
    AFFINE_DEPTH,
    AFFINE_DISPARITY,
    DEPTH_MODELS,
    CrowdPosterior,
    CrowdProblem,
    find_lines,
    integrate_lines,
    line_coefficients,
    repeat_fits,
)
from dto_pipeline.maths.ordered import fold_softmax, fold_sum
from dto_pipeline.maths.paper_solver import CODE
from dto_pipeline.scene import DepthEvidence, GroupFits, HeightMixture, HeightPrior, Posterior
from dto_pipeline.status import FitStatus, PersonStatus

_UNMEASURED = 1e6  # variance of log z of a depth that says nothing
_LOG_GROWN = math.log(1.7)  # height that no network draws too far or too near [log m]
_LEAST_VARIANCE = 1e-12  # of log z, for its logarithm
_LARGEST_DEVIATION = 0.8  # that widens sigmas: more comes from ages that are somebody else's [sigma]
_TWO = 2  # depths that make a comparison
# Errors of z in units of the posterior's sigma: Student's t, fitted on seeds 1, 2, 11, 12, 31, 32 to our own and to
# foreign crowds with equal weight, by likelihood (7.0 degrees of freedom, scale 0.95) and by shares inside 50, 80 and
# 95 % intervals (6 to 8; 0.94 to 0.97). docs/joint_solver.md
_ERROR_FREEDOM, _ERROR_SCALE = 6.0, 0.94


def interval_halfwidth(level: float) -> float:
    """Half the width of the interval about z that holds the true z with probability `level`, in units of `z_sigma_m`.

    Also for the difference of two people's z, in units of its standard deviation by `z_covariance`. Wider than a
    normal law's for high levels (0.68, 1.35, 2.30 sigma for 50, 80, 95 %), because a few ages, labels or depths are
    grossly wrong.

    Args:
        level: in 0 .. 1.
    """
    return _ERROR_SCALE * float(stdtrit(_ERROR_FREEDOM, (1 + level) / 2))


def fit_crowds(
    evidence: DepthEvidence,
    prior: HeightPrior,
    mixture: HeightMixture,
    label_z: torch.Tensor,
    present: torch.Tensor,
    unknown_ages: torch.Tensor,
    config: CrowdConfig,
    max_height: float,
    metric: torch.Tensor | None = None,
) -> GroupFits:
    """Place everybody of every scene.

    Args:
        evidence, prior, mixture: of B scenes, P people (`prior` for the score of the image).
        label_z: (B, P) z of the labels [m], for those whose depth was not measured; present: (B, P) bool, who is to
            be placed; unknown_ages: (B, P) bool, whose age nobody told.
        max_height: nobody is taller than this [m]; who would be, stands where it is just as tall.
        metric: (B,) bool, whose depth times `METRES_PER_DEPTH` is in metres; None = nobody's.

    Returns:
        `GroupFits` with `posterior` set.
    """
    depth = evidence.depth[..., MEAN]
    measured = evidence.usable & present & (depth > 0) & depth.isfinite()
    log_depths = fold_sum(torch.where(measured, depth, 1.0).log())
    crowd = _Crowd(
        evidence=evidence,
        prior=prior,
        z=torch.where(measured, evidence.z[..., MEAN], torch.where(present, label_z.to(torch.float64), 1.0)),
        typical_depth=(log_depths / measured.sum(1).clamp(min=1)).exp(),
        measured=measured,
        present=present,
        unknown_ages=(unknown_ages & present).sum(1).to(torch.float64) / present.sum(1).clamp(min=1),
        metric=measured.any(1) & (False if metric is None else metric),
    )
    found = _solve(crowd, _build_problem(crowd, mixture, config), config)
    tallest = (max_height * crowd.z / torch.where(present, prior.height, 1.0)).log()
    return _conclude(crowd, replace(found, log_z=torch.minimum(found.log_z, tallest)), config)


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


@dataclass(frozen=True)
class _Found:
    """The posterior of B scenes over all models and noise levels."""

    log_z: torch.Tensor  # (B, P)
    covariance: torch.Tensor  # (B, P, P) of log z
    model: torch.Tensor  # (B,) the more probable one
    log_scale: torch.Tensor  # (B,) of its line
    share: torch.Tensor  # (B,) of its line


def _build_problem(crowd: _Crowd, mixture: HeightMixture, config: CrowdConfig) -> CrowdProblem:
    """B fits without a model or a noise level yet (affine in depth, level 1)."""
    evidence, measured, z = crowd.evidence, crowd.measured, crowd.z
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
        tail_log_weight=(weights / weights.sum()).log(),
        noise=torch.where(measured, noise, _UNMEASURED)[..., None] * tails.square(),
        elasticity=elasticity,
        elasticity_sigma=config.slope_sigma / gain,
        model=torch.full((len(z),), AFFINE_DEPTH, device=z.device),
        share_sigma=config.share_sigma,
        log_prior=torch.zeros(len(z), dtype=torch.float64, device=z.device),
        metric_scale=torch.where(crowd.metric, (crowd.typical_depth * METRES_PER_DEPTH).log(), torch.nan)[:, None],
        metric_sigma=config.metric_sigma,
    )


def _log_levels(crowd: _Crowd, config: CrowdConfig) -> torch.Tensor:
    """(B, L) logarithm of how likely each noise level is: a map too blurred to show bodies is seldom a good one."""
    clear, blurred = (
        constant(tuple(weight / sum(weights) for weight in weights), crowd.z.device)
        for weights in (config.noise_level_weights, config.blurred_level_weights)
    )
    shown = fold_sum(torch.where(crowd.measured, crowd.evidence.corr.clamp(min=0), 0))
    low, high = config.blurred_corr
    share = ((high - shown / crowd.measured.sum(1).clamp(min=1)) / (high - low)).clamp(0, 1)[:, None]
    return ((1 - share) * clear + share * blurred).log()


def _solve(crowd: _Crowd, problem: CrowdProblem, config: CrowdConfig) -> _Found:
    """Both models x all troubles x all noise levels, weighed by their evidence (a fixed set of fits per scene)."""
    slant = torch.where(crowd.present, crowd.prior.height / crowd.z, 1.0).log()  # height over distance: pictures tell
    typical = (fold_sum(torch.where(crowd.measured, slant, 0)) / crowd.measured.sum(1).clamp(min=1))[:, None]
    scenes = len(problem.model)
    chosen = [DEPTH_MODELS.index(name) for name in DEPTH_MODELS if config.depth_model in ("auto", name)]
    models = constant(tuple(chosen), problem.model.device, torch.int64)
    troubles = _troubles(config, models.device)
    levels = constant(config.noise_levels, models.device)
    model, trouble = torch.cartesian_prod(models, torch.arange(len(troubles), device=models.device)).unbind(1)
    kinds = len(model)
    rows = torch.arange(scenes, device=models.device).repeat_interleave(kinds)
    fits = _with_trouble(
        repeat_fits(problem, rows), (slant - typical)[rows], typical[rows], troubles[trouble].repeat(scenes, 1), config
    )
    fits = replace(fits, model=model.repeat(scenes))
    mean, covariance = find_lines(_with_noise(fits, levels[len(levels) // 2].expand(len(rows))))

    rows = torch.arange(len(rows), device=models.device).repeat_interleave(len(levels))
    fits = _with_noise(repeat_fits(fits, rows), levels.repeat(scenes * kinds))
    log_levels = _log_levels(crowd, config).repeat_interleave(kinds, 0).flatten()
    fits = replace(fits, log_prior=fits.log_prior + log_levels)
    result = integrate_lines(fits, mean[rows], covariance[rows])
    return _average(result, models, len(troubles) * len(levels), scenes)


def _troubles(config: CrowdConfig, device: torch.device) -> torch.Tensor:
    """(3, 3) what may be wrong with a whole image: nothing, its ages, or depth that follows size.

    Columns: exponent of the size error; probability that a person's age is somebody else's; logarithm of how likely
    such an image is.
    """
    ages, size = config.wrong_ages_probability, config.size_error_probability
    nothing = (0.0, config.anybody_weight, 1 - ages - size)
    wrong_ages = (0.0, config.wrong_ages_weight, ages)
    sizes = (config.size_error, config.anybody_weight, size)
    table = constant((*nothing, *wrong_ages, *sizes), device).view(3, 3)
    return torch.cat([table[:, :2], table[:, 2:].log()], -1)


def _with_trouble(
    problem: CrowdProblem,
    log_slant: torch.Tensor,
    typical: torch.Tensor,
    trouble: torch.Tensor,
    config: CrowdConfig,
) -> CrowdProblem:
    """Fits in which something is wrong with the whole image.

    Where the network draws small people farther, depth is (1.7 m / h)^k times the truth. With h = slant z put in, what
    is left is a line again, in another depth: log z = log scale + (log depth + k log slant) / (1 - k), with the noise
    of the depth over 1 - k. The constant of 1.7 m goes into the scale; densities stay those of the depth that was seen.

    Args:
        log_slant: (N, P) logarithm of height over distance, over its typical value (N, 1) in the image.
        trouble: (N, 3), rows of `_troubles`.
    """
    exponent, anybody, log_prior = trouble.unbind(1)
    left = 1 - exponent
    fewer = ((1 - anybody) / (1 - config.anybody_weight)).log()[:, None, None]
    strange = anybody.log()[:, None, None].expand_as(problem.log_weight[..., -1:])
    return replace(
        problem,
        log_depth=(problem.log_depth + exponent[:, None] * log_slant) / left[:, None],
        log_weight=torch.cat([problem.log_weight[..., :-1] + fewer, strange], -1),
        noise=problem.noise / left.square()[:, None, None],
        metric_scale=(problem.metric_scale + exponent[:, None] * (typical - _LOG_GROWN)) / left[:, None],
        log_prior=problem.log_prior + log_prior - problem.measured.sum(1) * left.log(),
    )


def _with_noise(problem: CrowdProblem, level: torch.Tensor) -> CrowdProblem:
    return replace(problem, noise=problem.noise * level.square()[:, None, None])


def _average(result: CrowdPosterior, models: torch.Tensor, levels: int, scenes: int) -> _Found:
    """Moments over the fits of each scene, weighed by evidence; the line is that of the more probable model.

    Variances are averaged as logarithms: fits of a scene differ many times in width, and the width that holds half or
    four fifths of such a mixture is near that of most of it, not of its widest part.
    """

    def per_scene(value: torch.Tensor) -> torch.Tensor:
        return value.view(scenes, len(models) * levels, *value.shape[1:])

    weight = fold_softmax(per_scene(result.log_evidence))
    means = per_scene(result.log_z)
    log_z = fold_sum(weight[..., None] * means, 1)
    apart = means - log_z[:, None]
    within = per_scene(result.covariance) + apart[..., :, None] * apart[..., None, :]
    covariance = fold_sum(weight[..., None, None] * within, 1)
    variance = within.diagonal(dim1=-2, dim2=-1).clamp(min=_LEAST_VARIANCE)
    usual = fold_sum(weight[..., None] * variance.log(), 1).exp()
    narrower = (usual / fold_sum(weight[..., None] * variance, 1)).sqrt()
    covariance = covariance * narrower[:, :, None] * narrower[:, None, :]

    by_model = weight.view(scenes, len(models), levels)
    best = fold_sum(by_model).argmax(1)

    def of_best(value: torch.Tensor) -> torch.Tensor:
        value = fold_sum(by_model * value.view(scenes, len(models), levels)) / fold_sum(by_model)
        return value.gather(1, best[:, None]).squeeze(1)

    return _Found(log_z, covariance, models[best], of_best(result.log_scale), of_best(result.share))


def _conclude(crowd: _Crowd, found: _Found, config: CrowdConfig) -> GroupFits:
    """The same words and columns as the published fit."""
    evidence, prior, measured, present = crowd.evidence, crowd.prior, crowd.measured, crowd.present
    finite = found.log_z.isfinite() & found.covariance.diagonal(dim1=-2, dim2=-1).isfinite()
    placed = present & finite
    compared = measured.sum(1) >= _TWO
    outcome = torch.full_like(evidence.cut, CODE[PersonStatus.NOT_RUN])
    by_depth = torch.where(measured & compared[:, None], CODE[PersonStatus.MOVED], CODE[PersonStatus.PLACED_BY_PRIOR])
    outcome = torch.where(placed, by_depth, outcome)
    outcome = torch.where(present & ~finite, CODE[PersonStatus.NO_FIT], outcome)

    status = torch.where(compared, int(FitStatus.SOLVED), int(FitStatus.PRIOR_ONLY))
    status = torch.where((present & ~placed).any(1), int(FitStatus.DEGENERATE), status)
    status = torch.where(present.any(1), status, int(FitStatus.EMPTY))

    new_z = torch.where(placed, found.log_z.exp(), torch.nan)
    height = prior.height / crowd.z * new_z
    moved = outcome == CODE[PersonStatus.MOVED]
    off = fold_sum(torch.where(moved, (height - prior.mean).abs() / prior.sigma, 0)) / moved.sum(1).clamp(min=1)
    spread = _shown_spread(off, moved.sum(1), config)
    population = config.population_sigma**2 + (crowd.unknown_ages * config.unknown_ages_sigma).square()

    def calibrate(variance: torch.Tensor) -> torch.Tensor:
        """Of log z; what all people share is simply added, because the line's scale has no prior of its own."""
        per_image = (-1, *(1,) * (variance.dim() - 1))
        return (variance * config.temperature**2 + population.view(per_image)) * spread.view(per_image)

    z_variance = calibrate(found.covariance) + config.focal_sigma**2
    own = found.covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0)
    member = torch.stack([moved & (evidence.group == group) for group in (NEAR, FAR)], 1)
    slope, offset = line_coefficients(found.log_scale, found.share, crowd.typical_depth, found.model)
    straight = compared & (found.model == AFFINE_DEPTH)
    inverse = compared & (found.model == AFFINE_DISPARITY)
    line = torch.stack([slope, offset], -1)
    return GroupFits(
        alpha=torch.where(straight, slope, torch.nan)[:, None].expand(-1, 2),
        beta=torch.where(straight, offset, torch.nan)[:, None].expand(-1, 2),
        status=status[:, None].expand(-1, 2),
        used_ground=torch.zeros_like(compared),
        z=crowd.z,
        new_z=new_z,
        outcome=outcome,
        rejected_order=torch.full_like(outcome, -1),
        num_optimized=member.sum(-1),
        is_optimized=moved.sum(1) >= _TWO,
        deviation=off,
        posterior=Posterior(
            z_covariance=z_variance * new_z[:, :, None] * new_z[:, None, :],
            height_sigma=height * calibrate(own + config.size_sigma**2).sqrt(),
            depth_model=torch.where(compared, found.model, -1),
            disparity_line=torch.where(inverse[:, None], line, torch.nan),
        ),
    )


def _shown_spread(deviation: torch.Tensor, people: torch.Tensor, config: CrowdConfig) -> torch.Tensor:
    """(B,) factor on variances: where people end far from their priors, these fit the image's people badly.

    The posterior mean of a variance of which `deviation_people` people are known beforehand.

    Args:
        deviation: (B,) mean height deviation of `people` (B,) who were compared [sigma].
    """
    known, usual = config.deviation_people, config.usual_deviation
    square = deviation.clamp(max=_LARGEST_DEVIATION).square()
    return (known * usual**2 + people * square) / ((known + people) * usual**2)
