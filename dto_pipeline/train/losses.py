"""The losses of MA-HMR (arXiv 2511.13282): what each measures, over whom it is averaged, how they are summed.

Pure tensors and the body model. Every loss is a sum and a count; sums are divided at the end, by counts that several
processes can share, so that two processes with half a batch each take the same step as one with the whole. A label
that is missing adds nothing to either. Metres, radians; image positions as shares of S.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from dto_pipeline.maths.rotation import matrix_to_axis_angle
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.config import LossConfig, MatchConfig
from dto_pipeline.train.matching import Matches, assign_tokens, generalised_iou, match_people, project_safely
from dto_pipeline.train.model import Predictions, corners
from dto_pipeline.train.targets import LOSS_JOINTS, Targets

Reduce = Callable[[torch.Tensor], torch.Tensor]  # counts (n,) -> their mean over all processes


@dataclass(frozen=True)
class Term:
    """One loss before division."""

    total: torch.Tensor  # () sum
    count: torch.Tensor  # () of what the sum runs over


@dataclass(frozen=True)
class _Matched:
    """M matched people: what one layer says of them, and the labels."""

    image: torch.Tensor  # (M,) int64
    boxes: torch.Tensor  # (M, 4) left, top, right, bottom, shares of S
    rotations: torch.Tensor  # (M, 24, 3, 3)
    betas: torch.Tensor  # (M, 11)
    transl: torch.Tensor  # (M, 3)
    true_boxes: torch.Tensor
    true_rotations: torch.Tensor
    true_pose: torch.Tensor  # (M, 72)
    true_betas: torch.Tensor
    true_transl: torch.Tensor
    true_joints: torch.Tensor  # (M, 22, 3)
    true_image_joints: torch.Tensor  # (M, 22, 2) shares of S
    visible: torch.Tensor  # (M, 22) bool
    has_body: torch.Tensor  # (M,) bool
    intrinsics: torch.Tensor  # (M, 3, 3) predicted, in shares of S


def compute_losses(
    predictions: Predictions,
    targets: Targets,
    body: BodyModel,
    loss: LossConfig,
    match: MatchConfig,
    reduce: Reduce = lambda counts: counts,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss to minimise.

    Args:
        predictions, targets: of one batch.
        body: the model of the labels.
        loss, match: weights.
        reduce: mean of counts over all processes that share the step.

    Returns:
        () the weighted sum over losses, layers and what tokens propose, and the last layer's unweighted losses by name.
    """
    matches = match_people(predictions, targets, body, match, loss)
    layers = [
        (1.0, _layer_terms(predictions, layer, targets, matches, body, loss))
        for layer in range(len(predictions.logits))
    ]
    if predictions.proposals is not None:
        lying = assign_tokens(predictions.proposals, targets)
        layers.insert(0, (loss.proposals, _layer_terms(predictions.proposals, 0, targets, lying, body, loss)))
    layers.append((1.0, {"fov": fov_loss(predictions.fov, targets, loss)}))
    terms = [(factor, name, term) for factor, layer_terms in layers for name, term in layer_terms.items()]
    counts = reduce(torch.stack([term.count for _, _, term in terms]))
    total = _nothing_of_all(predictions)
    last: dict[str, torch.Tensor] = {}
    for (factor, name, term), count in zip(terms, counts, strict=True):
        last[name] = term.total / torch.where(count > 0, count, torch.ones_like(count))
        total = total + factor * getattr(loss, name) * last[name]
    return total, {name: value.detach() for name, value in last.items()}


def _layer_terms(
    predictions: Predictions, layer: int, targets: Targets, matches: Matches, body: BodyModel, loss: LossConfig
) -> dict[str, Term]:
    people = _gather(predictions, layer, targets, matches)
    joints = body.posed_joints(people.rotations, people.betas)
    terms = {
        "confidence": confidence_loss(predictions.logits[layer], matches, loss),
        "boxes": _over(people.boxes.sub(people.true_boxes).abs().sum(-1), torch.ones_like(people.has_body)),
        "giou": _over(1 - generalised_iou(people.boxes, people.true_boxes), torch.ones_like(people.has_body)),
        "pose": pose_loss(people, loss),
        "betas": betas_loss(people.betas, people.true_betas, people.has_body, loss),
        "joints": _over(_joint_distance(joints, people.true_joints), people.has_body),
        "image_joints": image_joint_loss(joints + people.transl[:, None], people),
        "relative_metric": relative_metric_loss(
            people.transl[:, 2], people.true_transl[:, 2], people.has_body, matches, targets, loss
        ),
        "relative_layer": relative_layer_loss(people.transl[:, 2], matches, targets),
    }
    return {name: term for name, term in terms.items() if getattr(loss, name) > 0}


