"""`solver.mode: paper`: one line z = alpha * depth + beta per group of people, by arXiv 2511.13282.

Pure tensors; metres. A scene has three fits, stacked on the N axis: near people by all their pixels, near people by
their lowest pixels, far people by all their pixels. Every fit goes through the same number of rounds with masks, so
the members of a batch do not influence each other. Reproduces the method as implemented by its authors, including how
rejections are counted.
"""

from __future__ import annotations

import torch

from dto_pipeline.axes import FAR, GROUND, MEAN, NEAR
from dto_pipeline.config import RefineConfig, SolverConfig
from dto_pipeline.maths.ordered import fold_sum, works_at_once
from dto_pipeline.scene import OUTCOMES, DepthEvidence, GroupFits, HeightPrior, MapProblem, MapSolution
from dto_pipeline.status import PersonStatus

_FITS = ((NEAR, MEAN), (NEAR, GROUND), (FAR, MEAN))  # the fits of a scene, in the order they are stacked
CODE = {status: code for code, status in enumerate(OUTCOMES)}
_ROUNDING = 1e-14  # a determinant this small relative to its terms is rounding: the depths are equal
_TWO = 2  # people a line passes through whatever the depths say


def fit_groups(evidence: DepthEvidence, prior: HeightPrior, solver: SolverConfig, refine: RefineConfig) -> GroupFits:
    """Solve the near and the far group of every scene and decide the outcome of each person.

    Args: evidence, prior: of B scenes, P people; a scene with fewer than two people must have nobody usable.
    """
    fits = solve_map(_build_fits(evidence, prior), solver, evidence.unit.repeat_interleave(len(_FITS)))
    member = torch.stack([evidence.usable & (evidence.group == group) for group in (NEAR, FAR)], 1)  # (B, 2, P)
    count = member.sum(-1)
    lines, ground = _choose_lines(fits.each(lambda value: value.unflatten(0, (-1, len(_FITS)))), count)
    use_ground = ground[:, None] & member[:, NEAR]
    depth, z = (torch.where(use_ground, kinds[..., GROUND], kinds[..., MEAN]) for kinds in (evidence.depth, evidence.z))
    alone = count == 1  # a lone person stays where it is
    lines = lines.replace(
        alpha=torch.where(alone, 0, lines.alpha),
        beta=torch.where(alone, torch.where(member, z[:, None], 0).sum(-1), lines.beta),
        deviation=torch.where(alone, 0, lines.deviation),
        num_optimized=torch.where(alone, 0, lines.num_optimized),
        rejected_order=torch.where(member & ~alone[..., None], lines.rejected_order, -1),
    )
    lines = _push_far_behind_near(lines, member, depth, prior.height / z, solver)
    new_z, undetermined = _new_z(lines, member, depth), ~(lines.alpha.isfinite() & lines.beta.isfinite())
    outcome = torch.where(evidence.cut > 0, CODE[PersonStatus.TOO_SMALL], CODE[PersonStatus.NOT_RUN])
    for status, people in (  # the last that holds
        (PersonStatus.MOVED, member.any(1)),
        (PersonStatus.BEHIND_CAMERA, member.any(1) & ~(new_z > 0)),
        (PersonStatus.NO_FIT, (member & undetermined[..., None]).any(1)),
        (PersonStatus.TOO_TALL, lines.rejected_order.amax(1) >= 0),
        (PersonStatus.ALONE_IN_GROUP, (member & alone[..., None]).any(1)),
    ):
        outcome = torch.where(people, CODE[status], outcome)
    # score of the image: mean deviation of those optimised and a fixed penalty for each set aside by height
    counts = lines.num_optimized.to(torch.float64)
    kept = torch.where(lines.num_optimized > 0, lines.deviation * counts, 0).sum(-1)
    aside = (outcome == CODE[PersonStatus.TOO_TALL]).sum(-1).to(torch.float64)
    total = counts.sum(-1) + aside
    return GroupFits(
        alpha=torch.where(count >= _TWO, lines.alpha, torch.nan),
        beta=torch.where(count >= _TWO, lines.beta, torch.nan),
        used_ground=ground,
        z=z,
        new_z=new_z,
        outcome=outcome,
        num_optimized=lines.num_optimized,
        is_optimized=(lines.num_optimized >= _TWO).any(-1),
        deviation=torch.where(total > 0, (kept + refine.set_aside_penalty * aside) / total.clamp(min=1), 0),
    )


