"""Matching of queries to people, and losses (MA-HMR), with their formulas.

Every term is (L,), one number per decoder layer; matched predictions and their people are (L, M, ...). S is the input
size. Metres, radians, pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from dto_pipeline.maths.ordered import constant
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.train.blocks import Known, corners, number_within
from dto_pipeline.train.config import LossConfig
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.targets import SMPL_JOINTS, Targets

COST_CONFIDENCE, COST_BOXES, COST_GIOU, COST_JOINTS = 1.0, 1.0, 1.0, 20.0
BODY_JOINTS = 22  # matching uses the first of smplx's joints, and those beyond smplx's, of annotated people
_EPS = 1e-6
_WORST = 1e9  # cost instead of one that is not finite
BETA_FACTORS = (2.56, 1.28, 0.64, 0.64, *[0.32] * 6, 10.0)  # the first directions change a body most; kid axis last
FOV_OVER = 3.0  # factor on a field of view that is estimated too large
SAME_LAYER = 0.3  # gap between layers of depth where they are not labelled [m]
WEIGHTS = {
    "confs": "confidence", "poses": "pose", "betas": "betas", "boxes": "boxes", "giou": "giou", "j3ds": "joints",
    "j2ds": "image_joints", "depths": "inverse_depth", "depths_mt": "relative_metric", "depths_re": "relative_layer",
    "fov": "fov", "map_confs": "map_confidence", "map_scales": "map_scale",
}  # fmt: skip  # published name -> option of `LossConfig`
Terms = dict[str, "Mean"]  # by published name
_TINY = 1e-12  # divisor where nothing was counted
_SMALLEST = 1e-44  # its logarithm is below -100


class Matches(NamedTuple):
    """M pairs in each of L layers: all people, unless an image has more of them than queries. The first three index
    (L, B, Q, ...) predictions."""

    layer: torch.Tensor  # (L, 1) int64
    image: torch.Tensor  # (L, M) int64
    query: torch.Tensor  # (L, M) int64
    person: torch.Tensor  # (L, M) int64, of the batch's people


@torch.no_grad()
def match_people(predictions: Predictions, targets: Targets) -> Matches:
    """The assignment of least cost, rows = queries, columns = people of the image (Hungarian)."""
    cost = matching_cost(predictions, targets).nan_to_num(_WORST, _WORST, _WORST)
    numbers, image = cost.double().cpu().numpy(), targets.image.cpu().numpy()  # (L, N, Q)
    bounds = pairwise(np.searchsorted(image, range(len(targets.heights) + 1)))
    parts = [
        [(query, person + first) for query, person in (linear_sum_assignment(layer[first:last].T) for layer in numbers)]
        for first, last in bounds
    ]  # images of layers of (2, m)
    pairs = torch.from_numpy(np.concatenate(parts, axis=-1).astype(np.int64))
    query, person = pairs.to(cost.device, non_blocking=True).unbind(1)
    return Matches(torch.arange(len(query), device=cost.device)[:, None], targets.image[person], query, person)


def matching_cost(predictions: Predictions, targets: Targets) -> torch.Tensor:
    """(L, N, Q): 1/4 (1 - p)^2 (-ln(p + 1e-8)) + sum |box - box'| - GIoU + K, each times its weight.

    K = sum over visible joints and both coordinates of |j2d - j2d'| / S, divided by their number.
    """
    assert predictions.j2ds is not None
    image, p = targets.image, predictions.confs[:, targets.image]
    confidence = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    boxes, true = predictions.boxes[:, image], targets.boxes[:, None]
    counted = [number for number in range(targets.j2ds.shape[1]) if not BODY_JOINTS <= number < SMPL_JOINTS]
    used = constant(tuple(counted), image.device, torch.int64)
    seen = targets.j2ds_mask[:, None, used].to(p.dtype)  # (N, 1, J, 2)
    apart = (predictions.j2ds[:, image][:, :, :, used] - targets.j2ds[:, None, used]).abs() / predictions.input_size
    joints = (apart * seen).sum((-1, -2)) / (seen.sum((-1, -2)) + _EPS)
    overlap = generalised_iou(corners(boxes), corners(true))
    apart = COST_BOXES * (boxes - true).abs().sum(-1) - COST_GIOU * overlap
    return COST_CONFIDENCE * confidence + apart + COST_JOINTS * joints


def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(...) of boxes (..., 4) as corners: inter / (union + 1e-6) - (hull - union) / (hull + 1e-6)."""
    low, high = (a[..., :2], b[..., :2]), (a[..., 2:], b[..., 2:])
    most, least = (torch.maximum(*low), torch.minimum(*high)), (torch.minimum(*low), torch.maximum(*high))
    sides = (most, least, (low[0], high[0]), (low[1], high[1]))
    inter, hull, own, other = ((last - first).clamp(min=0).prod(-1) for first, last in sides)
    union = own + other - inter
    return inter / (union + _EPS) - (hull - union) / (hull + _EPS)


