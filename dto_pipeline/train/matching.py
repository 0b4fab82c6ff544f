"""Who of the queries is who of the people: an optimal assignment in each image, for every decoder layer by itself.

Knows predictions and targets; knows no loss. Costs are those of MA-HMR; one transfer to the CPU a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from dto_pipeline.maths.devices import constant
from dto_pipeline.train.model import Predictions, corners
from dto_pipeline.train.targets import Targets

COST_CONFIDENCE, COST_BOXES, COST_GIOU, COST_JOINTS = 1.0, 1.0, 1.0, 20.0
BODY_JOINTS, SMPL_JOINTS = 22, 45  # matched are the first of smplx's joints, and those only annotated people have
_EPS = 1e-6
_WORST = 1e9  # cost of what is not finite: taken only where nothing else is left


@dataclass(frozen=True)
class Matches:
    """M pairs in each of L layers; every person is matched unless an image has more people than queries."""

    query: torch.Tensor  # (L, M) int64
    person: torch.Tensor  # (L, M) int64, of the batch's people
    image: torch.Tensor  # (L, M) int64

    @property
    def index(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of (L, B, Q, ...) predictions: the matched ones, (L, M, ...)."""
        layer = torch.arange(len(self.query), device=self.query.device)[:, None]
        return layer, self.image, self.query


@torch.no_grad()
def match_people(predictions: Predictions, targets: Targets) -> Matches:
    """The assignment of least cost, rows = queries, columns = people of the image (Hungarian)."""
    cost = matching_cost(predictions, targets).nan_to_num(_WORST, _WORST, _WORST)
    numbers, bounds = cost.double().cpu().numpy(), np.cumsum([0, *targets.counts])  # (L, N, Q)
    parts = []
    for first, last in pairwise(bounds):
        pairs = np.stack([linear_sum_assignment(layer[first:last].T) for layer in numbers])  # (L, 2, m)
        pairs[:, 1] += first
        parts.append(pairs)
    pairs = np.concatenate(parts, axis=-1)
    query, person = torch.from_numpy(pairs.astype(np.int64)).to(cost.device, non_blocking=True).unbind(1)
    return Matches(query, person, targets.image[person])


def matching_cost(predictions: Predictions, targets: Targets) -> torch.Tensor:
    """(L, N, Q): 1/4 (1 - p)^2 (-ln(p + 1e-8)) + sum |box - box'| - GIoU + K, each times its weight.

    K = sum over visible joints and both coordinates of |j2d - j2d'| / S, divided by their number.
    """
    image, side = targets.image, predictions.input_size
    p = predictions.confs[:, image]
    confidence = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    boxes, true = predictions.boxes[:, image], targets.boxes[:, None]
    assert predictions.j2ds is not None
    counted = [number for number in range(targets.j2ds.shape[1]) if not BODY_JOINTS <= number < SMPL_JOINTS]
    used = constant(tuple(counted), image.device, torch.int64)
    seen = targets.j2ds_mask[:, None, used].to(p.dtype)  # (N, 1, J, 2)
    apart = (predictions.j2ds[:, image][:, :, :, used] - targets.j2ds[:, None, used]).abs() / side
    joints = (apart * seen).sum((-1, -2)) / (seen.sum((-1, -2)) + _EPS)
    overlap = generalised_iou(corners(boxes), corners(true))
    apart = COST_BOXES * (boxes - true).abs().sum(-1) - COST_GIOU * overlap
    return COST_CONFIDENCE * confidence + apart + COST_JOINTS * joints


def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(...) of boxes (..., 4) as corners: inter / (union + 1e-6) - (hull - union) / (hull + 1e-6)."""

    def area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return (high - low).clamp(min=0).prod(-1)

    inter = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    hull = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - inter
    return inter / (union + _EPS) - (hull - union) / (hull + _EPS)
