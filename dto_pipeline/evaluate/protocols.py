"""3DPW's and AGORA's protocols as MA-HMR's evaluation scripts have them, on people of any file.

Matching and errors equal the recorded numbers (`dto golden`); `mesh_evaluation` has the field's definitions without
their faults. Writes no file. Images of the truth without any found person count as missed. Metres in, pixels,
millimetres out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dto_pipeline.data.people import People
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.bodies import TREE, in_chunks, joints_of, project_joints, vertices_of
from dto_pipeline.evaluate.evaluation import Evaluation, Measure, Statistic, Sums, add_up, make_column, mean_of, ratio
from dto_pipeline.evaluate.matching import MIN_IOU, box_iou, join_images, joint_boxes
from dto_pipeline.evaluate.mesh_metrics import aligned_error, mean_distance
from dto_pipeline.models.body import BodyModel

H36M_JOINTS = (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16)  # the 14 of Human3.6M's 17 that are compared
H36M_ROOT, AGORA_ROOTS = 0, (1, 2)  # joint whose place, or joints whose middle, is brought to the origin
_MM = 1000.0


def _f1(sums: Sums) -> np.ndarray:
    """TP / (TP + (FP + FN) / 2), rounded to two digits as published."""
    return np.round(ratio(2 * sums["matched"], sums["found"] + sums["true"]), 2)


def _over_f1(name: str) -> Statistic:
    return lambda sums: ratio(ratio(sums[name], sums["matched"]), _f1(sums))


_DETECTION = (
    Measure("precision", "precision", "", mean_of("matched", "found"), 2),
    Measure("recall", "recall", "", mean_of("matched", "true"), 2),
    Measure("f1", "F1", "", _f1, 2),
)
THREEDPW = (
    Measure("mpjpe", "MPJPE", "mm", mean_of("mpjpe", "matched")),
    Measure("pa_mpjpe", "PA-MPJPE", "mm", mean_of("pa_mpjpe", "matched")),
    Measure("mve", "MVE", "mm", mean_of("mve", "matched")),
    Measure("pa_mve", "PA-MVE", "mm", mean_of("pa_mve", "matched")),
    *_DETECTION,
)
AGORA = (
    Measure("mpjpe", "MPJPE", "mm", mean_of("agora_mpjpe", "matched")),
    Measure("mve", "MVE", "mm", mean_of("agora_mve", "matched")),
    Measure("nmje", "NMJE = MPJPE / F1", "mm", _over_f1("agora_mpjpe")),
    Measure("nmve", "NMVE = MVE / F1", "mm", _over_f1("agora_mve")),
    *_DETECTION,
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
    true, known = truth.take(truth.usable), found.take((join.true[found.owner] >= 0) & found.usable)
    image = join.true[known.owner]
    if not true.num_people:
        raise ProtocolError(f"{truth.source} has nobody who can be used")
    seen = [_project(people, body) for people, body in ((known, bodies.found), (true, bodies.truth))]
    pairs: list[tuple[int, int]] = []
    for number in range(truth.num_images):
        own, other = np.flatnonzero(image == number), np.flatnonzero(true.owner == number)
        matched, _ = match_protocol(seen[0][own], seen[1][other])
        pairs += [(int(own[first]), int(other[second])) for first, second in matched]
    first, second = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    measure = _measure_3dpw if protocol == "3dpw" else _measure_agora
    chunks = in_chunks(len(pairs))
    parts = [measure(known.take(first[chunk]), true.take(second[chunk]), bodies) for chunk in chunks]
    errors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
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
    return np.nan_to_num(project_joints(people, body, people.intrinsics)[:, :TREE])


def _measure_3dpw(found: People, true: People, bodies: Bodies) -> dict[str, np.ndarray]:
    regressor, meshes = bodies.regressor, _meshes(found, true, bodies)
    if regressor is None or regressor.shape != (17, meshes[0].shape[1]):
        told = "none" if regressor is None else f"one of shape {regressor.shape}"
        raise ProtocolError(f"3dpw needs a regressor (17, {meshes[0].shape[1]}) of Human3.6M's joints, got {told}")
    return threedpw_errors(*(np.einsum("jv,nvk->njk", regressor, mesh) for mesh in meshes), *meshes)


def _measure_agora(found: People, true: People, bodies: Bodies) -> dict[str, np.ndarray]:
    sides = ((found, bodies.found), (true, bodies.truth))
    joints = [joints_of(people, body)[:, :TREE].astype(np.float64) for people, body in sides]
    chosen = slice(None) if bodies.vertices is None else bodies.vertices
    return agora_errors(*joints, *(mesh[:, chosen] for mesh in _meshes(found, true, bodies)))


def _meshes(found: People, true: People, bodies: Bodies) -> list[np.ndarray]:
    sides = ((found, bodies.found), (true, bodies.truth))
    return [vertices_of(people, body).astype(np.float64) for people, body in sides]


def match_protocol(found: np.ndarray, truth: np.ndarray) -> tuple[list[tuple[int, int]], int]:
    """Who is who in one image.

    Pairs come by ascending spectral norm of the difference of their joints. One whose boxes overlap less than 0.1 is
    dropped and uses up a prediction, whether or not a side is taken already.

    Args:
        found: (n, 24, 2) joints [px]; truth: (m, 24, 2).

    Returns:
        (found, true) pairs in the order of the true people, and how many found people are false.
    """
    if not len(found) or not len(truth):
        return [], len(found)
    distance = np.linalg.norm(found[:, None] - truth[None], ord=2, axis=(2, 3))
    overlap = box_iou(joint_boxes(found)[:, None], joint_boxes(truth)[None], border=1.0)
    pairs: dict[int, int] = {}
    taken, dropped = set[int](), 0
    for place in np.argsort(distance, axis=None, kind="stable"):
        if len(pairs) == len(truth) or len(pairs) + dropped >= len(found):
            break
        first, second = divmod(int(place), len(truth))
        if overlap[first, second] < MIN_IOU:
            dropped += 1
        elif first not in taken and second not in pairs:
            pairs[second] = first
            taken.add(first)
    return [(pairs[second], second) for second in sorted(pairs)], len(found) - len(pairs)


def threedpw_errors(
    found: np.ndarray, truth: np.ndarray, found_vertices: np.ndarray, true_vertices: np.ndarray
) -> dict[str, np.ndarray]:
    """3DPW, Hi4D: 14 joints regressed from the mesh, root = the first of the 17.

    Args:
        found, truth: (n, 17, 3) [m]; found_vertices, true_vertices: (n, V, 3) [m].

    Returns:
        (n,) each: ``mpjpe``, ``pa_mpjpe``, ``mve``, ``pa_mve`` [mm].
    """
    points = [joints - joints[:, [H36M_ROOT]] for joints in (found, truth)]
    meshes = [mesh - joints[:, [H36M_ROOT]] for mesh, joints in ((found_vertices, found), (true_vertices, truth))]
    own, other = (joints[:, list(H36M_JOINTS)] for joints in points)
    return {
        "mpjpe": _MM * mean_distance(own, other),
        "pa_mpjpe": _MM * aligned_error(own, other)[0],
        "mve": _MM * mean_distance(*meshes),
        "pa_mve": _MM * aligned_error(*meshes)[0],
    }


def agora_errors(
    found: np.ndarray, truth: np.ndarray, found_vertices: np.ndarray, true_vertices: np.ndarray
) -> dict[str, np.ndarray]:
    """AGORA, BEDLAM: SMPL's 24 joints, root = the middle of the hips; vertices are those of the body.

    Args:
        found, truth: (n, 24, 3) [m]; found_vertices, true_vertices: (n, V, 3) [m].

    Returns:
        (n,) each: ``agora_mpjpe``, ``agora_mve`` [mm].
    """
    roots = [joints[:, list(AGORA_ROOTS)].mean(1, keepdims=True) for joints in (found, truth)]
    return {
        "agora_mpjpe": _MM * mean_distance(found - roots[0], truth - roots[1]),
        "agora_mve": _MM * mean_distance(found_vertices - roots[0], true_vertices - roots[1]),
    }