class Mean(NamedTuple):
    """A sum and its divisor, (L,) or () each."""

    top: torch.Tensor
    number: torch.Tensor
    least: float = _TINY  # lower bound of the divisor


class Losses(NamedTuple):
    """The total and its unweighted terms: ``confs`` of the last layer, ``confs.0`` of the first ..."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    weights: dict[str, float]


def compute_losses(
    predictions: Predictions, targets: Targets, matches: Matches, config: LossConfig,
    share: Callable[[torch.Tensor], torch.Tensor] = lambda count: count, known: Known | None = None,
) -> Losses:  # fmt: skip
    """Sum of weight * loss over all terms and layers, without those of weight 0; predictions come with joints.

    `share` averages counts over the processes that share a step; `known`: the people in the denoising slots.
    """
    # confs: focal loss, 1 for matched queries; over all queries of completely labelled images, else matched ones
    matched = _marked(predictions.confs, matches[:3])
    counted = matched | targets.complete[:, None]
    confidence = Mean((focal_loss(predictions.confs, matched) * counted).sum((-1, -2)), counted.sum((-1, -2)))
    bodies = _body_terms(predictions, matches, targets, config)
    pairs = _pair_terms(predictions, matches, matches.image, targets, config)
    means = {"confs": confidence, **bodies, **pairs}
    means |= _image_terms(predictions, targets, config)
    layers = len(predictions.confs)
    # counts that processes share are averaged over them, all in one message
    shared = list(bodies if config.as_published else means)
    numbers = torch.stack([means[name].number.float().expand(layers) for name in shared])
    counts = dict(zip(shared, share(numbers), strict=True))
    if known is not None:  # without people its terms are 0, because all steps and processes have the same terms
        zeros = confidence.top.new_zeros(layers)
        noisy = dict.fromkeys((*bodies, *pairs, "confs"), Mean(zeros, zeros))
        if predictions.known is not None:
            noisy = _known_terms(predictions.known, known, targets, config)
        means |= {f"{name}_dn": mean for name, mean in noisy.items()}

    terms: dict[str, torch.Tensor] = {}
    for name, mean in means.items():
        values = mean.top / counts.get(name, mean.number.float()).clamp(min=mean.least)
        terms |= {f"{name}.{layer}": values[layer] for layer in range(layers - 1) if mean.top.dim()}
        terms[name] = values[-1] if values.dim() else values
    options = {name: WEIGHTS[name.partition(".")[0].removesuffix("_dn")] for name in terms}
    weights = {name: float(getattr(config, option)) for name, option in options.items()}
    total = torch.stack([weights[name] * term for name, term in terms.items() if weights[name]]).sum()
    return Losses(total, terms, weights)


def _body_terms(found: Predictions, matches: Matches, true: Targets, config: LossConfig) -> Terms:
    """Sums over people / N, N = people of the batch with such a label, at least 1."""
    assert found.j3ds is not None
    assert found.j2ds is not None
    index, person = matches[:3], matches.person
    # poses: mean over 72 of |axis-angle - axis-angle'|; ours: over the entries of the rotation matrices
    poses, true_poses = found.poses[index], true.poses[person]
    if not config.as_published:
        both = (poses, true_poses)
        poses, true_poses = (axis_angle_to_matrix(one.unflatten(-1, (24, 3))).flatten(-3) for one in both)
    # betas: mean over 10 or 11 of factor * |b - b'|
    count = found.betas.shape[-1]
    factors = constant(BETA_FACTORS[:count], person.device, found.betas.dtype)
    betas = (found.betas[index] - true.betas[person][..., :count]).abs() * factors
    # boxes: SUM over 4 of |box - box'|; giou: 1 - GIoU
    boxes, true_boxes = found.boxes[index], true.boxes[person]
    # j3ds: mean over 45 x 3 of |(j - j_0) - (j' - j'_0)|
    posed = found.j3ds[index][..., : true.j3ds.shape[1], :]
    joints, true_joints = (j - j[..., :1, :] for j in (posed, true.j3ds[person]))
    # j2ds: sum of mask * |j - j'| / S, over 45 x 2 (RelativeHuman: 14 x 2); ours: over the number seen
    seen = true.j2ds_mask[person].to(boxes.dtype)
    apart = (found.j2ds[index] - true.j2ds[person]).abs() / found.input_size * seen
    number = 2 * true.num_joints[person] if config.as_published else seen.sum((-1, -2)).clamp(min=1)
    # depths: |1 / (F d + 1e-8) - 1 / (z + 1e-8)|, d = T_z / f, F = focal length of the label
    far = true.focals[person] * found.depths[index][..., 1]
    inverse = (1 / (far + 1e-8) - 1 / (_true_depth(true, config)[person] + 1e-8)).abs()
    everybody = torch.ones_like(true.has_body)
    each = {
        "poses": ((poses - true_poses).abs().mean(-1), true.has_body),
        "betas": (betas.mean(-1), true.has_body),
        "boxes": ((boxes - true_boxes).abs().sum(-1), everybody),
        "giou": (1 - generalised_iou(corners(boxes), corners(true_boxes)), everybody),
        "j3ds": ((joints - true_joints).abs().mean((-1, -2)), true.has_body),
        "j2ds": (apart.sum((-1, -2)) / number, everybody),
        "depths": (inverse, true.has_body & (true.focals > 0)),
    }
    return {
        name: Mean(torch.where(counted[person], values, 0.0).sum(-1), counted.sum(), least=1)
        for name, (values, counted) in each.items()
    }


def _true_depth(true: Targets, config: LossConfig) -> torch.Tensor:
    """(N,) target of T_z: the pelvis as published, or (ours) SMPL's transl, which the network predicts."""
    return true.pelvis_z if config.as_published else true.transl[:, 2]


