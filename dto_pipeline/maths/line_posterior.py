"""The posterior of one crowd: everybody's distance, with the two numbers of the depth line integrated out.

Pure tensors; N independent fits over P people, same fixed number of steps for all. Given the line, people are
independent, and a person's distance has a closed-form posterior: the prior on its height is a mixture of K normal laws
of log height, its depth noise one of S widths, so there are C = K S normal laws of log z. Over the line's two numbers
a grid is laid and zoomed in on twice; sums over the last grid are the posterior, its logarithm of the total the
evidence for the line's model. No start values, no convergence, no local optimum. Logarithms of metres.

Relative depth may become metres in two ways. With d the depth of a person over the scene's typical depth, both lines
have a distance of `scale` at d = 1 and a `share` m that is 1 where the map has no offset; at m = 1 they are the same:

* affine in depth (arXiv 2511.13282): z = scale * (1 + m (d - 1));
* affine in inverse depth (what the networks are trained for): 1 / z = (1 + m (1 / d - 1)) / scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dto_pipeline.maths.devices import constant, works_at_once
from dto_pipeline.maths.ordered import add_logarithms, fold_logsumexp, fold_softmax, fold_sum

AFFINE_DEPTH, AFFINE_DISPARITY = range(2)
DEPTH_MODELS = ("affine_depth", "affine_disparity")  # words for labels and `joint.depth_model`
_LEAST_BRACKET = 0.02  # of the bracket: a line may not turn distances negative
_FIRST_GRID = (25, 7)  # log scale x share, over everything the people allow
_ZOOM_GRID = (13, 9)
_LAST_GRID = (11, 7)
_ZOOM_REACH = 4.0  # standard deviations covered by a zoomed grid, each way
_SHARE_REACH = 3.5  # prior standard deviations of the share covered by the first grid
_LEAST_SHARE = 0.05  # depth never runs backwards
_MARGIN = 0.4  # the first grid goes this far beyond what people's own heights say [log m]
_PRODUCTS_AT_ONCE = 1 << 22  # of deviations of two people: bounds memory
_NUMBERS_AT_ONCE = 1 << 22  # of laws x fits x lines x people: the same
_WRONG_SLOPE = (0.15, 4.0)  # share of slopes that mean little, and how much wider their errors are
_WRONG_METRES = (0.05, 10.0)  # the same of metric scales: who declares millimetres as metres is outvoted by the people


@dataclass(frozen=True)
class CrowdProblem:
    """What is known of N fits before the line is: see the module for the laws. (N, P, ...) float64."""

    log_depth: torch.Tensor  # (N, P) relative depth over the scene's typical one
    measured: torch.Tensor  # (N, P) bool: the depth means something
    present: torch.Tensor  # (N, P) bool
    log_weight: torch.Tensor  # (N, P, K) of the classes
    centre: torch.Tensor  # (N, P, K) log z at which the person has the height of the class
    spread: torch.Tensor  # (N, P, K) variance of the same
    tail_log_weight: torch.Tensor  # (S,)
    noise: torch.Tensor  # (N, P, S) variance of log z about the line
    elasticity: torch.Tensor  # (N, P) measured inside the body; NaN = not
    elasticity_sigma: torch.Tensor  # (N, P)
    model: torch.Tensor  # (N,) int64, AFFINE_DEPTH or AFFINE_DISPARITY
    share_sigma: float
    log_prior: torch.Tensor  # (N,) of the fit itself, before anything is seen; densities of depth are per log depth
    metric_scale: torch.Tensor  # (N, 1) logarithm of the line's scale as a map in metres tells it; NaN = no metres
    metric_sigma: float  # of the same


@dataclass(frozen=True)
class CrowdPosterior:
    """Moments of N fits."""

    log_evidence: torch.Tensor  # (N,)
    log_scale: torch.Tensor  # (N,) mean of the line's first number
    share: torch.Tensor  # (N,) mean of its second
    log_z: torch.Tensor  # (N, P) mean
    covariance: torch.Tensor  # (N, P, P) of log z


@dataclass(frozen=True)
class _Grid:
    """T lines per fit with the logarithm of their joint probability density."""

    log_scale: torch.Tensor  # (N, T)
    share: torch.Tensor  # (N, T)
    log_cell: torch.Tensor  # (N,) area of a cell
    log_density: torch.Tensor  # (N, T)


def find_lines(problem: CrowdProblem) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N, 2) and covariance (N, 2, 2) of the line's two numbers, from a coarse grid and one zoom."""
    found = []
    for part in _parts(problem, max(_FIRST_GRID, _ZOOM_GRID)):
        fits = repeat_fits(problem, part)
        coarse = _moments_of_line(_first_grid(fits), floor=True)
        found.append(_moments_of_line(_zoom(fits, *coarse, _ZOOM_GRID)[0]))
    mean, covariance = zip(*found, strict=True)
    return torch.cat(mean), torch.cat(covariance)


