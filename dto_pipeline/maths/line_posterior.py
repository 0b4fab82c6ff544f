"""The posterior over one depth line and the distances of the people on it, by integration over a grid of lines.

Pure tensors; N independent fits at once, of P people each. Given the line people are independent, and the distance of
each has a closed-form posterior: the prior of its height is a mixture of K normal laws of log height, and its depth
noise has one of S widths, so log z has C = K S normal laws. A grid over the line's two numbers is refined until its
steps are no wider than the posterior; sums over the last grid are the posterior, and the logarithm of their total is
the evidence for the fit. This needs no start values and has no local optimum. Logarithms of metres.

A line turns relative depth into metres in one of two ways. With d the depth of a person over the typical depth of the
scene, both have the distance `scale` at d = 1 and a `share` m, which is 1 where the map has no offset; at m = 1 both
are the same:

* affine in depth (arXiv 2511.13282): z = scale * (1 + m (d - 1));
* affine in inverse depth (what the networks are trained for): 1 / z = (1 + m (1 / d - 1)) / scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dto_pipeline.maths.ordered import add_logarithms, constant, fold_logsumexp, fold_softmax, fold_sum, works_at_once
from dto_pipeline.scene import Tensors

AFFINE_DEPTH, AFFINE_DISPARITY = range(2)
DEPTH_MODELS = ("affine_depth", "affine_disparity")  # values of the column and of `joint.depth_model`
_LEAST_BRACKET = 0.02  # of 1 + m (d - 1): a line may not turn distances negative
_FIRST_GRID = (25, 7)  # log scale x share, over everything the people allow
_ZOOM_GRID = (13, 9)
_LAST_GRID = (11, 7)
_ZOOM_REACH = 4.0  # standard deviations covered by a refined grid, each way
_MOST_ZOOMS = 6  # each may halve the grid: enough for a thousand people
_SHARE_REACH = 3.5  # prior standard deviations of the share covered by the first grid
_LEAST_SHARE = 0.05  # depth never runs backwards
_MARGIN = 0.4  # the first grid goes this far beyond the distances that heights alone give [log m]
_NUMBERS_AT_ONCE = 1 << 22  # laws (or people) x fits x lines x people: bounds memory
_WRONG_SLOPE = (0.15, 4.0)  # share of slopes inside bodies that mean little, and how much wider their errors are
_WRONG_METRES = (0.05, 10.0)  # the same of metric scales, such as millimetres declared as metres


@dataclass(frozen=True)
class CrowdProblem(Tensors):
    """N fits before the line is known. (N, P, ...) float64."""

    log_depth: torch.Tensor  # (N, P) relative depth over the typical one of the scene
    measured: torch.Tensor  # (N, P) bool: the depth means something
    present: torch.Tensor  # (N, P) bool
    log_weight: torch.Tensor  # (N, P, K) of the classes
    centre: torch.Tensor  # (N, P, K) log z at which the person has the height of the class
    spread: torch.Tensor  # (N, P, K) variance of the same
    tail_log_weight: torch.Tensor  # (N, S)
    noise: torch.Tensor  # (N, P, S) variance of log z about the line
    elasticity: torch.Tensor  # (N, P) d log z / d log depth measured inside the body; NaN = not measured
    elasticity_sigma: torch.Tensor  # (N, P)
    model: torch.Tensor  # (N,) int64, AFFINE_DEPTH or AFFINE_DISPARITY
    share_sigma: float
    log_prior: torch.Tensor  # (N,) of the fit itself; densities of depth are per log depth
    metric_scale: torch.Tensor  # (N, 1) log scale of the line by a map in metres; NaN = the map is relative
    metric_sigma: float  # of the same


class _Laws(NamedTuple):
    """The C = K S normal laws of each person's log z on the line, (C, N, 1, P); the first axis is summed over."""

    log_weight: torch.Tensor
    centre: torch.Tensor
    variance: torch.Tensor  # spread of heights and depth noise
    noise: torch.Tensor  # the depth noise in it


class CrowdPosterior(NamedTuple):
    """Moments of N fits."""

    log_scale: torch.Tensor  # (N,) mean
    share: torch.Tensor  # (N,) mean
    log_z: torch.Tensor  # (N, P) mean
    covariance: torch.Tensor  # (N, P, P) of log z