def _pair_terms(found: Predictions, matches: Matches, scene: torch.Tensor, true: Targets, config: LossConfig) -> Terms:
    """Means over pairs of people of one scene (L, M), over all pairs of the batch; 0 without pairs."""
    person, count = matches.person, matches.person.shape[1]
    first, second = torch.triu_indices(count, count, 1, device=person.device)
    i, j = person[:, first], person[:, second]  # (L, M (M - 1) / 2)
    together = scene[:, first] == scene[:, second]
    z, true_z = found.depths[matches[:3]][..., 0], _true_depth(true, config)
    apart, true_apart = z[:, first] - z[:, second], true_z[i] - true_z[j]
    # depths_mt: |z_i - z_j| <= reach: ln(1 + |(T_zi - T_zj) - (z_i - z_j)|)
    weight = together & true.has_body[i] & true.has_body[j] & (true_apart.abs() <= config.reach)
    if config.pair_sigma and true.z_covariance.numel():
        # ours: times 1 / (1 + v / pair_sigma^2), v the labels' posterior variance of z_i - z_j; 1 where it is unknown
        within, covariance = number_within(true.image, len(true.heights)), true.z_covariance  # (N,), (N, P)
        own = covariance.gather(1, within[:, None]).squeeze(1)
        variance = (own[i] + own[j] - 2 * covariance[i, within[j]]).clamp(min=0).nan_to_num(0.0)
        weight = weight / (1 + variance / config.pair_sigma**2)
    metric = (weight * (apart - true_apart).abs().log1p()).sum(-1)
    # depths_re: d = T_zj - T_zi, k = layer_j - layer_i: |d| if k = 0, ln(1 + exp(d)) if k < 0, ln(1 + exp(-d)) if k > 0
    layers, layered = _depth_layers(true, true_z)
    step = torch.sign(layers[j] - layers[i])
    order = torch.where(step == 0, apart.abs(), functional.softplus(step * apart))
    ranked = together & layered[i] & layered[j]
    relative = torch.where(ranked, order, 0.0).sum(-1)
    return {"depths_mt": Mean(metric, weight.sum(-1)), "depths_re": Mean(relative, ranked.sum(-1))}


