"""Checks of people against `bounds` before and after a fit: people beyond them take no part.

Readers of labels refuse the same people earlier, with a message; these checks are for labels from memory, and for
heights, which need a body. Pure functions of tensors. Metres.
"""

from __future__ import annotations

import torch

from dto_pipeline.bounds import ASIDE, BETAS, DISTANCE, FOCAL, HEIGHT, LABEL_HEIGHT, POSE
from dto_pipeline.config import RefineConfig
from dto_pipeline.maths.devices import constant
from dto_pipeline.maths.paper_solver import CODE
from dto_pipeline.maths.refine import RestHeight
from dto_pipeline.scene import GroupFits, HeightPrior, RefinedPeople, SceneBatch
from dto_pipeline.status import PLACED, PersonStatus

_PLACED = tuple(CODE[status] for status in PLACED)  # outcome codes


def leave_out_implausible(batch: SceneBatch, rest_height: RestHeight) -> tuple[SceneBatch, torch.Tensor]:
    """Take out people with an implausible label or camera; their numbers become 0 and affect nothing.

    `rest_height`: of the body model, betas (..., 11) -> (...) [m]. Returns the batch without them, and (B, P) bool who
    was taken out.
    """
    focal = batch.intrinsics[:, :2, :2].diagonal(dim1=-2, dim2=-1) / batch.image_size.amax(-1, keepdim=True)
    sane = _within(batch.pose, batch.betas, batch.transl) & FOCAL.holds(focal).all(-1)[:, None]
    betas = torch.where(sane[..., None], batch.betas, 0)
    sane = sane & LABEL_HEIGHT.holds(rest_height(betas.to(torch.float64)))
    refused = batch.present & ~sane

    def cleared(value: torch.Tensor) -> torch.Tensor:
        return torch.where(sane[..., None], value, 0)

    labels = {name: cleared(getattr(batch, name)) for name in ("pose", "betas", "transl")}
    return batch.replace(present=batch.present & sane, **labels), refused


def set_implausible_aside(
    people: RefinedPeople, batch: SceneBatch, prior: HeightPrior, refused: torch.Tensor, config: RefineConfig
) -> RefinedPeople:
    """Restore the labels of people that the fit would make implausible, and set the outcome of those `refused`.

    `people` as refined from `batch` and `prior`; `refused` (B, P) of `leave_out_implausible`. Each of them adds the
    penalty of a person who is too tall to its image, so that such a fit is not accepted.
    """
    fits = people.fits
    placed = torch.isin(fits.outcome, constant(_PLACED, fits.outcome.device, torch.int64))
    within = _within(batch.pose, people.betas, people.transl) & HEIGHT.holds(people.height)
    aside = placed & ~within

    def keep(label: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.where(aside[..., None], label.to(new.dtype), new)

    outcome = fits.outcome.masked_fill(aside, CODE[PersonStatus.IMPLAUSIBLE])
    return RefinedPeople(
        betas=keep(batch.betas, people.betas),
        transl=keep(batch.transl, people.transl),
        scale=people.scale.masked_fill(aside, 1),
        beta_index=people.beta_index.masked_fill(aside, -1),
        height=torch.where(aside, prior.height, people.height),
        fits=_score_without(fits, aside, outcome.masked_fill(refused, CODE[PersonStatus.INVALID_LABEL]), config),
    )


def _score_without(fits: GroupFits, aside: torch.Tensor, outcome: torch.Tensor, config: RefineConfig) -> GroupFits:
    """The fits with other outcomes; people set aside count with a fixed penalty and have no posterior."""
    count = aside.sum(1)
    before = fits.num_optimized.sum(1)
    moved = (outcome == CODE[PersonStatus.MOVED]).sum(1)
    deviation = (fits.deviation * before + config.set_aside_penalty * count) / (before + count).clamp(min=1)
    posterior, either = fits.posterior, aside[:, :, None] | aside[:, None, :]
    if posterior is not None:
        posterior = posterior.replace(
            z_covariance=posterior.z_covariance.masked_fill(either, torch.nan),
            height_sigma=posterior.height_sigma.masked_fill(aside, torch.nan),
        )
    return fits.replace(
        outcome=outcome,
        is_optimized=fits.is_optimized & ((count == 0) | (moved >= 2)),
        deviation=torch.where(count > 0, deviation, fits.deviation),
        posterior=posterior,
    )


def _within(pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
    """(B, P) bool: every number is finite and within its bound."""
    checks = (POSE.holds(pose), BETAS.holds(betas), ASIDE.holds(transl[..., :2]), DISTANCE.holds(transl[..., 2:]))
    return torch.stack([check.all(-1) for check in checks]).all(0)
