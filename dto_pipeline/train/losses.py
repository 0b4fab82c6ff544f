"""What a network is told it did wrong (MA-HMR), formulas beside the code; `compute_losses` reads top to bottom.

Every term is (L,): one number per decoder layer, the last layer last. Matched predictions are (L, M, ...), their people
(L, M, ...) too. Knows no files and no optimiser. Metres, radians, pixels; S is the input size. What the preset `paper`
does otherwise than `ours` is an option of `LossConfig` each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from dto_pipeline.maths.devices import constant
from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.train.blocks import Known, number_within
from dto_pipeline.train.config import LossConfig
from dto_pipeline.train.matching import Matches, generalised_iou
from dto_pipeline.train.model import Predictions, corners
from dto_pipeline.train.targets import Targets

BETA_FACTORS = (2.56, 1.28, 0.64, 0.64, *[0.32] * 6, 10.0)  # large directions change the body most; kid axis last
FOV_OVER = 3.0  # factor on a field of view that is estimated too large
SAME_LAYER = 0.3  # people are of another layer of depth from this gap on, where nothing else says so [m]
WEIGHTS = {
    "confs": "confidence", "poses": "pose", "betas": "betas", "boxes": "boxes", "giou": "giou", "j3ds": "joints",
    "j2ds": "image_joints", "depths": "inverse_depth", "depths_mt": "relative_metric", "depths_re": "relative_layer",
    "fov": "fov", "map_confs": "map_confidence", "map_scales": "map_scale",
}  # fmt: skip  # published name -> option of `LossConfig`
_TINY = 1e-12  # stands in for a count of nothing
_SMALLEST = 1e-44  # its logarithm is below -100
Index = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # layer, image, query of (L, M) pairs
Share = Callable[[torch.Tensor], torch.Tensor]  # a count, averaged over processes


@dataclass(frozen=True)
class Mean:
    """A sum and what it is divided by: (L,) or () each."""

    top: torch.Tensor
    count: torch.Tensor
    least: float = _TINY  # what the count is at least
    shared: bool = False  # the count is averaged over processes even as published


@dataclass(frozen=True)
class Losses:
    """The total, and the unweighted terms it is made of: ``confs`` of the last layer, ``confs.0`` of the first ..."""

    total: torch.Tensor
    terms: dict[str, torch.Tensor]
    weights: dict[str, float]


def compute_losses(
    predictions: Predictions,
    targets: Targets,
    matches: Matches,
    config: LossConfig,
    share: Share = lambda count: count,
    known: Known | None = None,
) -> Losses:
    """Sum of weight * loss over all terms and layers.

    Args:
        predictions: with joints.
        targets: of the same images.
        matches: of each layer by itself.
        config: weights; a term of weight 0 is left out.
        share: averages counts over the processes that share a step.
        known: who stands in the denoising slots of `predictions.known`.
    """
    index, person = matches.index, matches.person
    by_layer = {
        "confs": _confidence(predictions.confs, index, targets),
        **_body_terms(predictions, index, person, targets, config),
        **_pair_terms(predictions, index, person, matches.image, targets, config),
    }
    once = {**_map_terms(predictions.scale_map, targets), "fov": _fov(predictions, targets, config)}
    values = _divide(by_layer | once, config, share)
    terms = _by_layer({name: values[name] for name in by_layer}, "") | {name: values[name] for name in once}
    if predictions.known is not None and known is not None:
        means = _known_terms(predictions.known, known, targets, config)
        counts = {name: mean.count.float() for name, mean in means.items()}
        terms |= _by_layer({name: mean.top / counts[name].clamp(min=mean.least) for name, mean in means.items()}, "_dn")
    weights = {name: _weight(name, config) for name in terms}
    total = torch.stack([weights[name] * term for name, term in terms.items() if weights[name]]).sum()
    return Losses(total, terms, weights)


def _body_terms(
    found: Predictions, index: Index, person: torch.Tensor, true: Targets, config: LossConfig
) -> dict[str, Mean]:
    """All that is a sum over people / N, N = people of the batch who have it, at least 1."""
    assert found.j3ds is not None
    assert found.j2ds is not None
    # poses: mean over 72 of |axis-angle - axis-angle'|; ours: over the entries of the rotation matrices
    poses, true_poses = found.poses[index], true.poses[person]
    if config.pose_distance == "matrix":
        poses, true_poses = (
            axis_angle_to_matrix(part.unflatten(-1, (24, 3))).flatten(-3) for part in (poses, true_poses)
        )
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
    number = 2 * true.num_joints[person] if config.over_all_joints else seen.sum((-1, -2)).clamp(min=1)
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
        name: Mean(torch.where(counted[person], values, 0.0).sum(-1), counted.sum(), least=1, shared=True)
        for name, (values, counted) in each.items()
    }


def _pair_terms(
    found: Predictions, index: Index, person: torch.Tensor, scene: torch.Tensor, true: Targets, config: LossConfig
) -> dict[str, Mean]:
    """Means over pairs of people of one image, over all pairs of the batch; 0 without pairs."""
    count = person.shape[1]
    first, second = torch.triu_indices(count, count, 1, device=person.device)
    i, j = person[:, first], person[:, second]  # (L, M (M - 1) / 2)
    together = scene[:, first] == scene[:, second]
    both = together & true.has_body[i] & true.has_body[j]
    z = found.depths[index][..., 0]
    apart = z[:, first] - z[:, second]
    true_z = _true_depth(true, config)
    true_apart = true_z[i] - true_z[j]
    # depths_mt: |z_i - z_j| <= reach: ln(1 + |(T_zi - T_zj) - (z_i - z_j)|)
    near = both & (true_apart.abs() <= config.reach)
    weight = near * _pair_weights(true, i, j, config)
    metric = (weight * (apart - true_apart).abs().log1p()).sum(-1)
    # depths_re: d = T_zj - T_zi, k = layer_j - layer_i: |d| if k = 0, ln(1 + exp(d)) if k < 0, ln(1 + exp(-d)) if k > 0
    layers, layered = _depth_layers(true, true_z)
    step = torch.sign(layers[j] - layers[i])
    order = torch.where(step == 0, apart.abs(), functional.softplus(step * apart))
    ranked = together & layered[i] & layered[j]
    relative = torch.where(ranked, order, 0.0).sum(-1)
    return {"depths_mt": Mean(metric, weight.sum(-1)), "depths_re": Mean(relative, ranked.sum(-1))}


def _confidence(found: torch.Tensor, index: Index, true: Targets) -> Mean:
    """confs: focal loss, 1 for matched queries; over all queries of completely labelled images, else matched ones."""
    matched = _marked(found, index)
    counted = matched | true.complete[:, None]
    return Mean((focal_loss(found, matched) * counted).sum((-1, -2)), counted.sum((-1, -2)))


def _map_terms(scale_map: torch.Tensor, true: Targets) -> dict[str, Mean]:
    """map_confs: as confs, over cells; map_scales: mean over cells with people of |scale - scale'|."""
    people = true.scale_map[:, 0] > 0.5
    counted = people | (true.complete & true.mapped)[true.cell_image]
    scales = ((scale_map[:, 1] - true.scale_map[:, 1]).abs() * people).sum()
    return {
        "map_confs": Mean((focal_loss(scale_map[:, 0], people) * counted).sum(), counted.sum()),
        "map_scales": Mean(scales, people.sum(), least=1),
    }


