"""From people to one line per group and back: which fits a scene needs, which one counts, and what they are worth.

Pure tensors. A scene has three fits, stacked on the N axis: near people by all their pixels, near people by their
lowest pixels, far people by all their pixels. Follows arXiv 2511.13282 as implemented by its authors. Metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dto_pipeline.axes import FAR, GROUND, MEAN, NEAR
from dto_pipeline.config import RefineConfig, SolverConfig
from dto_pipeline.maths.map_solver import solve_map
from dto_pipeline.scene import OUTCOMES, DepthEvidence, GroupFits, HeightPrior, MapProblem, MapSolution
from dto_pipeline.status import FitStatus, PersonStatus

_FITS = ((NEAR, MEAN), (NEAR, GROUND), (FAR, MEAN))  # the fits of a scene, in the order they are stacked
CODE = {status: code for code, status in enumerate(OUTCOMES)}


def fit_groups(evidence: DepthEvidence, prior: HeightPrior, solver: SolverConfig, refine: RefineConfig) -> GroupFits:
    """Solve the near and the far group of every scene and say what becomes of each person.

    Args:
        evidence, prior: of B scenes, P people; a scene with fewer than two people must have nobody usable.
    """
    problem = build_map_problem(evidence, prior)
    lines = _choose_near_evidence(evidence, solve_map(problem, solver, evidence.unit.repeat_interleave(len(_FITS))))
    lines = _push_far_behind_near(lines, prior, solver)
    outcome = _outcomes(evidence, lines)
    return GroupFits(
        alpha=torch.where(lines.count >= 2, lines.alpha, torch.nan),
        beta=torch.where(lines.count >= 2, lines.beta, torch.nan),
        status=lines.status,
        used_ground=lines.used_ground,
        z=lines.z,
        new_z=lines.new_z,
        outcome=outcome,
        rejected_order=lines.rejected_order,
        num_optimized=lines.num_optimized,
        is_optimized=(lines.num_optimized >= 2).any(-1),
        deviation=_image_score(lines, outcome, refine),
    )


def build_map_problem(evidence: DepthEvidence, prior: HeightPrior) -> MapProblem:
    """The 3 B fits of B scenes (see the module's first lines), (3 B, P) each, the three of a scene adjacent."""

    def stack(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value] * len(_FITS), 1).flatten(0, 1)

    def stack_kinds(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value[..., kind] for _, kind in _FITS], 1).flatten(0, 1)

    active = torch.stack([evidence.usable & (evidence.group == group) for group, _ in _FITS], 1)
    return MapProblem(
        height=stack(prior.height),
        z=stack_kinds(evidence.z),
        depth=stack_kinds(evidence.depth),
        depth_std=stack(evidence.depth_std),
        slope=stack(evidence.slope),
        corr=stack(evidence.corr),
        prior_mean=stack(prior.mean),
        prior_sigma=stack(prior.sigma),
        active=active.flatten(0, 1),
    )


@dataclass(frozen=True)
class _Lines:
    """Both groups of every scene with the evidence that is used."""

    alpha: torch.Tensor  # (B, 2); a lone person has alpha 0 and beta its z
    beta: torch.Tensor  # (B, 2)
    status: torch.Tensor  # (B, 2)
    deviation: torch.Tensor  # (B, 2)
    num_optimized: torch.Tensor  # (B, 2)
    count: torch.Tensor  # (B, 2) usable people
    member: torch.Tensor  # (B, 2, P) usable people
    rejected_order: torch.Tensor  # (B, P)
    used_ground: torch.Tensor  # (B,)
    depth: torch.Tensor  # (B, P)
    z: torch.Tensor  # (B, P)

    @property
    def new_z(self) -> torch.Tensor:
        """(B, P) distance of each person on its group's line; NaN for those in no group."""
        value = self.alpha[..., None] * self.depth[:, None] + self.beta[..., None]
        inside = torch.where(self.member, value, 0).sum(1)
        return torch.where(self.member.any(1), inside, torch.nan)


