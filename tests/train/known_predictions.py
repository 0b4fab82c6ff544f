"""Predictions made by hand of what the labels say."""

from __future__ import annotations

import torch

from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.blocks import pad_rows
from dto_pipeline.train.dataset import TrainBatch
from dto_pipeline.train.model import Predictions, with_joints


def perfect_predictions(batch: TrainBatch, body: BodyModel, queries: int, layers: int = 1) -> Predictions:
    """What a network would say that knows the labels: query p is person p, further queries are nobody."""
    targets, count = batch.targets, len(batch.images)

    def of_queries(values: torch.Tensor, fill: float) -> torch.Tensor:
        rows, real = pad_rows(values, targets.image, count, queries)
        rows = torch.where(real.reshape(*real.shape, *[1] * (rows.ndim - 2)), rows, fill)
        return rows.expand(layers, *rows.shape)

    transl = of_queries(targets.transl, 3.0)
    focal = targets.intrinsics[:, 0, 0]
    return with_joints(
        Predictions(
            confs=of_queries(torch.ones(len(targets.image)), 0.0),
            boxes=of_queries(targets.boxes, 0.5),
            poses=of_queries(targets.poses, 0.1),
            betas=of_queries(targets.betas, 0.0),
            transl=transl,
            depths=torch.stack([transl[..., 2], transl[..., 2] / focal[:, None]], dim=-1),
            intrinsics=targets.intrinsics,
            scale_map=targets.scale_map.clone(),
            cells=None,
            input_size=max(max(image.shape[1:]) for image in batch.images),
        ),
        body,
    )
