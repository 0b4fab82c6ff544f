"""Protocols of benchmarks on people of any file: 3DPW and AGORA, MuPoTS-3D and CMU Panoptic.

3DPW and AGORA are as MA-HMR's evaluation scripts have them: matching and errors equal the recorded numbers (`dto
golden`); `mesh_evaluation` has the field's definitions without their faults. People in images of the truth that have
nobody found count as missed. MuPoTS and Panoptic hold joints in space, here regressed from the mesh by Human3.6M's
regressor, which the user brings; only images that FOUND has are evaluated. Writes no file. Metres in, pixels,
millimetres out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dto_pipeline.data.joint_truth import JointTruth
from dto_pipeline.data.people import People
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.bodies import (
    TREE,
    aligned_error,
    in_chunks,
    joints_of,
    mean_distance,
    project_joints,
    vertices_of,
)
from dto_pipeline.evaluate.evaluation import Evaluation, Measure, Statistic, Sums, add_up, evaluate, mean_of, ratio
from dto_pipeline.evaluate.matching import MIN_IOU, box_iou, join_images, joint_boxes, take_within_budget
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
    chunks = in_chunks(len(pairs))
    parts = [_errors(known.take(first[chunk]), true.take(second[chunk]), bodies, protocol) for chunk in chunks]
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
    title = f"{protocol}: {found.source} against {truth.source}"
    columns = {"": sums}
    return evaluate(title, truth.images, measures, columns, counts, [join.note], resamples, seed, protocol=protocol)


def _project(people: People, body: BodyModel) -> np.ndarray:
    """(n, 24, 2) joints in the image [px]."""
    if not np.isfinite(people.intrinsics).all():
        raise ProtocolError(f"{people.source} does not say the camera of everybody; give `intrinsics`")
    return np.nan_to_num(project_joints(people, body, people.intrinsics)[:, :TREE])


def _errors(found: People, true: People, bodies: Bodies, protocol: str) -> dict[str, np.ndarray]:
    sides = ((found, bodies.found), (true, bodies.truth))
    meshes = [vertices_of(*side).astype(np.float64) for side in sides]
    if protocol == "agora":
        joints = [joints_of(*side)[:, :TREE].astype(np.float64) for side in sides]
        chosen = slice(None) if bodies.vertices is None else bodies.vertices
        return agora_errors(*joints, *(mesh[:, chosen] for mesh in meshes))
    regressor = bodies.regressor
    if regressor is None or regressor.shape != (17, meshes[0].shape[1]):
        told = "none" if regressor is None else f"one of shape {regressor.shape}"
        raise ProtocolError(f"3dpw needs a regressor (17, {meshes[0].shape[1]}) of Human3.6M's joints, got {told}")
    return threedpw_errors(*(np.einsum("jv,nvk->njk", regressor, mesh) for mesh in meshes), *meshes)


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
    overlaps = box_iou(joint_boxes(found)[:, None], joint_boxes(truth)[None], border=1.0) >= MIN_IOU
    pairs = take_within_budget(distance, overlaps, spent=True).tolist()
    return sorted(((first, second) for first, second in pairs), key=lambda pair: pair[1]), len(found) - len(pairs)


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
        "pa_mpjpe": _MM * aligned_error(own, other),
        "mve": _MM * mean_distance(*meshes),
        "pa_mve": _MM * aligned_error(*meshes),
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


# Human3.6M's 17: pelvis, right hip, knee, ankle, left ones, spine, neck, nose, head top, left shoulder, elbow, wrist,
# right ones. MuPoTS': head top, neck, right arm, left arm, right leg, left leg, pelvis, spine, head
OF_MUPOTS = (10, 8, 14, 15, 16, 11, 12, 13, 1, 2, 3, 4, 5, 6, 0, 7, 9)
# Panoptic's first 15: neck, head top, middle of the hips, left arm, left leg, right arm, right leg
OF_PANOPTIC = (8, 10, 0, 11, 12, 13, 4, 5, 6, 14, 15, 16, 1, 2, 3)
MUPOTS_PELVIS, PANOPTIC_PELVIS = 14, 2
# (joint, parent) of MuPoTS from the pelvis outwards
MUPOTS_BONES = (
    *((15, 14), (1, 15), (16, 1), (0, 16), (2, 1), (3, 2), (4, 3), (5, 1), (6, 5), (7, 6)),
    *((8, 14), (9, 8), (10, 9), (11, 14), (12, 11), (13, 12)),
)
MUPOTS_COUNTED = slice(0, 14)  # without pelvis, spine and head
MATCH_PIXELS, PCK_DISTANCE = 40.0, 0.15  # [px] in x and in y, [m]
AUC_STEPS = np.arange(0, 0.1501, 0.005)  # [m]
PELVIS_SHIFT = 0.06  # of Panoptic's middle of the hips in y towards the pelvis of the regressor [m]

MUPOTS = (
    Measure("pck", "3DPCK at 150 mm, all people", "%", mean_of("right", "counted", 100)),
    Measure("pck_matched", "3DPCK at 150 mm, matched people", "%", mean_of("right", "counted_matched", 100)),
    Measure("auc", "AUC 0 .. 150 mm, all people", "%", mean_of("area", "counted", 100)),
    Measure("recall", "recall", "%", mean_of("matched", "true", 100)),
)
PANOPTIC = (
    Measure("mpjpe", "MPJPE", "mm", mean_of("error", "matched", _MM)),
    Measure("mrpe", "MRPE of the nearest", "mm", mean_of("root", "matched", _MM)),
    Measure("recall", "recall", "%", mean_of("matched", "true", 100)),
)


def evaluate_joints(
    found: People, truth: JointTruth, body: BodyModel, regressor: np.ndarray, protocol: str, resamples: int, seed: int
) -> Evaluation:
    """The measures of ``mupots`` or ``panoptic``: of all images, and of each sequence.

    Args:
        found: predicted people.
        truth: of the protocol.
        body: of the predicted people.
        regressor: (17, V) Human3.6M's joints.

    Raises:
        ProtocolError: a regressor that does not fit, or a camera that is not known.
        ImageJoinError: no image in common.
    """
    if regressor.shape != (17, body.num_vertices):
        needed = f"(17, {body.num_vertices})"
        raise ProtocolError(f"{protocol} needs a regressor {needed} of Human3.6M's joints, got {regressor.shape}")
    join = join_images(list(found.images), list(truth.images))
    known = found.take((join.true[found.owner] >= 0) & found.usable)
    owner = join.true[known.owner]
    order = list(OF_MUPOTS if protocol == "mupots" else OF_PANOPTIC)
    meshes = (vertices_of(known.take(chunk), body).astype(np.float64) for chunk in in_chunks(known.num_people))
    joints = np.concatenate([np.einsum("jv,nvk->njk", regressor, mesh) for mesh in meshes])[:, order]
    if protocol == "mupots" and not np.isfinite(known.intrinsics).all():
        raise ProtocolError(f"{found.source} does not say the camera of everybody; give `intrinsics`")
    measures, count = (MUPOTS, count_mupots) if protocol == "mupots" else (PANOPTIC, count_panoptic)
    seen = np.flatnonzero(join.found >= 0)
    sums = _per_image(count, joints, known.intrinsics, owner, truth, seen)
    columns = {"all": sums}
    for name in dict.fromkeys(truth.sequence[seen]):
        own = truth.sequence[seen] == name
        columns[str(name)] = {key: np.where(own, part, 0) for key, part in sums.items()}
    means = []
    for one in measures:
        pooled = ({key: part.sum() for key, part in of.items()} for name, of in columns.items() if name != "all")
        means.append(f"{one.title} {np.nanmean([float(one.of(of)) for of in pooled]):.1f} {one.unit}")
    counts = {
        "images evaluated": len(seen),
        "images of the truth that are not in FOUND (left out)": len(truth.images) - len(seen),
        "people in the truth": int(sums["true"].sum()),
        "matched": int(sums["matched"].sum()),
        "people found": known.num_people,
        "people found that cannot be used, or in no image of the truth (left out)": found.num_people - known.num_people,
        "people that the truth does not count": truth.unusable,
    }
    title, notes = (
        f"{protocol}: {found.source} against {truth.source}",
        ("mean of the sequences: " + ", ".join(means), join.note),
    )
    images = [truth.images[number] for number in seen]
    return evaluate(title, images, measures, columns, counts, notes, resamples, seed, protocol=protocol)


def count_mupots(
    joints: np.ndarray, places: np.ndarray, truth: np.ndarray, true_places: np.ndarray
) -> dict[str, float]:
    """What one image adds.

    Who is who by joints (without the head top) within 40 px in x and y, most first, each prediction once. Bones of a
    prediction get the true lengths, from the pelvis outwards; errors are relative to the pelvis.

    Args:
        joints, places: (n, 17, 3) [m] and (n, 17, 2) [px]; truth, true_places: of m people.
    """
    near = (np.abs(places[:, None] - true_places[None]) < MATCH_PIXELS).all(-1)[..., 1:14].sum(-1)  # (n, m)
    number = truth[:, MUPOTS_COUNTED].shape[1]
    sums = {"true": float(len(truth)), "counted": float(number * len(truth))}
    sums |= dict.fromkeys(("matched", "right", "area", "counted_matched"), 0.0)
    while near.size and near.max() > 0:
        own, other = np.unravel_index(int(near.argmax()), near.shape)
        near[own], near[:, other] = 0, 0
        error = np.linalg.norm(_with_bones_of(joints[own], truth[other]) - truth[other], axis=-1)[MUPOTS_COUNTED]
        sums["matched"] += 1
        sums["counted_matched"] += number
        sums["right"] += float((error < PCK_DISTANCE).sum())
        sums["area"] += float((error[:, None] < AUC_STEPS).mean(1).sum())
    return sums


def _with_bones_of(joints: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(17, 3) with the directions of `joints` and the bone lengths and pelvis of `truth`."""
    made = np.empty_like(joints)
    made[MUPOTS_PELVIS] = truth[MUPOTS_PELVIS]
    for joint, parent in MUPOTS_BONES:
        bone = joints[joint] - joints[parent]
        length = np.linalg.norm(truth[joint] - truth[parent])
        made[joint] = made[parent] + bone / max(float(np.linalg.norm(bone)), 1e-9) * length
    return made


