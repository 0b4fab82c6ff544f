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
from torch.nn import functional

from dto_pipeline.evaluate.synthetic import Placement, image_pairs, placement_errors
from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.batch import TrainBatch
from dto_pipeline.train.config import MatchConfig
from dto_pipeline.train.matching import Matches, generalised_iou, match_people
from dto_pipeline.train.model import Predictions, corners
from dto_pipeline.train.targets import Targets
from dto_pipeline.train.tokens import CONFIDENT

LOSS_JOINTS = 24  # of SMPL's tree, of which errors are told
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
    predict: Callable[[TrainBatch], Predictions], batches: Iterable[TrainBatch], body: BodyModel, match: MatchConfig
) -> dict[str, float]:
    """`measure_batches` and `summarise` in one."""
    return summarise(measure_batches(predict, batches, body, match))


def measure_batches(
    predict: Callable[[TrainBatch], Predictions], batches: Iterable[TrainBatch], body: BodyModel, match: MatchConfig
) -> list[Part]:
    """What each batch tells.

    Args:
        predict: the network, with joints.
        batches: held-out images with labels; images of all batches are different ones.
        body: the model of the labels.
        match: of the training, for the assignment.
    """
    parts = []
    for batch in batches:
        predictions = predict(batch)
        targets = batch.targets.to(predictions.confs.device)
        parts.append(_measure(batch, predictions, targets, match_people(predictions, targets, match), body))
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
    assert predictions.j3ds is not None
    kept = targets.has_body[matches.person[-1]]
    image, query, person = (part[-1][kept] for part in (matches.image, matches.query, matches.person))
    found = (-1, image, query)
    joints, true = (j[:, :LOSS_JOINTS] - j[:, :1] for j in (predictions.j3ds[found], targets.j3ds[person]))
    overlap = generalised_iou(corners(predictions.boxes[found]), corners(targets.boxes[person])) > 0
    betas = functional.pad(predictions.betas[found], (0, 11 - predictions.betas.shape[-1]))
    rows = _Rows(
        image=image.cpu().numpy(),
        z=_to_numpy(predictions.transl[found][:, 2]),
        true_z=_to_numpy(targets.transl[person][:, 2]),
        height=_to_numpy(body.rest_height(betas)),
        true_height=_to_numpy(body.rest_height(targets.betas[person])),
        transl_error=_to_numpy((predictions.transl[found] - targets.transl[person]).norm(dim=-1)),
        joint_error=_to_numpy((joints - true).norm(dim=-1).mean(-1)),
        found=((predictions.confs[found] >= CONFIDENT) & overlap).cpu().numpy(),
    )
    known = targets.image_focals > 0
    half, focal = targets.heights / 2, predictions.intrinsics[:, 0, 0]
    fov_error = 2 * (torch.atan(half / focal) - torch.atan(half / targets.image_focals.clamp(min=1e-6))).abs()[known]
    reported = (predictions.confs[-1] >= CONFIDENT).sum(-1).cpu()[read]
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
