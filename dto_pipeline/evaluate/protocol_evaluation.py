"""3DPW's and AGORA's protocols as MA-HMR's scripts have them, on people of any file.

Knows people (`data.people`), body models and the protocols; writes no file. Images of the truth without any found
person count as missed. Metres, pixels, millimetres in the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dto_pipeline.data.people import People
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.bootstrap import Statistic, Sums, mean_of, ratio
from dto_pipeline.evaluate.evaluation import Evaluation, Measure, add_up, make_column
from dto_pipeline.evaluate.image_join import join_images
from dto_pipeline.evaluate.protocols import agora_errors, match_protocol, threedpw_errors
from dto_pipeline.maths.person_matching import view_bodies
from dto_pipeline.models.body import BodyModel

_JOINTS = 24
_AT_ONCE = 128  # meshes of both sides in memory


def _f1(sums: Sums) -> np.ndarray:
    """TP / (TP + (FP + FN) / 2), rounded to two digits as published."""
    return np.round(ratio(2 * sums["matched"], sums["found"] + sums["true"]), 2)


def _over_f1(name: str) -> Statistic:
    return lambda sums: ratio(ratio(sums[name], sums["matched"]), _f1(sums))


def _detection() -> tuple[Measure, ...]:
    return (
        Measure("precision", "precision", "", mean_of("matched", "found"), 2),
        Measure("recall", "recall", "", mean_of("matched", "true"), 2),
        Measure("f1", "F1", "", _f1, 2),
    )


THREEDPW = (
    Measure("mpjpe", "MPJPE", "mm", mean_of("mpjpe", "matched")),
    Measure("pa_mpjpe", "PA-MPJPE", "mm", mean_of("pa_mpjpe", "matched")),
    Measure("mve", "MVE", "mm", mean_of("mve", "matched")),
    Measure("pa_mve", "PA-MVE", "mm", mean_of("pa_mve", "matched")),
    *_detection(),
)
AGORA = (
    Measure("mpjpe", "MPJPE", "mm", mean_of("agora_mpjpe", "matched")),
    Measure("mve", "MVE", "mm", mean_of("agora_mve", "matched")),
    Measure("nmje", "NMJE = MPJPE / F1", "mm", _over_f1("agora_mpjpe")),
    Measure("nmve", "NMVE = MVE / F1", "mm", _over_f1("agora_mve")),
    *_detection(),
)


class ProtocolError(DtoError, ValueError):
    """People that cannot be compared by a protocol; the message says why."""


@dataclass(frozen=True)
class Bodies:
    """The models of both sides, and what a protocol takes of their meshes."""

    found: BodyModel
    truth: BodyModel
    regressor: np.ndarray | None = None  # (17, V) Human3.6M's joints; 3DPW
    vertices: np.ndarray | None = None  # those of the body; AGORA; None = all


def evaluate_protocol(
    found: People, truth: People, bodies: Bodies, protocol: str, resamples: int, seed: int
) -> Evaluation:
    """The measures of ``3dpw`` or ``agora`` over the images of the truth.

    Raises:
        ProtocolError: nobody is true, a camera is unknown, or a regressor does not fit.
        ImageJoinError: no image in common.
    """
    join = join_images(list(found.images), list(truth.images))
    place = np.full(found.num_images, -1, np.int64)
    place[join.found[join.found >= 0]] = np.flatnonzero(join.found >= 0)
    true, known = truth.take(truth.usable), found.take((place[found.owner] >= 0) & found.usable)
    image = place[known.owner]
    if not true.num_people:
        raise ProtocolError(f"{truth.source} has nobody who can be used")
    seen = [_project(people, body) for people, body in ((known, bodies.found), (true, bodies.truth))]
    pairs: list[tuple[int, int]] = []
    for number in range(truth.num_images):
        own, other = np.flatnonzero(image == number), np.flatnonzero(true.owner == number)
        matched, _ = match_protocol(seen[0][own], seen[1][other])
        pairs += [(int(own[first]), int(other[second])) for first, second in matched]
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    errors = _errors(known.take(first), true.take(second), bodies, protocol)
    owner, images = true.owner[second], truth.num_images
    sums = {name: add_up(values, owner, images) for name, values in errors.items()}
    sums["matched"] = add_up(np.ones(len(owner)), owner, images)
    sums["found"] = add_up(np.ones(len(image)), image, images)
    sums["true"] = add_up(np.ones(true.num_people), true.owner, images)
    measures = THREEDPW if protocol == "3dpw" else AGORA
    counts = {
        "images evaluated": images,
        "people in the truth": true.num_people,
        "people found": known.num_people,
        "matched": len(pairs),
        "people of the truth that cannot be used (left out)": truth.num_people - true.num_people,
        "people found that cannot be used, or in no image of the truth (left out)": found.num_people - known.num_people,
    }
    return Evaluation(
        title=f"{protocol}: {found.source} against {truth.source}",
        images=list(truth.images),
        measures=measures,
        columns={"": make_column(sums, measures, resamples, seed)},
        counts=counts,
        notes=tuple(note for note in (join.note,) if note),
        settings={"protocol": protocol, "resamples": resamples, "seed": seed},
    )


def _project(people: People, body: BodyModel) -> np.ndarray:
    """(n, 24, 2) joints in the image [px]."""
    if not np.isfinite(people.intrinsics).all():
        raise ProtocolError(f"{people.source} does not say the camera of everybody; give `intrinsics`")
    seen = view_bodies(body.joints(*_tensors(people)), torch.from_numpy(people.intrinsics))
    return np.nan_to_num(seen.joints.numpy()[:, :_JOINTS])


def _errors(found: People, true: People, bodies: Bodies, protocol: str) -> dict[str, np.ndarray]:
    measure = _measure_3dpw if protocol == "3dpw" else _measure_agora
    parts = [
        measure(found.take(rows), true.take(rows), bodies)
        for start in range(0, max(1, found.num_people), _AT_ONCE)
        for rows in [np.arange(start, min(start + _AT_ONCE, found.num_people))]
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure_3dpw(found: People, true: People, bodies: Bodies) -> dict[str, np.ndarray]:
    regressor, meshes = bodies.regressor, _meshes(found, true, bodies)
    if regressor is None or regressor.shape != (17, meshes[0].shape[1]):
        told = "none" if regressor is None else f"one of shape {regressor.shape}"
        raise ProtocolError(f"3dpw needs a regressor (17, {meshes[0].shape[1]}) of Human3.6M's joints, got {told}")
    return threedpw_errors(*(np.einsum("jv,nvk->njk", regressor, mesh) for mesh in meshes), *meshes)


def _measure_agora(found: People, true: People, bodies: Bodies) -> dict[str, np.ndarray]:
    sides = ((found, bodies.found), (true, bodies.truth))
    joints = [body.joints(*_tensors(people)).numpy()[:, :_JOINTS].astype(np.float64) for people, body in sides]
    chosen = slice(None) if bodies.vertices is None else bodies.vertices
    return agora_errors(*joints, *(mesh[:, chosen] for mesh in _meshes(found, true, bodies)))


def _meshes(found: People, true: People, bodies: Bodies) -> list[np.ndarray]:
    sides = ((found, bodies.found), (true, bodies.truth))
    return [body.vertices(*_tensors(people)).numpy().astype(np.float64) for people, body in sides]


def _tensors(people: People) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    pose, betas, transl = (
        torch.from_numpy(np.ascontiguousarray(x)) for x in (people.pose, people.betas, people.transl)
    )
    return pose, betas, transl