def confidence_loss(logits: torch.Tensor, matches: Matches, loss: LossConfig) -> Term:
    """Sigmoid focal loss (Lin et al., ICCV 2017) of all queries (B, Q), per person that one of them reports."""
    true = torch.zeros_like(logits)
    true[matches.image[matches.reports], matches.query[matches.reports]] = 1.0
    entropy = functional.binary_cross_entropy_with_logits(logits, true, reduction="none")
    right = torch.where(true > 0, logits.sigmoid(), 1 - logits.sigmoid())
    alpha = torch.where(true > 0, loss.focal_alpha, 1 - loss.focal_alpha)
    total = (alpha * (1 - right) ** loss.focal_gamma * entropy).sum()
    count = matches.reports.sum() * (logits.shape[1] if loss.confidence_over_queries else 1)
    return Term(total, count.to(logits.dtype))


def pose_loss(people: _Matched, loss: LossConfig) -> Term:
    """Mean L1 of rotation matrices' entries, or (MA-HMR) of axis-angle coefficients, per matched person."""
    if loss.pose_distance == "matrix":
        distance = (people.rotations - people.true_rotations).abs().mean((-1, -2, -3))
    else:
        distance = (matrix_to_axis_angle(people.rotations).flatten(-2) - people.true_pose).abs().mean(-1)
    return _over(distance, people.has_body)


def betas_loss(found: torch.Tensor, true: torch.Tensor, has_body: torch.Tensor, loss: LossConfig) -> Term:
    """Mean weighted L1 of shape coefficients (M, 11), per matched person."""
    factors = found.new_tensor(loss.beta_factors)
    return _over((factors * (found - true).abs()).mean(-1), has_body)


def image_joint_loss(points: torch.Tensor, people: _Matched) -> Term:
    """Mean L1 between visible joints in the image, shares of S, per person with any; points (M, 24, 3) [m]."""
    found = project_safely(points[:, :LOSS_JOINTS], people.intrinsics[:, None])
    distance = (found - people.true_image_joints).abs().mean(-1)
    visible = people.visible.to(distance.dtype)
    return _over((distance * visible).sum(-1) / visible.sum(-1).clamp(min=1), people.visible.any(-1))


def relative_metric_loss(
    z: torch.Tensor,
    true_z: torch.Tensor,
    has_body: torch.Tensor,
    matches: Matches,
    targets: Targets,
    loss: LossConfig,
) -> Term:
    """log(1 + |dz - true dz|) over pairs of one image within `reach`: mean per image, then over images with pairs.

    Args:
        z, true_z: (M,) of translations, both of the same point of the body [m].
        has_body: (M,) bool.
    """
    first, second = _pairs(matches)
    true_apart = true_z[first] - true_z[second]
    counted = has_body[first] & has_body[second] & (true_apart.abs() <= loss.reach)
    first, second, true_apart = first[counted], second[counted], true_apart[counted]
    each = torch.log1p((z[first] - z[second] - true_apart).abs())
    each = each * _pair_weight(first, second, matches, targets, loss.pair_sigma)
    return _mean_per_image(each, matches.image[first], len(targets.fov))


def relative_layer_loss(z: torch.Tensor, matches: Matches, targets: Targets) -> Term:
    """Ordinal labels: |dz| within a depth layer, log(1 + exp(dz)) with dz = nearer - farther between layers.

    Mean per image over pairs of known layers, then over images with pairs.
    """
    layer = targets.depth_layer[matches.image, matches.person]
    first, second = _pairs(matches)
    known = (layer[first] >= 0) & (layer[second] >= 0)
    first, second = first[known], second[known]
    sign = (layer[second] - layer[first]).sign()  # 1: the first is nearer
    apart = z[first] - z[second]
    each = torch.where(sign == 0, apart.abs(), functional.softplus(sign * apart))
    return _mean_per_image(each, matches.image[first], len(targets.fov))


