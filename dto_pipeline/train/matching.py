"""Which query, and which token, answers for which person.

Queries by the optimal assignment of every image, with costs computed in one batch (the assignment itself is scipy's):
nobody is matched twice, queries left over are nobody. Tokens by where they lie. Pure tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from dto_pipeline.maths.camera import project
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.config import LossConfig, MatchConfig
from dto_pipeline.train.model import Predictions, token_places
from dto_pipeline.train.targets import LOSS_JOINTS, Targets

_NEAREST = 0.05  # predicted joints are projected from at least this far [m]
_MIDDLE = 0.25  # tokens up to this share of a box's sides from its centre lie on its middle


@dataclass(frozen=True)
class Matches:
    """M matched people of a batch, images in order: person `person[m]` of image `image[m]` is query `query[m]`."""

    image: torch.Tensor  # (M,) int64
    query: torch.Tensor  # (M,) int64
    person: torch.Tensor  # (M,) int64
    reports: torch.Tensor  # (M,) bool, the one of a person's that is to be sure of it: all queries, one of many tokens


@torch.no_grad()
def match_people(
    predictions: Predictions, targets: Targets, body: BodyModel, config: MatchConfig, loss: LossConfig
) -> Matches:
    """Assign the known people of every image to queries of the last layer at the least cost."""
    cost = match_costs(predictions, targets, body, config, loss).cpu()
    images, queries, people = [], [], []
    for image, known in enumerate(targets.known.cpu()):
        candidates = known.nonzero().squeeze(-1)
        query, place = linear_sum_assignment(cost[image][:, candidates].numpy())
        images.append(torch.full((len(query),), image))
        queries.append(torch.from_numpy(query))
        people.append(candidates[torch.from_numpy(place)])
    device = targets.known.device
    image_index, query_index, person_index = (torch.cat(part).long().to(device) for part in (images, queries, people))
    return Matches(image_index, query_index, person_index, torch.ones_like(image_index, dtype=torch.bool))


@torch.no_grad()
def assign_tokens(tokens: Predictions, targets: Targets) -> Matches:
    """Which tokens answer for which person: all on the middle of its box; the nearest to its centre reports it.

    A token on several people answers for the one whose centre it has, else for the nearest to the camera (people
    without a body come last). So everybody is reported by one token, unless several people share it.

    Args:
        tokens: `Predictions.proposals`; N tokens of a square grid, row by row.
        targets: of the same images.

    Returns:
        Matches whose `query` is the token.
    """
    if not targets.known.any():
        nobody = targets.depth_layer.new_empty(0)
        return Matches(nobody, nobody, nobody, nobody.bool())
    places = targets.side * token_places(math.isqrt(tokens.logits.shape[-1]), targets.boxes.device)
    centre = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
    reach = _MIDDLE * (targets.boxes[..., 2:] - targets.boxes[..., :2])
    away = (places[:, None] - centre[:, None]).abs()  # (B, N, P, 2)
    known = targets.known[:, None]
    nearest = functional.one_hot(away.square().sum(-1).argmin(1), len(places)).mT.bool() & known
    reports = nearest.any(-1)
    on = torch.where(reports[..., None], nearest, (away <= reach[:, None]).all(-1) & known)
    far = torch.finfo(targets.transl.dtype).max
    z = torch.where(targets.has_body, targets.transl[..., 2], far / 2)
    person = torch.where(on, z[:, None], far).argmin(-1)
    image, token = on.any(-1).nonzero(as_tuple=True)
    return Matches(image, token, person[image, token], reports[image, token])


def match_costs(
    predictions: Predictions, targets: Targets, body: BodyModel, config: MatchConfig, loss: LossConfig
) -> torch.Tensor:
    """(B, Q, P) cost of every query for every person; finite, also for people who are not known."""
    probability = predictions.confidence
    positive = loss.focal_alpha * (1 - probability) ** loss.focal_gamma * -(probability + 1e-8).log()
    negative = (1 - loss.focal_alpha) * probability**loss.focal_gamma * -(1 - probability + 1e-8).log()
    found, true = predictions.boxes[:, :, None], targets.boxes[:, None]
    distance = (found - true).abs().sum(-1) / targets.side
    cost = config.confidence * (positive - negative)[..., None]
    cost = cost + config.boxes * distance + config.giou * (1 - generalised_iou(found, true))
    seen = project_predicted(predictions.rotations[-1], predictions, body)
    apart = (seen[:, :, None] - targets.image_joints[:, None]).abs().mean(-1) / targets.side
    visible = targets.visible[:, None].to(apart.dtype)
    mean = (apart * visible).sum(-1) / visible.sum(-1).clamp(min=1)
    return torch.nan_to_num(cost + config.image_joints * mean, nan=1e6, posinf=1e6, neginf=-1e6)


def project_predicted(rotations: torch.Tensor, predictions: Predictions, body: BodyModel) -> torch.Tensor:
    """(B, Q, 22, 2) where the last layer's joints are seen by the predicted camera [px]."""
    joints = body.posed_joints(rotations, predictions.betas) + predictions.transl[..., None, :]
    return project_safely(joints[..., :LOSS_JOINTS, :], predictions.intrinsics[:, None, None])


def project_safely(points: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """`project`, with points behind or in the camera's plane moved just before it."""
    return project(torch.cat([points[..., :2], points[..., 2:].clamp(min=_NEAREST)], dim=-1), intrinsics)


def generalised_iou(found: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Generalised intersection over union (Rezatofighi et al., CVPR 2019) of boxes (..., 4), -1 .. 1; broadcasts."""
    wide = (torch.minimum(found[..., 2:], true[..., 2:]) - torch.maximum(found[..., :2], true[..., :2])).clamp(min=0)
    shared = wide.prod(-1)
    union = _area(found) + _area(true) - shared
    hull = (torch.maximum(found[..., 2:], true[..., 2:]) - torch.minimum(found[..., :2], true[..., :2])).prod(-1)
    return shared / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def _area(box: torch.Tensor) -> torch.Tensor:
    return (box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1)
