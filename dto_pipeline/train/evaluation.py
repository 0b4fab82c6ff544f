"""How good a network is on held-out labels, while it trains: distances, distances between people, field of view.

Every labelled body is answered by the query that the training's own matching assigns to it, however sure the network is
of it, so that networks are compared over the same people; how many of these queries would be reported is told beside
(`recall`). For the community's definitions on finished predictions see `dto eval`. Metres, radians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from dto_pipeline.evaluate.synthetic import Placement, image_pairs, placement_errors
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.config import LossConfig, MatchConfig
from dto_pipeline.train.matching import Matches, generalised_iou, match_people
from dto_pipeline.train.model import Predictions
from dto_pipeline.train.targets import LOSS_JOINTS, Targets, build_targets

CONFIDENT = 0.3  # queries from this confidence on are people
_REACH = 1.0  # `near_pair_depth_error` is over pairs whose true z differ by at most this [m]
MEASURES = {
    "pair_depth_error": "pairwise depth error [m]",
    "near_pair_depth_error": "pairwise depth error, pairs within 1 m [m]",
    "depth_error": "absolute z error [m]",
    "transl_error": "translation error [m]",
    "fov_error": "field of view error [rad]",
    "ordinal": "ordinal accuracy at 0.2 m",
    "height_error": "height error [m]",
    "mpjpe": "MPJPE [m]",
    "recall": "recall",
    "precision": "precision",
}  # keys of `summarise` with what tables call them


@dataclass(frozen=True)
class _Rows:
    """N assigned bodies of some images."""

    image: np.ndarray  # (N,) int64
    z: np.ndarray  # (N,) [m]
    true_z: np.ndarray
    height: np.ndarray  # (N,) rest pose [m]
    true_height: np.ndarray
    transl_error: np.ndarray  # (N,) distance of translations [m]
    joint_error: np.ndarray  # (N,) mean over joints, relative to the pelvis [m]
    found: np.ndarray  # (N,) bool: the query is confident and its box overlaps


@dataclass(frozen=True)
class Part:
    """What one batch tells; plain arrays, so that it may come from another process."""

    rows: _Rows
    fov_error: np.ndarray  # (n,) of images with a camera [rad]
    images: int
    reported: int  # confident queries
    skipped: int  # images that could not be read


def evaluate(
    predict: Callable[[TrainBatch], Predictions],
    batches: Iterable[TrainBatch],
    body: BodyModel,
    loss: LossConfig,
    match: MatchConfig,
) -> dict[str, float]:
    """`measure_batches` and `summarise` in one."""
    return summarise(measure_batches(predict, batches, body, loss, match))


def measure_batches(
    predict: Callable[[TrainBatch], Predictions],
    batches: Iterable[TrainBatch],
    body: BodyModel,
    loss: LossConfig,
    match: MatchConfig,
) -> list[Part]:
    """What each batch tells.

    Args:
        predict: the network.
        batches: held-out images with labels; images of all batches are different ones.
        body: the model of the labels.
        loss, match: of the training, for the assignment.
    """
    parts = []
    for batch in batches:
        predictions = predict(batch)
        targets = build_targets(batch.to(predictions.fov.device), body)
        matches = match_people(predictions, targets, body, match, loss)
        parts.append(_measure(batch, predictions, targets, matches, body))
    return parts


def summarise(parts: Sequence[Part]) -> dict[str, float]:
    """The keys of `MEASURES`, and the counts `images`, `skipped_images`, `persons` and `pairs`; without any image only
    the first two."""
    counts = {
        "images": float(sum(part.images for part in parts)),
        "skipped_images": float(sum(part.skipped for part in parts)),
    }
    return counts | (_summarise(parts) if counts["images"] else {})


def _measure(batch: TrainBatch, predictions: Predictions, targets: Targets, matches: Matches, body: BodyModel) -> Part:
    read = torch.tensor([image_id != "" for image_id in batch.image_ids])  # the others are black stand-ins
    kept = targets.has_body[matches.image, matches.person]
    image, query, person = matches.image[kept], matches.query[kept], matches.person[kept]
    found, true = (image, query), (image, person)
    joints = body.posed_joints(predictions.rotations[-1][found], predictions.betas[found])
    error = ((joints - joints[:, :1])[:, :LOSS_JOINTS] - targets.joints[true]).norm(dim=-1).mean(-1)
    overlap = generalised_iou(predictions.boxes[found], targets.boxes[true]) > 0
    rows = _Rows(
        image=image.cpu().numpy(),
        z=_to_numpy(predictions.transl[found][:, 2]),
        true_z=_to_numpy(targets.transl[true][:, 2]),
        height=_to_numpy(body.rest_height(predictions.betas[found])),
        true_height=_to_numpy(body.rest_height(targets.betas[true])),
        transl_error=_to_numpy((predictions.transl[found] - targets.transl[true]).norm(dim=-1)),
        joint_error=_to_numpy(error),
        found=((predictions.confidence[found] >= CONFIDENT) & overlap).cpu().numpy(),
    )
    fov_error = (predictions.fov - targets.fov)[targets.has_camera].abs()
    reported = (predictions.confidence >= CONFIDENT).sum(-1).cpu()[read]
    return Part(rows, _to_numpy(fov_error), int(read.sum()), int(reported.sum()), len(batch.skipped))


def _summarise(parts: Sequence[Part]) -> dict[str, float]:
    joined = {field.name: np.concatenate([getattr(part.rows, field.name) for part in parts]) for field in fields(_Rows)}
    first = np.cumsum([0, *(part.images for part in parts)])[:-1]  # images of all parts are different ones
    rows = _Rows(**joined | {"image": joined["image"] + np.repeat(first, [len(part.rows.image) for part in parts])})
    errors = placement_errors(Placement(rows.z, rows.height), Placement(rows.true_z, rows.true_height), rows.image)
    reported = sum(part.reported for part in parts)
    return {
        **{name: float(errors[name]) for name in ("persons", "pairs", "pair_depth_error", "depth_error")},
        **{name: float(errors[name]) for name in ("ordinal", "height_error")},
        "near_pair_depth_error": _near_pairs(rows),
        "fov_error": _mean(np.concatenate([part.fov_error for part in parts])),
        "transl_error": _mean(rows.transl_error),
        "mpjpe": _mean(rows.joint_error),
        "recall": _mean(rows.found),
        "precision": float(rows.found.sum() / reported) if reported else float("nan"),
    }


def _near_pairs(rows: _Rows) -> float:
    """Mean |dz - true dz| over pairs of one image within `_REACH`."""
    first, second = image_pairs(rows.image, np.ones(len(rows.image), bool))
    apart, true_apart = rows.z[first] - rows.z[second], rows.true_z[first] - rows.true_z[second]
    return _mean(np.abs(apart - true_apart)[np.abs(true_apart) <= _REACH])


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