def _build_fits(evidence: DepthEvidence, prior: HeightPrior) -> MapProblem:
    """The 3 B fits of B scenes, (3 B, P) each, the three of a scene adjacent."""

    def of_each(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value[..., kind] if value.dim() > 2 else value for _, kind in _FITS], 1).flatten(0, 1)

    active = torch.stack([evidence.usable & (evidence.group == group) for group, _ in _FITS], 1)
    measured = {name: of_each(getattr(evidence, name)) for name in ("z", "depth", "depth_std", "slope", "corr")}
    heights = {"height": prior.height, "prior_mean": prior.mean, "prior_sigma": prior.sigma}
    return MapProblem(
        **measured, **{name: of_each(value) for name, value in heights.items()}, active=active.flatten(0, 1)
    )


def _choose_lines(fits: MapSolution, count: torch.Tensor) -> tuple[MapSolution, torch.Tensor]:
    """The lines (B, 2, ...) of both groups from the fits (B, 3, ...), and (B,) whether the near one is by ground
    evidence.

    It is where it optimises at least as many people with a strictly smaller deviation. `count`: (B, 2) usable people.
    """
    ground = (count[:, NEAR] >= _TWO) & (fits.num_optimized[:, 1] >= fits.num_optimized[:, 0])
    ground = ground & (fits.deviation[:, 1] < fits.deviation[:, 0])

    def choose(value: torch.Tensor) -> torch.Tensor:
        near = torch.where(ground.view(-1, *[1] * (value.dim() - 2)), value[:, 1], value[:, 0])
        return torch.stack([near, value[:, 2]], 1)

    return fits.each(choose), ground


def _push_far_behind_near(
    lines: MapSolution, member: torch.Tensor, depth: torch.Tensor, ratio: torch.Tensor, solver: SolverConfig
) -> MapSolution:
    """Raise the far line until its nearest person starts behind the farthest near one, and check heights again.

    Args: member (B, 2, P); depth (B, P); ratio (B, P) height over z of the labels.
    """
    count = member.sum(-1)
    farthest_near = torch.where(member[:, NEAR], depth, -torch.inf).amax(-1)
    nearest_far = torch.where(member[:, FAR], depth, torch.inf).amin(-1)
    both = (count > 0).all(-1)
    border = farthest_near * lines.alpha[:, NEAR] + lines.beta[:, NEAR]
    least = border - nearest_far * lines.alpha[:, FAR]
    raised = both & (least > lines.beta[:, FAR]) & (count[:, FAR] >= _TWO)
    beta, order, optimized = lines.beta.clone(), lines.rejected_order.clone(), lines.num_optimized.clone()
    beta[:, FAR] = torch.where(raised, least, lines.beta[:, FAR])
    pushed = lines.replace(beta=beta)

    height = ratio * _new_z(pushed, member, depth)
    checked = (both & (count[:, FAR] >= _TWO))[:, None] & member[:, FAR] & (order[:, FAR] < 0)
    late = checked & (height > solver.max_height)
    order[:, FAR] = torch.where(late, order[:, FAR].amax(-1, keepdim=True) + 1, order[:, FAR])  # all at once
    optimized[:, FAR] = (optimized[:, FAR] - late.sum(-1)).clamp(min=0)
    return pushed.replace(rejected_order=order, num_optimized=optimized)