def _fov(found: Predictions, true: Targets, config: LossConfig) -> Mean:
    """F = 2 atan((h / 2) / (f + 1e-8)): w (F - F')^2, w = 3 if F > F' else 1; SUM over images, ours: their mean."""
    known = true.image_focals > 0

    def angle(focal: torch.Tensor) -> torch.Tensor:
        return 2 * torch.atan(true.heights / 2 / (focal + 1e-8))

    over = angle(found.intrinsics[:, 0, 0]) - angle(true.image_focals)
    each = torch.where(known, torch.where(over > 0, FOV_OVER, 1.0) * over**2, 0.0)
    return Mean(each.sum(), torch.ones_like(known[:1]).sum() if config.sum_fov else known.sum())


def _known_terms(found: Predictions, known: Known, true: Targets, config: LossConfig) -> dict[str, Mean]:
    """Denoising: positive slots against their people, N times G; confidence over all slots and, as published, / G.

    Ours: confidence over the slots in which somebody stands.
    """
    layers, people, device = len(found.confs), len(known.image), known.image.device
    person = torch.arange(people, device=device).repeat(known.groups).expand(layers, -1)
    image = known.image.repeat(known.groups).expand(layers, -1)
    layer = torch.arange(layers, device=device)[:, None]
    index = (layer, image, known.slots(negative=False).flatten().expand(layers, -1))
    scene = image * known.groups + torch.arange(known.groups, device=device).repeat_interleave(people)
    terms = _body_terms(found, index, person, true, config)
    terms = {name: replace(mean, top=mean.top / known.groups) for name, mean in terms.items()}
    pairs = _pair_terms(found, index, person, scene, true, config)
    positive = _marked(found.confs, index)
    used = positive | _marked(found.confs, (layer, image, known.slots(negative=True).flatten().expand(layers, -1)))
    focal = focal_loss(found.confs, positive)
    if config.empty_slots:
        confidence = Mean(focal.sum((-1, -2)) / known.groups, torch.full_like(layer[:, 0], focal[0].numel()))
    else:
        confidence = Mean((focal * used).sum((-1, -2)), used.sum((-1, -2)))
    return terms | pairs | {"confs": confidence}