def find_lines(problem: CrowdProblem) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N, 2) and covariance (N, 2, 2) of log scale and share, from a coarse grid that is refined until its steps
    are no wider than the posterior."""
    found = []
    for part in _parts(problem, max(_FIRST_GRID, _ZOOM_GRID)):
        fits = problem.take(part)
        # the first grid covers all that the people allow
        own = fold_sum(fits.log_weight.exp() * fits.centre) - fits.log_depth
        low = torch.where(fits.measured, own, torch.inf).amin(1).nan_to_num(posinf=0) - _MARGIN
        high = torch.where(fits.measured, own, -torch.inf).amax(1).nan_to_num(neginf=0) + _MARGIN
        across, along = (torch.linspace(-1, 1, n, dtype=low.dtype, device=low.device) for n in _FIRST_GRID)
        log_scale = ((low + high) / 2)[:, None] + ((high - low) / 2)[:, None] * across
        share = 1 + _SHARE_REACH * fits.share_sigma * along
        lines = torch.stack(torch.broadcast_tensors(log_scale[:, :, None], share), -1).flatten(1, 2)
        reach = lines.amax(1) - lines.amin(1)
        steps = constant(_FIRST_GRID, reach.device, torch.int64) - 1
        mean, covariance = _moments(lines, _evaluate(fits, _laws(fits), lines)[0], (reach / steps).square() / 4)
        rows = torch.arange(len(mean), device=mean.device)  # on a CPU those that go on, elsewhere all
        goes_on = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(_MOST_ZOOMS):
            some, centre, width = fits.take(rows), mean[rows], covariance[rows]
            lines, _ = _refined_grid(centre, width, _ZOOM_GRID)
            middle, spread = _moments(lines, _evaluate(some, _laws(some), lines)[0], torch.full_like(centre, 1e-8))
            coarse = goes_on & _is_coarse(spread, width)
            spread = torch.where(coarse[:, None, None], spread + width / 4, spread)
            mean[rows] = torch.where(goes_on[:, None], middle, centre)
            covariance[rows] = torch.where(goes_on[:, None, None], spread, width)
            goes_on = coarse
            if not works_at_once(rows.device):
                rows, goes_on = rows[coarse], coarse[coarse]
                if not len(rows):
                    break
        found.append((mean, covariance))
    means, covariances = zip(*found, strict=True)
    return torch.cat(means), torch.cat(covariances)


def integrate_lines(
    problem: CrowdProblem, mean: torch.Tensor, covariance: torch.Tensor
) -> tuple[CrowdPosterior, torch.Tensor]:
    """The posterior on a grid about `mean`, `covariance` of `find_lines` (of a problem with similar noise), and the
    logarithm of the evidence (N,) for each fit."""
    parts = _parts(problem, _LAST_GRID)
    found = [_integrate(problem.take(part), mean[part], covariance[part]) for part in parts]
    *moments, log_evidence = map(torch.cat, zip(*found, strict=True))
    return CrowdPosterior(*moments), log_evidence


def _parts(problem: CrowdProblem, grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Indices of as many fits at once as memory allows; fits do not influence each other."""
    fits, people, classes = problem.centre.shape
    device = problem.centre.device
    numbers = people * max(classes * problem.noise.shape[-1], people) * grid[0] * grid[1]
    room = _NUMBERS_AT_ONCE << 4 if works_at_once(device) else _NUMBERS_AT_ONCE
    return torch.arange(fits, device=device).split(max(1, room // max(1, numbers)))


def _integrate(problem: CrowdProblem, mean: torch.Tensor, covariance: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The fields of `CrowdPosterior`, then the logarithm of the evidence."""
    lines, log_cell = _refined_grid(mean, covariance, _LAST_GRID)
    laws = _laws(problem)
    log_density, on_line, log_law = _evaluate(problem, laws, lines)
    total = fold_logsumexp(log_density)
    weight = (log_density - total[:, None]).exp()
    expected, variance = _given_line(laws, on_line, log_law)
    log_z = fold_sum(weight[..., None] * expected, 1)
    apart = expected - log_z[:, None]
    between = fold_sum((weight[..., None] * apart)[..., None] * apart[:, :, None], 1)
    moments = CrowdPosterior(
        log_scale=fold_sum(weight * lines[..., 0]),
        share=fold_sum(weight * lines[..., 1]),
        log_z=log_z,
        covariance=between + torch.diag_embed(fold_sum(weight[..., None] * variance, 1)),
    )
    return *moments, total + log_cell + problem.log_prior


def _refined_grid(
    mean: torch.Tensor, covariance: torch.Tensor, shape: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, T, 2) lines about what an earlier grid found, and (N,) the logarithm of the area of a cell."""
    first = covariance[:, 0, 0].sqrt()[:, None]  # the Cholesky root; NaN in a broken scene, which affects no other
    cross = covariance[:, 1, 0, None] / first
    second = (covariance[:, 1, 1, None] - cross * cross).sqrt()
    ends = [torch.linspace(-_ZOOM_REACH, _ZOOM_REACH, n, dtype=mean.dtype, device=mean.device) for n in shape]
    steps = torch.cartesian_prod(*ends)
    log_scale = mean[:, :1] + steps[:, 0] * first
    share = mean[:, 1:] + (steps[:, 0] * cross + steps[:, 1] * second)
    cell = math.log((2 * _ZOOM_REACH) ** 2 / ((shape[0] - 1) * (shape[1] - 1)))
    return torch.stack([log_scale, share], -1), (first.log() + second.log()).squeeze(1) + cell


def _is_coarse(found: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """(N,) bool: what was found (N, 2, 2) on a zoomed grid about `covariance` is less than half a step wide, as of many
    people: then it shows a grid point rather than the posterior."""

    def widths(value: torch.Tensor) -> torch.Tensor:
        """(N, 2) variance of the log scale, and of the share given the scale."""
        scale = value[:, 0, 0]
        return torch.stack([scale, value[:, 1, 1] - value[:, 1, 0].square() / scale], -1)

    half_step = constant(tuple(_ZOOM_REACH / (points - 1) for points in _ZOOM_GRID), found.device)
    return (widths(found) < widths(covariance) * half_step.square()).any(-1)


def _moments(lines: torch.Tensor, log_density: torch.Tensor, least: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N, 2) and covariance (N, 2, 2) of lines (N, T, 2), with variances `least` (N, 2) of the grid added."""
    weight = fold_softmax(log_density)[..., None]
    mean = fold_sum(weight * lines, 1)
    apart = lines - mean[:, None]
    covariance = fold_sum((weight * apart)[..., None] * apart[..., None, :], 1)
    return mean, covariance + torch.diag_embed(least)


def _evaluate(
    problem: CrowdProblem, laws: _Laws, lines: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, T) log density of all measurements and of the line at each of the lines (N, T, 2).

    Also, for reuse: (N, T, P) log z on the lines, and (C, N, T, P) log density of each law there.
    """
    log_scale, share = lines.unbind(-1)
    model = problem.model[:, None, None]
    on_line, elasticity = log_distance(log_scale[..., None], share[..., None], problem.log_depth[:, None], model)
    log_law = (on_line - laws.centre).square_().mul_(-0.5 / laws.variance)
    log_law.add_(laws.log_weight - laws.variance.log() / 2)
    people = fold_sum(torch.where(problem.measured[:, None], fold_logsumexp(log_law, 0), 0))
    sigma = problem.elasticity_sigma[:, None]
    slopes = _log_error((problem.elasticity[:, None] - elasticity) / sigma, *_WRONG_SLOPE) - sigma.log()
    slopes = fold_sum(torch.where(problem.elasticity.isfinite()[:, None], slopes, 0))
    width = problem.share_sigma
    prior = ((share - 1) / width).square() / -2 - math.log(width * math.sqrt(2 * math.pi))
    metres = _log_error((log_scale - problem.metric_scale) / problem.metric_sigma, *_WRONG_METRES)
    prior = prior + torch.where(problem.metric_scale.isfinite(), metres, 0)
    return torch.where(share > _LEAST_SHARE, people + slopes + prior, -torch.inf), on_line, log_law


def _log_error(miss: torch.Tensor, wrong: float, wider: float) -> torch.Tensor:
    """Log density, but for a constant, of errors in sigmas of which a share `wrong` is `wider` times as wide."""
    square = miss.square() / -2
    return add_logarithms(math.log(1 - wrong) + square, math.log(wrong / wider) + square / wider**2)


def _laws(problem: CrowdProblem) -> _Laws:
    noise = problem.noise[..., None, :]
    log_weight = problem.log_weight[..., None] + problem.tail_log_weight[:, None, None]
    tables = (log_weight, problem.centre[..., None], problem.spread[..., None] + noise, noise)
    return _Laws(*(one.expand_as(log_weight).flatten(-2).movedim(-1, 0)[:, :, None].contiguous() for one in tables))


def _given_line(laws: _Laws, on_line: torch.Tensor, log_law: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, T, P) mean and variance of log z of each person if the line were known.

    Under one law the mean lies between the centre of the class (weight: depth noise) and the line (weight: spread of
    heights), so the moments are linear in the shares of the laws.
    """
    pull = (laws.variance - laws.noise) / laws.variance
    held = laws.centre * (1 - pull)
    share = fold_softmax(log_law, 0)
    # mean = held + pull * line; its square and the variance of the law, each linear in the shares
    columns = (pull, held, pull * laws.noise + held.square(), 2 * held * pull, pull.square())
    pulled, fixed, square, cross, steep = (fold_sum(share * column, 0) for column in columns)
    expected = fixed + pulled * on_line
    variance = square + cross * on_line + steep * on_line.square() - expected.square()
    return expected, variance.clamp(min=0)


def log_distance(
    log_scale: torch.Tensor, share: torch.Tensor, log_depth: torch.Tensor, model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log z on the line [log m], and its elasticity d log z / d log depth.

    Args:
        log_scale, share: of the line; log_depth: relative depth over the typical one.
        model: int64, AFFINE_DEPTH or AFFINE_DISPARITY. All broadcast together.
    """
    sign = torch.where(model == AFFINE_DEPTH, 1.0, -1.0).to(log_depth.dtype)
    ratio = (sign * log_depth).exp()
    bracket = (1 + share * (ratio - 1)).clamp(min=_LEAST_BRACKET)
    return log_scale + sign * bracket.log(), share * ratio / bracket


def line_coefficients(
    log_scale: torch.Tensor, share: torch.Tensor, typical_depth: torch.Tensor, model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and offset of the line: alpha [m per depth unit] and beta [m] of z = alpha * depth + beta; or, for a line
    in inverse depth, p [1 / m per disparity unit] and q [1 / m] of 1 / z = p * disparity + q."""
    scale = log_scale.exp()
    direct = model == AFFINE_DEPTH
    slope = torch.where(direct, scale * share / typical_depth, share * typical_depth / scale)
    return slope, torch.where(direct, scale * (1 - share), (1 - share) / scale)