def _new_z(lines: MapSolution, member: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """(B, P) distance of each person on its group's line [m]; NaN for those in no group."""
    value = lines.alpha[..., None] * depth[:, None] + lines.beta[..., None]
    return torch.where(member.any(1), torch.where(member, value, 0).sum(1), torch.nan)


def solve_map(problem: MapProblem, config: SolverConfig, unit: torch.Tensor | float = 1.0) -> MapSolution:
    """Fit every group, setting the tallest aside while anybody is taller than `config.max_height`.

    `unit`: (N,) of the depths, see `DepthEvidence.unit`.
    """
    alpha_min = lower_bound(problem, config, unit)
    unknown = torch.full_like(alpha_min, torch.nan)
    zero = torch.zeros_like(alpha_min, dtype=torch.int64)
    found = MapSolution(
        alpha=unknown,
        beta=unknown,
        active=problem.active,
        rejected_order=torch.full_like(problem.active, -1, dtype=torch.int64),
        num_optimized=zero,
        deviation=unknown,
        alpha_min=alpha_min,
        plane=zero.bool(),
        rounds=zero,
        goes_on=problem.active.any(1),
    )
    for _ in range(config.max_rounds):
        # a CPU can stop early; fits that are done keep their result in further rounds
        if not works_at_once(found.alpha.device) and not found.goes_on.any():
            break
        found = _round(problem, found, config)
    off = (new_heights(problem, found.alpha, found.beta) - problem.prior_mean).abs() / problem.prior_sigma
    mean = fold_sum(torch.where(found.active, off, 0)) / found.active.sum(1).clamp(min=1)
    return found.replace(deviation=torch.where(found.num_optimized > 0, mean, 0))  # a pair off the bound has none


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


def _round(problem: MapProblem, found: MapSolution, config: SolverConfig) -> MapSolution:
    """Fit those that are not done; end the fits that are fine or hopeless, set one person aside in the others."""
    alpha, beta, plane, bound = _fit(problem, found.active, found.alpha_min)
    finite = alpha.isfinite() & beta.isfinite()
    count = found.active.sum(1)
    height = new_heights(problem, alpha, beta)
    tall = found.active & (height > config.max_height)
    free_pair = ~bound & (count == _TWO)
    over = found.goes_on & tall.any(1) & ~free_pair & finite
    hopeless = over & (count <= _TWO)
    rejecting = over & ~hopeless
    tallest = torch.where(found.active, height, -torch.inf).argmax(1)
    rejected = torch.zeros_like(found.active).scatter_(1, tallest[:, None], rejecting[:, None])

    order = torch.where(rejected, (~found.active & problem.active).sum(1, keepdim=True), found.rejected_order)
    by_height = torch.argsort(torch.where(problem.active, height, -torch.inf), dim=1, descending=True, stable=True)
    rank = torch.where(problem.active, torch.argsort(by_height, dim=1, stable=True), -1)
    order = torch.where(hopeless[:, None], rank, order)  # the whole group is set aside, tallest first
    fitted = {
        "alpha": torch.where(hopeless, 0, alpha),
        "beta": torch.where(hopeless, torch.where(problem.active, problem.z, -torch.inf).amax(1), beta),
        "active": found.active & ~rejected & ~hopeless[:, None],
        "rejected_order": order,
        "num_optimized": torch.where(free_pair | hopeless, 0, count),
        "plane": plane,
        "rounds": found.rounds + 1,
        "goes_on": rejecting,
    }
    ran = {1: found.goes_on, 2: found.goes_on[:, None]}
    return found.replace(
        **{name: torch.where(ran[value.dim()], value, getattr(found, name)) for name, value in fitted.items()}
    )


def _fit(
    problem: MapProblem, active: torch.Tensor, alpha_min: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Least squares of sum w (g (alpha d + beta) - mu)^2 with the bound: alpha, beta, plane, bound, all (N,).

    plane: the depths of the group spread less than the bodies do themselves; bound: alpha is the bound.
    """
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

    count = active.sum(1).clamp(min=1)
    apart = torch.where(active, (depth - (fold_sum(depth) / count)[:, None]) ** 2, 0)
    plane = torch.sqrt(fold_sum(apart) / count) < fold_sum(torch.where(active, problem.depth_std, 0)) / count
    bound = (alpha < alpha_min) | plane
    beta = torch.where(bound, (e - b * alpha_min) / c, (a * e - b * d) / determinant)
    return torch.where(bound, alpha_min, alpha), beta, plane, bound


def new_heights(problem: MapProblem, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """(N, P) height of everybody under the lines alpha, beta (N,) [m]."""
    return problem.height / problem.z * (alpha[:, None] * problem.depth + beta[:, None])