def fov_loss(fov: torch.Tensor, targets: Targets, loss: LossConfig) -> Term:
    """Squared error of the field of view (B,), over-estimates `fov_over` times; mean over images with a camera."""
    error = fov - targets.fov
    each = torch.where(error > 0, loss.fov_over, 1.0) * error**2
    term = _over(each, targets.has_camera)
    return Term(term.total, torch.ones_like(term.count)) if loss.sum_fov else term


def _nothing_of_all(predictions: Predictions) -> torch.Tensor:
    """() 0, with a gradient of 0 for every weight: DDP waits for all of them, also where a loss is switched off."""
    said = (predictions.logits, predictions.rotations, predictions.all_betas, predictions.all_transl, predictions.fov)
    return sum((0 * part.sum() for part in said), predictions.logits.new_zeros(()))


def _gather(predictions: Predictions, layer: int, targets: Targets, matches: Matches) -> _Matched:
    found, true = (matches.image, matches.query), (matches.image, matches.person)
    shares = predictions.intrinsics.new_tensor([1 / targets.side, 1 / targets.side, 1.0])
    return _Matched(
        image=matches.image,
        boxes=corners(predictions.centred_boxes[layer][found]),
        rotations=predictions.rotations[layer][found],
        betas=predictions.all_betas[layer][found],
        transl=predictions.all_transl[layer][found],
        true_boxes=targets.boxes[true] / targets.side,
        true_rotations=targets.rotations[true],
        true_pose=targets.pose[true],
        true_betas=targets.betas[true],
        true_transl=targets.transl[true],
        true_joints=targets.joints[true],
        true_image_joints=targets.image_joints[true] / targets.side,
        visible=targets.visible[true],
        has_body=targets.has_body[true],
        intrinsics=(predictions.intrinsics * shares[:, None])[matches.image],
    )


def _joint_distance(joints: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """(M,) mean L1 of joints relative to the pelvis [m]."""
    relative = (joints - joints[:, :1])[:, :LOSS_JOINTS]
    return (relative - true).abs().mean((-1, -2))


def _over(each: torch.Tensor, counted: torch.Tensor) -> Term:
    """Sum of `each` (M,) where counted."""
    total = torch.where(counted, each, torch.zeros_like(each)).sum()
    return Term(total, counted.sum().to(each.dtype))


def _pairs(matches: Matches) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of pairs of different people of an image: everybody's queries or tokens with those that report another.

    So pairs of queries come both ways round, which changes no mean, and there are at most M x people of tokens.
    """
    others = matches.reports.nonzero().squeeze(-1)
    pairs = matches.image[:, None] == matches.image[others]
    pairs &= matches.person[:, None] != matches.person[others]
    first, second = pairs.nonzero(as_tuple=True)
    return first, others[second]


def _pair_weight(
    first: torch.Tensor, second: torch.Tensor, matches: Matches, targets: Targets, sigma: float
) -> torch.Tensor:
    """(n,) 1 / (1 + v / sigma^2) with v the labels' posterior variance of z_i - z_j; 1 where it is unknown."""
    image, i, j = matches.image[first], matches.person[first], matches.person[second]
    covariance = targets.z_covariance
    variance = covariance[image, i, i] + covariance[image, j, j] - 2 * covariance[image, i, j]
    if sigma == 0:
        return torch.ones_like(variance)
    return 1 / (1 + torch.where(variance.isfinite(), variance, 0.0).clamp(min=0) / sigma**2)


def _mean_per_image(each: torch.Tensor, image: torch.Tensor, images: int) -> Term:
    """Mean of `each` (n,) per image `image` (n,); the count is of images that have any."""
    sums = each.new_zeros(images).index_add(0, image, each)
    counts = each.new_zeros(images).index_add(0, image, torch.ones_like(each))
    return Term((sums / counts.clamp(min=1)).sum(), (counts > 0).sum().to(each.dtype))
