"""Predictions and batches made by hand, small enough to compute losses of on paper."""

from __future__ import annotations

import math

import numpy as np
import torch

from dto_pipeline.maths.rotation import axis_angle_to_matrix
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.targets import build_targets
from tests.train.small_crowds import label_batch

SIDE, FOCAL = 100, 120.0


def standing_batch(places: list[list[tuple[float, float]]]) -> TrainBatch:
    """People in rest pose at places (x, z) [m] of each image, seen by a camera of 120 px in 100 x 100 px."""
    camera = np.array([[FOCAL, 0, SIDE / 2], [0, FOCAL, SIDE / 2], [0, 0, 1.0]])
    people = []
    for image in places:
        pose = np.zeros((len(image), 72), np.float32)
        pose[:, 0] = math.pi
        transl = np.array([[x, 0.0, z] for x, z in image], np.float32).reshape(-1, 3)
        people.append((pose, np.zeros((len(image), 11), np.float32), transl))
    images = torch.zeros(len(places), SIDE, SIDE, 3, dtype=torch.uint8)
    return label_batch(images, np.stack([camera] * len(places)), people)


def perfect_predictions(batch: TrainBatch, body: BodyModel, queries: int = 0) -> Predictions:
    """What a network would say that knows the labels: query p is person p, further queries are nobody."""
    targets = build_targets(batch, body)
    spare = max(0, queries - batch.present.shape[1])

    def widened(values: torch.Tensor, fill: float) -> torch.Tensor:
        extra = values.new_full((values.shape[0], spare, *values.shape[2:]), fill)
        return torch.cat([values, extra], dim=1)[None].clone().requires_grad_()

    boxes = targets.boxes / targets.side
    centred = torch.cat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], dim=-1)
    rotations = axis_angle_to_matrix(widened(targets.pose, 0.1).detach().unflatten(-1, (24, 3))).requires_grad_()
    return Predictions(
        logits=widened(torch.where(targets.known, 20.0, -20.0), -20.0),
        centred_boxes=widened(centred, 0.5),
        rotations=rotations,
        all_betas=widened(targets.betas, 0.0),
        all_transl=widened(targets.transl, 3.0),
        fov=targets.fov.clone().requires_grad_(),
        focal=batch.intrinsics[:, 0, 0],
        intrinsics=batch.intrinsics,
        side=SIDE,
    )
