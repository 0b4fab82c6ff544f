"""Bodies of any file against RelativeHuman's annotations, with intervals: the metric itself is `relative_human`.

Knows people (`data.people`), how bodies become the 14 evaluated joints, and which sums make up the metric; writes no
file. A predicted person that cannot be used (not finite, behind the camera) counts as predicted and matches nobody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from dto_pipeline.axes import NUM_BETAS
from dto_pipeline.data.people import People
from dto_pipeline.data.sources.relative_human import EVALUATED_JOINTS, Annotation
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.evaluation import RESAMPLES, Evaluation, make_column
from dto_pipeline.evaluate.matching import join_images
from dto_pipeline.evaluate.relative_human import (
    MEASURES,
    MODES,
    RELATIONS,
    EvaluatedImage,
    MetricStatus,
    evaluate_relative_human,
)
from dto_pipeline.maths.camera import project
from dto_pipeline.models.body import BodyModel

EXTRA_HEAD_TOP, EXTRA_NECK = 3, 2  # rows of J_regressor_extra
Z_GUARD = 1e-6  # added to z before dividing, as recorded [m]


class RelativeHumanError(DtoError, ValueError):
    """Predictions that cannot be held against the annotations; the message says why and what to do."""


def project_bodies(bodies: dict[str, np.ndarray], body: BodyModel, regressor: np.ndarray) -> np.ndarray:
    """The 14 evaluated joints of bodies in their images.

    Args:
        bodies: `pose` (Q, 72), `betas` (Q, 10 or 11), `trans` (Q, 3) [m], `K` (Q, 3, 3) [px].
        regressor: (9, V) J_regressor_extra.

    Returns:
        (Q, 14, 2) float32 [px].
    """
    pose, transl, intrinsics = (torch.as_tensor(bodies[key]) for key in ("pose", "trans", "K"))
    betas = torch.as_tensor(bodies["betas"])
    betas = torch.nn.functional.pad(betas, (0, NUM_BETAS - betas.shape[-1]))
    if not len(pose):
        return np.zeros((0, len(EVALUATED_JOINTS), 2), dtype=np.float32)
    rows = torch.as_tensor(regressor[[EXTRA_HEAD_TOP, EXTRA_NECK]], dtype=pose.dtype)
    points = body.learnt_joints(pose, betas, transl, rows)
    points[..., 2] += Z_GUARD
    return project(points, intrinsics[:, None]).numpy().astype(np.float32)


def evaluate_rh(
    people: People,
    annotations: Mapping[str, Sequence[Annotation]],
    body: BodyModel,
    regressor: np.ndarray,
    mode: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """RelativeHuman's metric of predicted bodies, in one of `relative_human.MODES`.

    Args:
        people: predictions; images that are not annotated are counted and left out.
        annotations: image -> people, as `data.sources.relative_human` reads them.
        body: model of the predictions; regressor: (9, V) J_regressor_extra of that model.

    Raises:
        RelativeHumanError: an unknown mode, or predictions without a camera.
        ImageJoinError: no image in common.
    """
    if mode not in MODES:
        raise RelativeHumanError(f"mode is {mode!r}; choose from {MODES}")
    join = join_images(list(people.images), list(annotations))
    images = _evaluated_images(people, annotations, join.found, _keypoints(people, body, regressor))
    result = evaluate_relative_human(images, mode)
    sums = {name: np.array([tally.sums[name] for tally in result.images]) for name in result.images[0].sums}
    left_out = int(np.isin(people.owner, np.setdiff1d(np.arange(people.num_images), join.found)).sum())
    counts = {
        "images annotated": len(annotations),
        "images without a prediction": int((join.found < 0).sum()),
        "images predicted that are not annotated (left out)": len(join.strangers),
        "people annotated": sum(len(listed) for listed in annotations.values()),
        "people annotated without keypoints (cannot be found)": sum(
            person.kp2d is None for listed in annotations.values() for person in listed
        ),
        "people predicted": result.count("predictions"),
        "matched": result.count("matched"),
        "missed": result.count("missed_all"),
        "extra": result.count("extra"),
        "people predicted in images that are not annotated (left out)": left_out,
        "people predicted that cannot be used": int((~people.usable).sum()),
        **{f"pairs: {name}": result.count(name) for name in RELATIONS},
    }
    status = "" if result.status is MetricStatus.OK else f"status of the metric: {result.status}"
    return Evaluation(
        title=f"{people.source}, RelativeHuman in mode {mode}",
        images=list(annotations),
        measures=MEASURES,
        columns={mode: make_column(sums, MEASURES, resamples, seed)},
        counts=counts,
        notes=tuple(note for note in (status, join.note, *people.problems[:5]) if note),
        settings={"mode": mode, "resamples": resamples, "seed": seed, "body_sha256": body.sha256},
    )


def _keypoints(people: People, body: BodyModel, regressor: np.ndarray) -> np.ndarray:
    """(n, 14, 2) float32 [px]; NaN for people that cannot be used."""
    usable = people.usable
    if not np.isfinite(people.intrinsics[usable]).all():
        raise RelativeHumanError(
            f"{people.source} does not tell the whole camera of its people, so they cannot be projected; give "
            "`intrinsics` (RelativeHuman's annotations hold no image size)"
        )
    points = np.full((people.num_people, len(EVALUATED_JOINTS), 2), np.nan, np.float32)
    kept = people.take(usable)
    bodies = {"pose": kept.pose, "betas": kept.betas, "trans": kept.transl, "K": kept.intrinsics.astype(np.float32)}
    points[usable] = project_bodies(bodies, body, regressor)
    return points


def _evaluated_images(
    people: People, annotations: Mapping[str, Sequence[Annotation]], found: np.ndarray, keypoints: np.ndarray
) -> list[EvaluatedImage]:
    order = np.argsort(people.owner, kind="stable")
    ends = np.searchsorted(people.owner[order], np.arange(people.num_images + 1))
    images = []
    for (name, listed), place in zip(annotations.items(), found.tolist(), strict=True):
        own = order[ends[place] : ends[place + 1]] if place >= 0 else order[:0]
        depth = people.transl[own, 2]
        images.append(EvaluatedImage(name, tuple(listed), keypoints[own], depth, predicted=place >= 0))
    return images
