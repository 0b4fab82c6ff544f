"""Who of the queries is who of the people: an optimal assignment in each image, for every decoder layer by itself.

Knows predictions and targets; knows no loss. Costs are those of MA-HMR; one transfer to the CPU a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from dto_pipeline.train.config import MatchConfig
from dto_pipeline.train.model import Predictions, corners
from dto_pipeline.train.targets import Targets

MATCHED_JOINTS = 22  # of smplx's 45; all where there are fewer
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
def match_people(predictions: Predictions, targets: Targets, config: MatchConfig) -> Matches:
    """The assignment of least cost, rows = queries, columns = people of the image (Hungarian)."""
    cost = matching_cost(predictions, targets, config).nan_to_num(_WORST, _WORST, _WORST)
    layers, starts = len(predictions.confs), np.cumsum([0, *targets.counts])
    numbers = cost.double().cpu().numpy()  # (L, N, Q)
    found: list[list[tuple[np.ndarray, np.ndarray]]] = [
        [
            (rows, columns + first)
            for first, last in pairwise(starts.tolist())
            for rows, columns in [linear_sum_assignment(numbers[layer, first:last].T)]
        ]
        for layer in range(layers)
    ]
    both = np.stack([np.stack([np.concatenate(part) for part in zip(*layer, strict=True)]) for layer in found])
    query, person = torch.from_numpy(both.astype(np.int64)).to(cost.device).unbind(1)
    return Matches(query, person, targets.image[person])


def matching_cost(predictions: Predictions, targets: Targets, config: MatchConfig) -> torch.Tensor:
    """(L, N, Q): 1/4 (1 - p)^2 (-ln(p + 1e-8)) + sum |box - box'| - GIoU + K, each times its weight.

    K = sum over visible joints and both coordinates of |j2d - j2d'| / S, divided by their number.
    """
    image, side = targets.image, predictions.input_size
    p = predictions.confs[:, image]
    confidence = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    boxes, true = predictions.boxes[:, image], targets.boxes[:, None]
    assert predictions.j2ds is not None
    seen = targets.j2ds_mask[:, None, :MATCHED_JOINTS].to(p.dtype)  # (N, 1, J, 2)
    apart = (predictions.j2ds[:, image, :, :MATCHED_JOINTS] - targets.j2ds[:, None, :MATCHED_JOINTS]).abs() / side
    joints = (apart * seen).sum((-1, -2)) / (seen.sum((-1, -2)) + _EPS)
    return (
        config.confidence * confidence
        + config.boxes * (boxes - true).abs().sum(-1)
        - config.giou * generalised_iou(corners(boxes), corners(true))
        + config.image_joints * joints
    )


def generalised_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(...) of boxes (..., 4) as corners: inter / (union + 1e-6) - (hull - union) / (hull + 1e-6)."""

    def area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        return (high - low).clamp(min=0).prod(-1)

    inter = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    hull = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - inter
    return inter / (union + _EPS) - (hull - union) / (hull + _EPS)