def _choose_near_evidence(evidence: DepthEvidence, solution: MapSolution) -> _Lines:
    """Ground evidence if it optimises at least as many near people with a strictly smaller deviation."""
    scenes = len(evidence.usable)

    def per_scene(value: torch.Tensor) -> torch.Tensor:
        return value.view(scenes, len(_FITS), *value.shape[1:])

    optimized, deviation = per_scene(solution.num_optimized), per_scene(solution.deviation)
    member = torch.stack([evidence.usable & (evidence.group == group) for group in (NEAR, FAR)], 1)
    count = member.sum(-1)
    ground = (count[:, NEAR] >= 2) & (optimized[:, 1] >= optimized[:, 0]) & (deviation[:, 1] < deviation[:, 0])

    def both_groups(value: torch.Tensor) -> torch.Tensor:
        value = per_scene(value)
        near = torch.where(ground.view(-1, *[1] * (value.dim() - 2)), value[:, 1], value[:, 0])
        return torch.stack([near, value[:, 2]], 1)

    use_ground = ground[:, None] & member[:, NEAR]
    depth = torch.where(use_ground, evidence.depth[..., GROUND], evidence.depth[..., MEAN])
    z = torch.where(use_ground, evidence.z[..., GROUND], evidence.z[..., MEAN])
    alone = count == 1
    own_z = torch.where(member, z[:, None], 0).sum(-1)
    rejected = torch.where(member & ~alone[..., None], both_groups(solution.rejected_order), -1)
    return _Lines(
        alpha=torch.where(alone, 0, both_groups(solution.alpha)),
        beta=torch.where(alone, own_z, both_groups(solution.beta)),
        status=both_groups(solution.status),
        deviation=torch.where(alone, 0, both_groups(solution.deviation)),
        num_optimized=torch.where(alone, 0, both_groups(solution.num_optimized)),
        count=count,
        member=member,
        rejected_order=rejected.amax(1),
        used_ground=ground,
        depth=depth,
        z=z,
    )


def _push_far_behind_near(lines: _Lines, prior: HeightPrior, solver: SolverConfig) -> _Lines:
    """Raise the far line until its nearest person starts behind the farthest near one, and check heights again."""
    depth = torch.where(lines.member, lines.depth[:, None], torch.nan)
    farthest_near = torch.where(lines.member[:, NEAR], depth[:, NEAR], -torch.inf).amax(-1)
    nearest_far = torch.where(lines.member[:, FAR], depth[:, FAR], torch.inf).amin(-1)
    both = (lines.count > 0).all(-1)
    border = farthest_near * lines.alpha[:, NEAR] + lines.beta[:, NEAR]
    least = border - nearest_far * lines.alpha[:, FAR]
    raised = both & (least > lines.beta[:, FAR]) & (lines.count[:, FAR] >= 2)
    beta = lines.beta.clone()
    beta[:, FAR] = torch.where(raised, least, lines.beta[:, FAR])
    pushed = _replace(lines, beta=beta)

    height = prior.height / lines.z * pushed.new_z
    checked = both[:, None] & lines.member[:, FAR] & (lines.rejected_order < 0) & (lines.count[:, FAR, None] >= 2)
    late = checked & (height > solver.max_height)
    first = lines.rejected_order.masked_fill(~lines.member[:, FAR], -1).amax(-1, keepdim=True) + 1
    order = torch.where(late, first + torch.cumsum(late, -1) - 1, lines.rejected_order)
    optimized = lines.num_optimized.clone()
    optimized[:, FAR] = (optimized[:, FAR] - late.sum(-1)).clamp(min=0)
    return _replace(pushed, rejected_order=order, num_optimized=optimized)


def _outcomes(evidence: DepthEvidence, lines: _Lines) -> torch.Tensor:
    """(B, P) index into OUTCOMES."""
    in_group = lines.member.any(1)

    def of_group(value: torch.Tensor) -> torch.Tensor:
        return (lines.member & value[..., None]).any(1)

    outcome = torch.where(evidence.cut > 0, CODE[PersonStatus.TOO_SMALL], CODE[PersonStatus.NOT_RUN])
    outcome = torch.where(in_group, CODE[PersonStatus.MOVED], outcome)
    outcome = torch.where(in_group & ~(lines.new_z > 0), CODE[PersonStatus.BEHIND_CAMERA], outcome)
    outcome = torch.where(of_group(lines.status == int(FitStatus.DEGENERATE)), CODE[PersonStatus.NO_FIT], outcome)
    outcome = torch.where(lines.rejected_order >= 0, CODE[PersonStatus.TOO_TALL], outcome)
    return torch.where(of_group(lines.count == 1), CODE[PersonStatus.ALONE_IN_GROUP], outcome)


def _image_score(lines: _Lines, outcome: torch.Tensor, refine: RefineConfig) -> torch.Tensor:
    """(B,) mean deviation of those optimised, a fixed penalty for each set aside by height; 0 if nothing counts."""
    counts = lines.num_optimized.to(torch.float64)
    kept = torch.where(lines.num_optimized > 0, lines.deviation * counts, 0).sum(-1)
    aside = (outcome == CODE[PersonStatus.TOO_TALL]).sum(-1).to(torch.float64)
    total = counts.sum(-1) + aside
    return torch.where(total > 0, (kept + refine.set_aside_penalty * aside) / total.clamp(min=1), 0)


def _replace(lines: _Lines, **changes: torch.Tensor) -> _Lines:
    return _Lines(**{**vars(lines), **changes})