def _marked(like: torch.Tensor, index: Index) -> torch.Tensor:
    """Of the shape of `like`, bool: True at `index`."""
    nobody = torch.zeros_like(like, dtype=torch.bool)
    return nobody.index_put(index, nobody.new_ones(()))


def focal_loss(p: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """a (1 - p_t)^2 (-ln p_t); where positive p_t = p, a = 1/4, else p_t = 1 - p, a = 3/4; ln is at least -100."""
    right = torch.where(positive, p, 1 - p)
    log = right.clamp(min=_SMALLEST).log().clamp(min=-100)
    return torch.where(positive, 0.25, 0.75) * (1 - right) ** 2 * -log


def _divide(means: dict[str, Mean], config: LossConfig, share: Share) -> dict[str, torch.Tensor]:
    """The quotients; counts that processes share are averaged over them, all in one message."""
    shared = [name for name, mean in means.items() if mean.shared or config.share_all_counts]
    counts = {name: mean.count.float() for name, mean in means.items()}
    if shared:
        flat = share(torch.cat([counts[name].reshape(-1) for name in shared]))
        parts = flat.split([counts[name].numel() for name in shared])
        counts |= {name: part.reshape(counts[name].shape) for name, part in zip(shared, parts, strict=True)}
    return {name: mean.top / counts[name].clamp(min=mean.least) for name, mean in means.items()}


def _true_depth(true: Targets, config: LossConfig) -> torch.Tensor:
    """(N,) what T_z is compared with: the pelvis as published, or (ours) what the network says, SMPL's transl."""
    return true.pelvis_z if config.depth_of == "pelvis" else true.transl[:, 2]


def _pair_weights(true: Targets, i: torch.Tensor, j: torch.Tensor, config: LossConfig) -> torch.Tensor | float:
    """1 / (1 + v / pair_sigma^2), v the labels' posterior variance of z_i - z_j; 1 where it is unknown."""
    if not config.pair_sigma or not true.z_covariance.numel():
        return 1.0
    within, covariance = number_within(true.image, len(true.heights)), true.z_covariance  # (N,), (N, P)
    own = covariance.gather(1, within[:, None]).squeeze(1)
    variance = (own[i] + own[j] - 2 * covariance[i, within[j]]).clamp(min=0).nan_to_num(0.0)
    return 1 / (1 + variance / config.pair_sigma**2)


def _depth_layers(true: Targets, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N,) layers of depth and whether they are known: labelled ones, else a new one where sorted z leap by 0.3 m."""
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


def _by_layer(means: dict[str, torch.Tensor], suffix: str) -> dict[str, torch.Tensor]:
    """One entry per layer: the last under its own name, earlier ones with their number."""
    return {
        f"{name}{suffix}" + ("" if layer == len(values) - 1 else f".{layer}"): values[layer]
        for name, values in means.items()
        for layer in range(len(values))
    }


def _weight(name: str, config: LossConfig) -> float:
    plain = name.partition(".")[0].removesuffix("_dn")
    return float(getattr(config, WEIGHTS[plain]))
