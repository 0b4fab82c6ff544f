"""Applying the fit: new translations and body shapes that keep every person's place in the image.

Scaling a body and its translation by the same factor leaves its projection unchanged. The body is scaled by one shape
coefficient: the kid axis for children and small people, else the first. People beyond `bounds` keep their labels:
before the fit they are left out, after it they are set aside. Pure tensors; the body model comes as two functions.
Metres.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dto_pipeline.axes import KID_AXIS, TEEN
from dto_pipeline.bounds import ASIDE, BETAS, DISTANCE, FOCAL, HEIGHT, LABEL_HEIGHT, POSE
from dto_pipeline.config import CrowdConfig, RefineConfig
from dto_pipeline.maths.ordered import constant, fold_sum
from dto_pipeline.maths.paper_solver import CODE
from dto_pipeline.scene import GroupFits, HeightPrior, RefinedPeople, SceneBatch
from dto_pipeline.status import PLACED, PersonStatus

# smplx's joints over which a child is held in place in the image (the published choice)
KID_SHIFT_JOINTS = (24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33)

_PLACED = tuple(CODE[status] for status in PLACED)  # outcome codes of people with a new place
_HEIGHT_STEPS = 4  # the height is piecewise linear in a coefficient: two steps are exact but at the kinks
_PROBE = 1e-3  # of the coefficient, for its gain
_PLACE_STEPS = 4  # Gauss-Newton; the residual is nearly linear in the translation

RestHeight = Callable[[torch.Tensor], torch.Tensor]  # betas (..., 11) -> (...) [m]
Joints = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # pose, betas, transl -> (..., 45, 3) [m]


def refine_people(
    batch: SceneBatch,
    prior: HeightPrior,
    fits: GroupFits,
    rest_height: RestHeight,
    joints: Joints,
    has_kid_axis: bool,
    config: RefineConfig,
    crowd: CrowdConfig | None,
) -> RefinedPeople:
    """New betas and translations for everybody who moves; the others keep their labels exactly.

    Args:
        batch, prior, fits: of the same B scenes and P people.
        rest_height, joints: of the body model; has_kid_axis: whether its last direction means anything.
        crowd: given, heights are reached exactly and joints held by reprojection; None: the published steps.
    """
    moved = torch.isin(fits.outcome, constant(_PLACED, fits.outcome.device, torch.int64))
    scale = torch.where(moved, fits.new_z / fits.z, 1.0)
    transl = batch.transl.to(torch.float64) * scale[..., None]
    betas = batch.betas.to(torch.float64)
    small = ((prior.height_class <= TEEN) & (scale < 1)) | (scale * prior.height < config.kid_axis_below)
    on_kid_axis = moved & small & has_kid_axis
    beta_index = torch.where(on_kid_axis, KID_AXIS, torch.where(moved, 0, -1))

    column = beta_index.clamp(min=0)[..., None]
    gain = prior.height - rest_height(betas.scatter_add(-1, column, torch.full_like(column, -1, dtype=betas.dtype)))
    step = torch.where(moved, prior.height * (scale - 1) / gain, 0)
    new_betas = betas.scatter_add(-1, column, step[..., None])
    if crowd is not None:
        new_betas = reach_height(new_betas, column, prior.height * scale, moved, rest_height)
    who = (on_kid_axis if crowd is None else moved).nonzero(as_tuple=True)
    shift = torch.zeros_like(transl)
    if len(who[0]):
        picked, pose = constant(KID_SHIFT_JOINTS, transl.device, torch.int64), batch.pose[who]
        before = joints(pose, batch.betas[who], batch.transl[who])[:, picked].to(torch.float64)
        place = transl[who] if crowd is None else torch.zeros_like(transl[who])
        after = joints(pose, new_betas[who], place)[:, picked].to(torch.float64)
        if crowd is None:  # keeps the mean joint in place: proportions change along the kid axis
            scene, person = who
            move = fold_sum(scale[who][:, None, None] * before - after, 1) / len(picked)
            shift[scene, person, :2] = move[:, :2]
        else:
            transl = transl.index_put(who, hold_joints(before[..., :2] / before[..., 2:], after, transl[who], crowd))
    if crowd is None:
        transl = transl + shift
    return RefinedPeople(
        betas=new_betas,
        transl=transl,
        scale=scale,
        beta_index=beta_index,
        height=torch.where(moved, rest_height(new_betas), prior.height),
        fits=fits,
    )


def leave_out_implausible(batch: SceneBatch, rest_height: RestHeight) -> tuple[SceneBatch, torch.Tensor]:
    """Take out people whose label or camera is beyond `bounds`: their numbers become 0 and affect nothing.

    Readers of labels refuse the same people earlier, with a message. This is for labels from memory, and for heights,
    which need a body. `rest_height`: of the body model, betas (..., 11) -> (...) [m]. Returns the batch without them,
    and (B, P) bool who was taken out.
    """
    focal = batch.intrinsics[:, :2, :2].diagonal(dim1=-2, dim2=-1) / batch.image_size.amax(-1, keepdim=True)
    sane = _within(batch.pose, batch.betas, batch.transl) & FOCAL.holds(focal).all(-1)[:, None]
    betas = torch.where(sane[..., None], batch.betas, 0)
    sane = sane & LABEL_HEIGHT.holds(rest_height(betas.to(torch.float64)))
    labels = {name: torch.where(sane[..., None], getattr(batch, name), 0) for name in ("pose", "betas", "transl")}
    return batch.replace(present=batch.present & sane, **labels), batch.present & ~sane


def set_implausible_aside(
    people: RefinedPeople, batch: SceneBatch, prior: HeightPrior, refused: torch.Tensor, config: RefineConfig
) -> RefinedPeople:
    """Restore the labels of people that the fit would make implausible, and set the outcome of those `refused`.

    `people` as refined from `batch` and `prior`; `refused` (B, P) of `leave_out_implausible`. A person set aside has no
    posterior, and adds to the score of its image what one who is too tall adds, so that such a fit is not accepted.
    """
    fits = people.fits
    placed = torch.isin(fits.outcome, constant(_PLACED, fits.outcome.device, torch.int64))
    aside = placed & ~(_within(batch.pose, people.betas, people.transl) & HEIGHT.holds(people.height))
    outcome = fits.outcome.masked_fill(aside, CODE[PersonStatus.IMPLAUSIBLE])
    outcome = outcome.masked_fill(refused, CODE[PersonStatus.INVALID_LABEL])
    count, before = aside.sum(1), fits.num_optimized.sum(1)
    deviation = (fits.deviation * before + config.set_aside_penalty * count) / (before + count).clamp(min=1)
    posterior = fits.posterior
    if posterior is not None:
        either = aside[:, :, None] | aside[:, None, :]
        posterior = posterior.replace(
            z_covariance=posterior.z_covariance.masked_fill(either, torch.nan),
            height_sigma=posterior.height_sigma.masked_fill(aside, torch.nan),
        )

    def keep(label: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.where(aside[..., None], label.to(new.dtype), new)

    return RefinedPeople(
        betas=keep(batch.betas, people.betas),
        transl=keep(batch.transl, people.transl),
        scale=people.scale.masked_fill(aside, 1),
        beta_index=people.beta_index.masked_fill(aside, -1),
        height=torch.where(aside, prior.height, people.height),
        fits=fits.replace(
            outcome=outcome,
            is_optimized=fits.is_optimized & ((count == 0) | ((outcome == CODE[PersonStatus.MOVED]).sum(1) >= 2)),
            deviation=torch.where(count > 0, deviation, fits.deviation),
            posterior=posterior,
        ),
    )


def _within(pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> torch.Tensor:
    """(B, P) bool: every number is finite and within its bound."""
    checks = (POSE.holds(pose), BETAS.holds(betas), ASIDE.holds(transl[..., :2]), DISTANCE.holds(transl[..., 2:]))
    return torch.stack([check.all(-1) for check in checks]).all(0)


def reach_height(
    betas: torch.Tensor, column: torch.Tensor, height: torch.Tensor, chosen: torch.Tensor, rest_height: RestHeight
) -> torch.Tensor:
    """Betas with the given rest-pose height (Newton steps on one coefficient each).

    Args:
        betas: (..., 11) float64, near the solution; column: (..., 1) int64 coefficient to change.
        height: (...) to reach [m]; chosen: (...) bool, the others keep their betas.
    """
    probe = torch.zeros_like(betas).scatter_(-1, column, _PROBE)
    for _ in range(_HEIGHT_STEPS):
        reached = rest_height(betas)
        gain = (rest_height(betas + probe) - reached) / _PROBE
        step = torch.where(chosen & (gain.abs() > _PROBE), (height - reached) / gain, 0)
        betas = betas.scatter_add(-1, column, step[..., None])
    return betas


def hold_joints(seen: torch.Tensor, joints: torch.Tensor, transl: torch.Tensor, config: CrowdConfig) -> torch.Tensor:
    """Translations (M, 3) that bring changed bodies back to their place in the image.

    Least squares over the image positions of the joints, in units of `config.joint_sigma` of the body's size there,
    with z held to the fitted one by `config.hold_z_sigma` of itself.

    Args:
        seen: (M, J, 2) x / z, y / z of the label's joints; joints: (M, J, 3) of the changed bodies, untranslated [m].
        transl: (M, 3) float64 to start from, with the fitted z [m].
    """
    extent = (seen.amax(1) - seen.amin(1)).square()
    size = (extent[:, 0] + extent[:, 1]).sqrt().clamp(min=1e-6)
    weight = (config.joint_sigma * size).reciprocal()[:, None]
    wanted_z, z_weight = transl[:, 2], (config.hold_z_sigma * transl[:, 2]).reciprocal().square()
    for _ in range(_PLACE_STEPS):
        placed = joints + transl[:, None]
        gain = weight / placed[..., 2]
        x, y = (placed[..., :2] / placed[..., 2:]).unbind(-1)
        miss_x, miss_y = ((seen[..., axis] - at) * weight for axis, at in enumerate((x, y)))
        # the normal equations: a joint's u moves with x and z, its v with y and z
        flat = fold_sum(gain * gain)
        x_z, y_z = fold_sum(gain * gain * x), fold_sum(gain * gain * y)
        deep = fold_sum(gain * gain * (x * x + y * y)) + z_weight
        right_x, right_y = fold_sum(gain * miss_x), fold_sum(gain * miss_y)
        right_z = z_weight * (wanted_z - transl[:, 2]) - fold_sum(gain * (x * miss_x + y * miss_y))
        step_z = (right_z + (x_z * right_x + y_z * right_y) / flat) / (deep - (x_z * x_z + y_z * y_z) / flat)
        step_x, step_y = (right_x + x_z * step_z) / flat, (right_y + y_z * step_z) / flat
        transl = transl + torch.stack([step_x, step_y, step_z], dim=-1)
    return transl
