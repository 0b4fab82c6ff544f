"""The MAP fit of alpha and beta: one line z = alpha * depth + beta per group of people, N groups at once.

Pure tensors; nothing here knows images. Every fit goes through the same fixed number of rounds with masks, so no
member of a batch decides for another. Reproduces arXiv 2511.13282 as implemented by its authors (`solver.mode:
paper`), including how rejections are counted. Heights and z in metres.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dto_pipeline.config import SolverConfig
from dto_pipeline.maths.devices import works_at_once
from dto_pipeline.maths.ordered import fold_sum
from dto_pipeline.scene import MapProblem, MapSolution
from dto_pipeline.status import FitStatus

_ROUNDING = 1e-14  # a determinant this small relative to its terms is rounding: the depths are equal
_TWO = 2  # people a line passes through whatever the depths say


def solve_map(problem: MapProblem, config: SolverConfig, unit: torch.Tensor | float = 1.0) -> MapSolution:
    """Fit every group, setting the tallest aside while anybody is taller than `config.max_height`.

    `unit`: (N,) of the depths, see `DepthEvidence.unit`.
    """
    state = _first_state(problem)
    alpha_min = lower_bound(problem, config, unit)
    for _ in range(config.max_rounds):
        # saves a CPU rounds, changes nothing: fits that do not run keep their state
        if not works_at_once(alpha_min.device) and not state.running.any():
            break
        state = _round(problem, state, alpha_min, config)
    return _conclude(problem, state, alpha_min)


def lower_bound(problem: MapProblem, config: SolverConfig, unit: torch.Tensor | float = 1.0) -> torch.Tensor:
    """(N,) smallest alpha allowed: the crowd may not be flatter than the bodies in it.

    The mean of the slopes of all people of the group (those set aside later too) whose correlation is above
    `config.min_corr`, weighted by the correlation; `config.default_alpha_min` where there is none.
    """
    counts = problem.active & (problem.corr > config.min_corr) & config.internal_constraint
    weight = torch.where(counts, problem.corr, 0)
    total = fold_sum(weight)
    mean = fold_sum(weight * torch.where(counts, problem.slope, 0)) / torch.where(total > 0, total, 1)
    return torch.where(total > 0, mean, config.default_alpha_min * unit)


@dataclass(frozen=True)
class _State:
    """Where the rounds stand; `running` fits go on, all others keep what they have."""

    alpha: torch.Tensor
    beta: torch.Tensor
    active: torch.Tensor
    rejected_order: torch.Tensor
    num_optimized: torch.Tensor
    plane: torch.Tensor
    rounds: torch.Tensor
    status: torch.Tensor
    running: torch.Tensor


def _first_state(problem: MapProblem) -> _State:
    fits, people = problem.active.shape
    device = problem.active.device
    number = torch.full((fits,), torch.nan, dtype=torch.float64, device=device)
    zero = torch.zeros(fits, dtype=torch.int64, device=device)
    return _State(
        alpha=number,
        beta=number,
        active=problem.active,
        rejected_order=torch.full((fits, people), -1, dtype=torch.int64, device=device),
        num_optimized=zero,
        plane=zero.bool(),
        rounds=zero,
        status=zero + int(FitStatus.EMPTY),
        running=problem.active.any(1),
    )


def _round(problem: MapProblem, state: _State, alpha_min: torch.Tensor, config: SolverConfig) -> _State:
    """Fit those still running; end the fits that are fine or hopeless, set one person aside in the others."""
    alpha, beta, plane, bound, finite = _fit(problem, state.active, alpha_min)
    count = state.active.sum(1)
    height = new_heights(problem, alpha, beta)
    tall = state.active & (height > config.max_height)
    free_pair = ~bound & (count == _TWO)
    over = state.running & tall.any(1) & ~free_pair & finite
    hopeless = over & (count <= _TWO)
    rejecting = over & ~hopeless
    tallest = torch.where(state.active, height, -torch.inf).argmax(1)
    rejected = torch.zeros_like(state.active).scatter_(1, tallest[:, None], rejecting[:, None])

    order = torch.where(rejected, (~state.active & problem.active).sum(1, keepdim=True), state.rejected_order)
    order = torch.where(hopeless[:, None], _tallest_first(problem, height), order)
    status = torch.where(bound, int(FitStatus.AT_BOUND), int(FitStatus.SOLVED))
    status = torch.where(free_pair, int(FitStatus.TWO_PEOPLE), status)
    status = torch.where(rejecting, int(FitStatus.ROUNDS_EXHAUSTED), status)
    status = torch.where(hopeless, int(FitStatus.ALL_REJECTED), status)
    status = torch.where(finite, status, int(FitStatus.DEGENERATE))
    fitted = _State(
        alpha=torch.where(hopeless, 0, alpha),
        beta=torch.where(hopeless, torch.where(problem.active, problem.z, -torch.inf).amax(1), beta),
        active=state.active & ~rejected & ~hopeless[:, None],
        rejected_order=order,
        num_optimized=torch.where(free_pair | hopeless, 0, count),
        plane=plane,
        rounds=state.rounds + 1,
        status=status,
        running=rejecting,
    )
    return _where(state.running, fitted, state)


def _fit(
    problem: MapProblem, active: torch.Tensor, alpha_min: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weighted least squares of sum w (g (alpha d + beta) - mu)^2 with the bound: alpha, beta, plane, bound, finite."""
    weight = torch.where(active, problem.prior_sigma**-2, 0)
    depth, mean = (torch.where(active, value, 0) for value in (problem.depth, problem.prior_mean))
    ratio = torch.where(active, problem.height / problem.z, 0)
    a = fold_sum(weight * ratio**2 * depth**2)
    b = fold_sum(weight * ratio**2 * depth)
    c = fold_sum(weight * ratio**2)
    d = fold_sum(weight * ratio * depth * mean)
    e = fold_sum(weight * ratio * mean)
    determinant = a * c - b * b
    determinant = torch.where(determinant > _ROUNDING * a * c, determinant, torch.nan)
    alpha = (c * d - b * e) / determinant
    plane = _is_plane(problem, active)
    bound = (alpha < alpha_min) | plane
    beta = torch.where(bound, (e - b * alpha_min) / c, (a * e - b * d) / determinant)
    alpha = torch.where(bound, alpha_min, alpha)
    finite = torch.isfinite(alpha) & torch.isfinite(beta)
    return alpha, beta, plane, bound, finite