def _depth_layers(true: Targets, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) layers of depth and whether they are known: labelled ones, else a new one at each gap of 0.3 m in z."""
    labelled = true.depth_layer >= 0
    order = torch.argsort(z, stable=True)
    order = order[torch.argsort(true.image[order], stable=True)]
    sorted_z, image = z[order], true.image[order]
    leap = torch.ones_like(sorted_z, dtype=torch.long)
    leap[1:] = ((sorted_z[1:] - sorted_z[:-1] >= SAME_LAYER) | (image[1:] != image[:-1])).long()
    made = torch.empty_like(leap).index_put((order,), leap.cumsum(0))
    number_labelled = torch.zeros_like(true.complete, dtype=torch.long).index_add(0, true.image, labelled.long())
    by_label = number_labelled[true.image] > 0
    return torch.where(by_label, true.depth_layer, made), torch.where(by_label, labelled, true.has_body)


def _image_terms(found: Predictions, true: Targets, config: LossConfig) -> Terms:
    """Losses that are the same in every layer, () each."""
    # map_confs: as confs, over cells; map_scales: mean over cells with people of |scale - scale'|
    people = true.scale_map[:, 0] > 0.5
    counted = people | (true.complete & true.mapped)[true.cell_image]
    scales = ((found.scale_map[:, 1] - true.scale_map[:, 1]).abs() * people).sum()
    # fov: F = 2 atan((h / 2) / (f + 1e-8)): w (F - F')^2, w = 3 if F > F' else 1; SUM over images, ours: their mean
    known, focals = true.image_focals > 0, (found.intrinsics[:, 0, 0], true.image_focals)
    fov, true_fov = (2 * torch.atan(true.heights / 2 / (focal + 1e-8)) for focal in focals)
    over = fov - true_fov
    each = torch.where(known, torch.where(over > 0, FOV_OVER, 1.0) * over**2, 0.0)
    return {
        "map_confs": Mean((focal_loss(found.scale_map[:, 0], people) * counted).sum(), counted.sum()),
        "map_scales": Mean(scales, people.sum(), least=1),
        "fov": Mean(each.sum(), torch.ones_like(known[:1]).sum() if config.as_published else known.sum()),
    }


def _known_terms(found: Predictions, known: Known, true: Targets, config: LossConfig) -> Terms:
    """Denoising: positive slots against their people, N times G; confidence over all slots and, as published, / G.

    Ours: confidence over the occupied slots.
    """
    layers, people, device = len(found.confs), len(known.image), known.image.device
    person = torch.arange(people, device=device).repeat(known.groups).expand(layers, -1)
    image = known.image.repeat(known.groups).expand(layers, -1)
    layer = torch.arange(layers, device=device)[:, None]
    near, far = (known.slots(negative=side).flatten().expand(layers, -1) for side in (False, True))
    matches = Matches(layer, image, near, person)
    scene = image * known.groups + torch.arange(known.groups, device=device).repeat_interleave(people)
    bodies = _body_terms(found, matches, true, config)
    terms = {name: mean._replace(top=mean.top / known.groups) for name, mean in bodies.items()}
    positive = _marked(found.confs, matches[:3])
    used = positive | _marked(found.confs, (layer, image, far))
    focal = focal_loss(found.confs, positive)
    confidence = Mean((focal * used).sum((-1, -2)), used.sum((-1, -2)))
    if config.as_published:
        confidence = Mean(focal.sum((-1, -2)) / known.groups, torch.full_like(layer[:, 0], focal[0].numel()))
    return terms | _pair_terms(found, matches, scene, true, config) | {"confs": confidence}


def _marked(like: torch.Tensor, places: tuple[torch.Tensor, ...]) -> torch.Tensor:
    empty = torch.zeros_like(like, dtype=torch.bool)
    return empty.index_put(places, empty.new_ones(()))


def focal_loss(p: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """a (1 - p_t)^2 (-ln p_t); where positive p_t = p, a = 1/4, else p_t = 1 - p, a = 3/4; ln is at least -100."""
    right = torch.where(positive, p, 1 - p)
    log = right.clamp(min=_SMALLEST).log().clamp(min=-100)
    return torch.where(positive, 0.25, 0.75) * (1 - right) ** 2 * -log