def count_panoptic(
    joints: np.ndarray, places: np.ndarray, truth: np.ndarray, true_places: np.ndarray
) -> dict[str, float]:
    """What one image adds: for each true person the prediction nearest after the pelvis is brought to the origin.

    A prediction may serve twice. The true pelvis, the middle of the hips, is moved by 6 cm in y first.
    """
    sums = {"true": float(len(truth)), "matched": 0.0, "error": 0.0, "root": 0.0}
    shifted = truth.copy()
    shifted[:, PANOPTIC_PELVIS, 1] += PELVIS_SHIFT
    for person in shifted:
        root = person[PANOPTIC_PELVIS]
        if not len(joints) or not np.isfinite(root).all():
            continue
        apart = np.linalg.norm((joints - joints[:, [PANOPTIC_PELVIS]]) - (person - root), axis=-1)
        errors = np.nanmean(apart, axis=1)
        sums["matched"] += 1
        sums["error"] += float(errors.min())
        sums["root"] += float(np.linalg.norm(joints[errors.argmin(), PANOPTIC_PELVIS] - root))
    return sums


def _per_image(
    count: Callable[..., dict[str, float]],
    joints: np.ndarray,
    intrinsics: np.ndarray,
    owner: np.ndarray,
    truth: JointTruth,
    images: np.ndarray,
) -> dict[str, np.ndarray]:
    """Sums (images,) by name."""
    seen = joints @ intrinsics.transpose(0, 2, 1)
    places = seen[..., :2] / np.where(seen[..., 2:] > 0, seen[..., 2:], np.nan)
    parts = []
    for image in images:
        own, other = owner == image, truth.owner == image
        parts.append(count(joints[own], places[own], truth.joints[other], truth.places[other]))
    return {name: np.array([part[name] for part in parts], np.float64) for name in parts[0]}