def _is_plane(problem: MapProblem, active: torch.Tensor) -> torch.Tensor:
    """(N,) whether the group faces the camera as one plane: its depths spread less than the bodies themselves do."""
    count = active.sum(1).clamp(min=1)
    depth = torch.where(active, problem.depth, 0)
    mean = fold_sum(depth) / count
    spread = torch.sqrt(fold_sum(torch.where(active, (depth - mean[:, None]) ** 2, 0)) / count)
    return spread < fold_sum(torch.where(active, problem.depth_std, 0)) / count


def new_heights(problem: MapProblem, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """(N, P) height of everybody under the lines alpha, beta (N,) [m]."""
    return problem.height / problem.z * (alpha[:, None] * problem.depth + beta[:, None])


def _tallest_first(problem: MapProblem, height: torch.Tensor) -> torch.Tensor:
    """(N, P) order in which everybody was set aside when a whole group is: tallest first under the last fit."""
    value = torch.where(problem.active, height, -torch.inf)
    rank = torch.argsort(torch.argsort(value, dim=1, descending=True, stable=True), dim=1, stable=True)
    return torch.where(problem.active, rank, -1)


def _conclude(problem: MapProblem, state: _State, alpha_min: torch.Tensor) -> MapSolution:
    """Deviation over those kept; a fit that two people determine alone has none."""
    deviation = torch.where(
        state.active,
        (new_heights(problem, state.alpha, state.beta) - problem.prior_mean).abs() / problem.prior_sigma,
        0,
    )
    mean = fold_sum(deviation) / state.active.sum(1).clamp(min=1)
    return MapSolution(
        alpha=state.alpha,
        beta=state.beta,
        active=state.active,
        rejected_order=state.rejected_order,
        num_optimized=state.num_optimized,
        deviation=torch.where(state.num_optimized > 0, mean, 0),
        alpha_min=alpha_min,
        plane=state.plane,
        rounds=state.rounds,
        status=state.status,
    )


def _where(running: torch.Tensor, new: _State, old: _State) -> _State:
    """Take `new` for the fits that are running, `old` for the others."""

    def choose(after: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return torch.where(running.view(-1, *[1] * (after.dim() - 1)), after, before)

    fields = {name: choose(value, getattr(old, name)) for name, value in vars(new).items() if name != "running"}
    return replace(old, **fields, running=running & new.running)
