"""How good a network is on held-out labels, while it trains: distances, distances between people, field of view.

Every labelled body is answered by the query that the training's own matching assigns to it, however sure the network is
of it, so that networks are compared over the same people; how many of these queries would be reported is told beside
(`recall`). For the community's definitions on finished predictions see `dto eval`. Metres, radians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch

from dto_pipeline.evaluate.synthetic import Placement, placement_errors
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
}  # keys of `Evaluation.metrics` with what tables call them


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
class _Batch:
    rows: _Rows
    fov_error: np.ndarray  # (n,) of images with a camera
    reported: int  # confident queries


def evaluate(
    predict: Callable[[TrainBatch], Predictions],
    batches: Iterable[TrainBatch],
    body: BodyModel,
    loss: LossConfig,
    match: MatchConfig,
) -> dict[str, float]:
    """The keys of `MEASURES`, and the counts `images`, `persons` and `pairs`; only `images` where there is none.

    Args:
        predict: the network.
        batches: held-out images with labels; images of all batches are different ones.
        body: the model of the labels.
        loss, match: of the training, for the assignment.
    """
    measured: list[_Batch] = []
    images = 0
    for batch in batches:
        predictions = predict(batch)
        targets = build_targets(batch.to(predictions.fov.device), body)
        matches = match_people(predictions, targets, body, match, loss)
        measured.append(_measure(predictions, targets, matches, body, images))
        images += len(batch.image)
    return {"images": float(images)} | (_summarise(measured) if measured else {})


def _measure(predictions: Predictions, targets: Targets, matches: Matches, body: BodyModel, first_image: int) -> _Batch:
    kept = targets.has_body[matches.image, matches.person]
    image, query, person = matches.image[kept], matches.query[kept], matches.person[kept]
    found, true = (image, query), (image, person)
    joints = body.posed_joints(predictions.rotations[-1][found], predictions.betas[found])
    error = ((joints - joints[:, :1])[:, :LOSS_JOINTS] - targets.joints[true]).norm(dim=-1).mean(-1)
    overlap = generalised_iou(predictions.boxes[found], targets.boxes[true]) > 0
    rows = _Rows(
        image=(image + first_image).cpu().numpy(),
        z=_to_numpy(predictions.transl[found][:, 2]),
        true_z=_to_numpy(targets.transl[true][:, 2]),
        height=_to_numpy(body.rest_height(predictions.betas[found])),
        true_height=_to_numpy(body.rest_height(targets.betas[true])),
        transl_error=_to_numpy((predictions.transl[found] - targets.transl[true]).norm(dim=-1)),
        joint_error=_to_numpy(error),
        found=((predictions.confidence[found] >= CONFIDENT) & overlap).cpu().numpy(),
    )
    fov_error = (predictions.fov - targets.fov)[targets.has_camera].abs()
    return _Batch(rows, _to_numpy(fov_error), int((predictions.confidence >= CONFIDENT).sum()))


def _summarise(measured: list[_Batch]) -> dict[str, float]:
    joined = [np.concatenate([getattr(part.rows, field.name) for part in measured]) for field in fields(_Rows)]
    rows = _Rows(*joined)
    errors = placement_errors(Placement(rows.z, rows.height), Placement(rows.true_z, rows.true_height), rows.image)
    reported = sum(part.reported for part in measured)
    return {
        **{name: float(errors[name]) for name in ("persons", "pairs", "pair_depth_error", "depth_error")},
        **{name: float(errors[name]) for name in ("ordinal", "height_error")},
        "near_pair_depth_error": _near_pairs(rows),
        "fov_error": _mean(np.concatenate([part.fov_error for part in measured])),
        "transl_error": _mean(rows.transl_error),
        "mpjpe": _mean(rows.joint_error),
        "recall": _mean(rows.found),
        "precision": float(rows.found.sum() / reported) if reported else float("nan"),
    }


def _near_pairs(rows: _Rows) -> float:
    """Mean |dz - true dz| over pairs of one image within `_REACH`."""
    errors = []
    for image in np.unique(rows.image):
        mine = rows.image == image
        first, second = np.triu_indices(int(mine.sum()), k=1)
        z, true_z = rows.z[mine], rows.true_z[mine]
        apart, true_apart = z[first] - z[second], true_z[first] - true_z[second]
        errors.append(np.abs(apart - true_apart)[np.abs(true_apart) <= _REACH])
    return _mean(np.concatenate(errors)) if errors else float("nan")


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    return values.detach().double().cpu().numpy()