def integrate_lines(problem: CrowdProblem, mean: torch.Tensor, covariance: torch.Tensor) -> CrowdPosterior:
    """The posterior on a grid about `mean`, `covariance` of `find_lines` (of a problem with noise alike)."""
    parts = _parts(problem, _LAST_GRID)
    found = [vars(_integrate(repeat_fits(problem, part), mean[part], covariance[part])) for part in parts]
    return CrowdPosterior(**{name: torch.cat([part[name] for part in found]) for name in found[0]})


def _parts(problem: CrowdProblem, grid: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Indices of so many fits at once as memory allows; fits know nothing of each other."""
    fits, people, laws = problem.centre.shape
    device = problem.centre.device
    numbers = people * laws * problem.noise.shape[-1] * grid[0] * grid[1]
    room = _NUMBERS_AT_ONCE << 4 if works_at_once(device) else _NUMBERS_AT_ONCE
    return torch.arange(fits, device=device).split(max(1, room // max(1, numbers)))


def _integrate(problem: CrowdProblem, mean: torch.Tensor, covariance: torch.Tensor) -> CrowdPosterior:
    grid, on_line, laws = _zoom(problem, mean, covariance, _LAST_GRID)
    total = fold_logsumexp(grid.log_density)
    weight = (grid.log_density - total[:, None]).exp()
    expected, variance = _given_line(problem, on_line, laws)
    log_z = fold_sum(weight[..., None] * expected, 1)
    covariance = _covariance(weight, expected - log_z[:, None])
    covariance = covariance + torch.diag_embed(fold_sum(weight[..., None] * variance, 1))
    return CrowdPosterior(
        log_evidence=total + grid.log_cell + problem.log_prior,
        log_scale=fold_sum(weight * grid.log_scale),
        share=fold_sum(weight * grid.share),
        log_z=log_z,
        covariance=covariance,
    )


def _covariance(weight: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
    """(N, P, P) weighted sum of products of deviations (N, T, P), so many rows at once as memory allows."""
    rows = max(1, _PRODUCTS_AT_ONCE // max(1, apart.numel()))
    weighted = weight[..., None] * apart
    parts = [fold_sum(part[..., None] * apart[:, :, None], 1) for part in weighted.split(rows, dim=-1)]
    return torch.cat(parts, dim=1)


def repeat_fits(problem: CrowdProblem, index: torch.Tensor) -> CrowdProblem:
    """The fits `index` (M,) of a problem as a new one."""
    rows = {name: value[index] for name, value in vars(problem).items() if torch.is_tensor(value) and value.dim() > 1}
    of_fit = {"model": problem.model[index], "log_prior": problem.log_prior[index]}
    return CrowdProblem(**{**vars(problem), **rows, **of_fit})


def _first_grid(problem: CrowdProblem) -> _Grid:
    own = fold_sum(problem.log_weight.exp() * problem.centre) - problem.log_depth
    low = torch.where(problem.measured, own, torch.inf).amin(1).nan_to_num(posinf=0) - _MARGIN
    high = torch.where(problem.measured, own, -torch.inf).amax(1).nan_to_num(neginf=0) + _MARGIN
    across, along = (torch.linspace(-1, 1, n, dtype=low.dtype, device=low.device) for n in _FIRST_GRID)
    log_scale = ((low + high) / 2)[:, None] + ((high - low) / 2)[:, None] * across
    reach = _SHARE_REACH * problem.share_sigma
    share = 1 + reach * along
    cell = (1 + reach * (-1 + 2 / (_FIRST_GRID[1] - 1))) - (1 + reach * -1.0)  # share[1] - share[0], not read back
    shape = (len(low), *_FIRST_GRID)
    log_cell = ((high - low) / (_FIRST_GRID[0] - 1)).log() + math.log(cell)
    return _evaluate(
        problem,
        log_scale[:, :, None].expand(shape).flatten(1),
        share.expand(shape).flatten(1),
        log_cell,
    )[0]


def _zoom(
    problem: CrowdProblem, mean: torch.Tensor, covariance: torch.Tensor, shape: tuple[int, int]
) -> tuple[_Grid, torch.Tensor, torch.Tensor]:
    """A grid spanned by what an earlier grid found; see `_evaluate`."""
    first = covariance[:, 0, 0].sqrt()[:, None]  # the Cholesky root; of a broken scene NaN, which stays its own
    cross = covariance[:, 1, 0, None] / first
    second = (covariance[:, 1, 1, None] - cross * cross).sqrt()
    ends = [torch.linspace(-_ZOOM_REACH, _ZOOM_REACH, n, dtype=mean.dtype, device=mean.device) for n in shape]
    steps = torch.cartesian_prod(*ends)
    log_scale = mean[:, :1] + steps[:, 0] * first
    share = mean[:, 1:] + (steps[:, 0] * cross + steps[:, 1] * second)
    cell = math.log((2 * _ZOOM_REACH) ** 2 / ((shape[0] - 1) * (shape[1] - 1)))
    log_cell = (first.log() + second.log()).squeeze(1) + cell
    return _evaluate(problem, log_scale, share, log_cell)


def _moments_of_line(grid: _Grid, floor: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (N, 2) and covariance (N, 2, 2); `floor`: never narrower than the grid itself can tell."""
    weight = fold_softmax(grid.log_density)[..., None]
    points = torch.stack([grid.log_scale, grid.share], -1)
    mean = fold_sum(weight * points, 1)
    apart = points - mean[:, None]
    covariance = fold_sum((weight * apart)[..., None] * apart[..., None, :], 1)
    least = torch.full_like(mean, 1e-8)
    if floor:
        reach = points.amax(1) - points.amin(1)
        least = (reach / (constant(_FIRST_GRID, mean.device, torch.int64) - 1)).square() / 4
    return mean, covariance + torch.diag_embed(least)


def _evaluate(
    problem: CrowdProblem, log_scale: torch.Tensor, share: torch.Tensor, log_cell: torch.Tensor
) -> tuple[_Grid, torch.Tensor, torch.Tensor]:
    """Logarithm of the probability of everything measured and of the line, at each line (N, T).

    Also, for reuse: (N, T, P) log z on the lines and (C, N, T, P) logarithms of the laws' densities there.
    """
    model = problem.model[:, None, None]
    on_line, elasticity = log_distance(log_scale[..., None], share[..., None], problem.log_depth[:, None], model)
    laws = _log_laws(problem, on_line)
    people = fold_sum(torch.where(problem.measured[:, None], fold_logsumexp(laws, 0), 0))
    sigma = problem.elasticity_sigma[:, None]
    slopes = _log_error((problem.elasticity[:, None] - elasticity) / sigma, *_WRONG_SLOPE) - sigma.log()
    slopes = fold_sum(torch.where(problem.elasticity.isfinite()[:, None], slopes, 0))
    width = problem.share_sigma
    prior = ((share - 1) / width).square() / -2 - math.log(width * math.sqrt(2 * math.pi))
    metres = _log_error((log_scale - problem.metric_scale) / problem.metric_sigma, *_WRONG_METRES)
    prior = prior + torch.where(problem.metric_scale.isfinite(), metres, 0)
    density = torch.where(share > _LEAST_SHARE, people + slopes + prior, -torch.inf)
    return _Grid(log_scale, share, log_cell, density), on_line, laws


def _log_error(miss: torch.Tensor, wrong: float, wider: float) -> torch.Tensor:
    """Logarithm of the density, but for a constant, of errors in sigmas, a share `wrong` of which is `wider`."""
    square = miss.square() / -2
    return add_logarithms(math.log(1 - wrong) + square, math.log(wrong / wider) + square / wider**2)


def _laws(problem: CrowdProblem) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(C, N, 1, P) log weight, centre and variance of the law of log z on the line."""
    variance = (problem.spread[..., :, None] + problem.noise[..., None, :]).flatten(-2)
    log_weight = (problem.log_weight[..., :, None] + problem.tail_log_weight).flatten(-2)
    centre = problem.centre[..., :, None].expand(*problem.spread.shape, problem.noise.shape[-1]).flatten(-2)
    return _laws_first(log_weight), _laws_first(centre), _laws_first(variance)


def _laws_first(value: torch.Tensor) -> torch.Tensor:
    """(C, N, 1, P) of (N, P, C): sums over the laws are sums of whole tables."""
    return value.movedim(-1, 0)[:, :, None].contiguous()


def _log_laws(problem: CrowdProblem, on_line: torch.Tensor) -> torch.Tensor:
    """(C, N, T, P) logarithm of each law's weight times its density at the line."""
    log_weight, centre, variance = _laws(problem)
    constant = log_weight - variance.log() / 2
    apart = on_line - centre
    return apart.square_().mul_(-0.5 / variance).add_(constant)


def _given_line(problem: CrowdProblem, on_line: torch.Tensor, laws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, T, P) mean and variance of log z of each person if the line were known.

    Under one law the mean lies between the class's centre (weight: depth noise) and the line (weight: spread of
    heights), so sums over the laws of 1, pull, pull^2 ... times their shares are all that is needed.
    """
    _, centre, variance = _laws(problem)
    noise = _laws_first(problem.noise.repeat(1, 1, problem.spread.shape[-1]))
    pull = (variance - noise) / variance
    held = centre * (1 - pull)
    share = fold_softmax(laws, 0)
    # mean = held + pull * line; its square and the law's own variance, each linear in the shares
    columns = (pull, held, pull * noise + held.square(), 2 * held * pull, pull.square())
    pulled, fixed, square, cross, steep = (fold_sum(share * column, 0) for column in columns)
    expected = fixed + pulled * on_line
    variance = square + cross * on_line + steep * on_line.square() - expected.square()
    return expected, variance.clamp(min=0)


def log_distance(
    log_scale: torch.Tensor, share: torch.Tensor, log_depth: torch.Tensor, model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithm of the distance on the line, and its elasticity d log z / d log depth.

    Args:
        log_scale, share: the line's two numbers; log_depth: of the relative depth over the typical one.
        model: int64, AFFINE_DEPTH or AFFINE_DISPARITY. All broadcast together.

    Returns:
        Two tensors of the broadcast shape: log z [log m], elasticity.
    """
    sign = torch.where(model == AFFINE_DEPTH, 1.0, -1.0).to(log_depth.dtype)
    ratio = (sign * log_depth).exp()
    bracket = (1 + share * (ratio - 1)).clamp(min=_LEAST_BRACKET)
    return log_scale + sign * bracket.log(), share * ratio / bracket


def line_coefficients(
    log_scale: torch.Tensor, share: torch.Tensor, typical_depth: torch.Tensor, model: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and offset of the line in its own terms.

    Returns:
        Affine in depth: alpha [m per depth unit] and beta [m] of z = alpha * depth + beta. Affine in inverse depth:
        p [1 / m per disparity unit] and q [1 / m] of 1 / z = p * disparity + q.
    """
    scale = log_scale.exp()
    direct = model == AFFINE_DEPTH
    slope = torch.where(direct, scale * share / typical_depth, share * typical_depth / scale)
    return slope, torch.where(direct, scale * (1 - share), (1 - share) / scale)
