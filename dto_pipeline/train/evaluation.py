"""How good a network is on held-out labels, while it trains: distances, distances between people, field of view.

Every labelled body is answered by the query that the training's own matching assigns to it, however sure the network is
of it, so that networks are compared over the same people; how many of these queries would be reported is told beside
(`recall`). For the community's definitions on finished predictions see `dto eval`. Metres, radians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn import functional

from dto_pipeline.models.body import BodyModel
from dto_pipeline.train.blocks import CONFIDENT
from dto_pipeline.train.dataset import TrainBatch
from dto_pipeline.train.matching import generalised_iou, match_people
from dto_pipeline.train.model import Predictions, corners
from dto_pipeline.train.targets import TREE_JOINTS

_REACH = 1.0  # `near_pair_depth_error` is over pairs whose true z differ by at most this [m]
_SAME = 0.2  # people nearer to each other than this in z are in one order of depth [m]
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
}  # keys of `evaluate` with what tables call them
_COUNTS = ("images", "skipped_images", "persons", "pairs")


def evaluate(
    predict: Callable[[TrainBatch], Predictions],
    batches: Iterable[TrainBatch],
    body: BodyModel,
    share: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums,
) -> dict[str, float]:
    """Means over all people, pairs and images.

    Args:
        predict: the network, with joints.
        batches: held-out images with labels.
        body: the model of the labels, where the predictions are.
        share: makes sums of one process those of all.

    Returns:
        The keys of `MEASURES`, and the counts `images`, `skipped_images`, `persons` and `pairs`; without any image only
        the first two.
    """
    sums = torch.zeros(len(MEASURES) + len(_COUNTS), 2, dtype=torch.float64, device=body.faces.device)
    for there in batches:
        batch = there.to(sums.device)
        found = _measure(batch, predict(batch), body)
        parts = [found[name] for name in MEASURES]
        sums[: len(parts), 0] += torch.stack([part.double().sum() for part in parts])
        sums[: len(parts), 1] += sums.new_tensor([len(part) for part in parts])
        counts = (sum(key != "" for key in batch.image_ids), len(batch.skipped))
        sums[len(parts) :, 0] += sums.new_tensor([*counts, len(found["mpjpe"]), len(found["ordinal"])])
    top, count = share(sums).T.tolist()
    reported = dict(zip(_COUNTS, top[len(MEASURES) :], strict=True))
    if not reported["images"]:
        return {name: reported[name] for name in _COUNTS[:2]}
    means = [a / b if b else float("nan") for a, b in zip(top, count, strict=True)]
    return reported | dict(zip(MEASURES, means, strict=False))


def _measure(batch: TrainBatch, predictions: Predictions, body: BodyModel) -> dict[str, torch.Tensor]:
    """The values (n,) of each measure in a batch: of people, of pairs of one image, of images with a camera."""
    targets = batch.targets
    matches = match_people(predictions, targets)
    kept = targets.has_body[matches.person[-1]]
    image, query, person = (part[-1][kept] for part in (matches.image, matches.query, matches.person))
    found = (-1, image, query)
    assert predictions.j3ds is not None
    joints, true = (j[:, :TREE_JOINTS] - j[:, :1] for j in (predictions.j3ds[found], targets.j3ds[person]))
    overlap = generalised_iou(corners(predictions.boxes[found]), corners(targets.boxes[person])) > 0
    betas = functional.pad(predictions.betas[found], (0, 11 - predictions.betas.shape[-1]))
    transl, true_transl = predictions.transl[found], targets.transl[person]
    i, j = torch.triu_indices(len(image), len(image), 1, device=image.device)
    i, j = i[image[i] == image[j]], j[image[i] == image[j]]
    apart, true_apart = (z[i] - z[j] for z in (transl[:, 2], true_transl[:, 2]))
    order, true_order = (torch.sign(d) * (d.abs() >= _SAME) for d in (apart, true_apart))
    known = targets.image_focals > 0
    fov, true_fov = (
        2 * torch.atan(targets.heights[known] / 2 / focal[known])
        for focal in (predictions.intrinsics[:, 0, 0], targets.image_focals)
    )
    right = (predictions.confs[found] >= CONFIDENT) & overlap
    read = torch.tensor([key != "" for key in batch.image_ids], device=image.device)  # others are black stand-ins
    reported = int(((predictions.confs[-1] >= CONFIDENT) & read[:, None]).sum())
    return {
        "pair_depth_error": (apart - true_apart).abs(),
        "near_pair_depth_error": (apart - true_apart).abs()[true_apart.abs() <= _REACH],
        "depth_error": (transl - true_transl)[:, 2].abs(),
        "transl_error": (transl - true_transl).norm(dim=-1),
        "fov_error": (fov - true_fov).abs(),
        "ordinal": (order == true_order).float(),
        "height_error": (body.rest_height(betas) - body.rest_height(targets.betas[person])).abs(),
        "mpjpe": (joints - true).norm(dim=-1).mean(-1),
        "recall": right.float(),
        "precision": functional.pad(torch.ones(int(right.sum())), (0, max(0, reported - int(right.sum())))),
    }
