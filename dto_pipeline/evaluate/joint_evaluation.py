"""Measure predicted people against joints in space: MuPoTS-3D and CMU Panoptic.

The joints of predictions are regressed from their meshes by Human3.6M's regressor, which the user brings. Images
without predictions are left out. Metres in, pixels, millimetres out.
"""

from __future__ import annotations

import numpy as np

from dto_pipeline.data.joint_truth import JointTruth
from dto_pipeline.data.people import People
from dto_pipeline.evaluate.bodies import in_chunks, vertices_of
from dto_pipeline.evaluate.evaluation import Evaluation, EvaluationError, Measure, mean_of
from dto_pipeline.evaluate.matching import by_image, join_images
from dto_pipeline.models.body import BodyModel

_MM = 1000.0

# Human3.6M's 17: pelvis, right hip, knee, ankle, left ones, spine, neck, nose, head top, left shoulder, elbow, wrist,
# right ones. MuPoTS': head top, neck, right arm, left arm, right leg, left leg, pelvis, spine, head
OF_MUPOTS = [10, 8, 14, 15, 16, 11, 12, 13, 1, 2, 3, 4, 5, 6, 0, 7, 9]
# Panoptic's first 15: neck, head top, middle of the hips, left arm, left leg, right arm, right leg
OF_PANOPTIC = [8, 10, 0, 11, 12, 13, 4, 5, 6, 14, 15, 16, 1, 2, 3]
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
    found: People, truth: JointTruth, body: BodyModel, regressor: np.ndarray, protocol: str
) -> Evaluation:
    """The measures of ``mupots`` or ``panoptic``: of all images, and of each sequence.

    Args:
        found: predicted people, with bodies of the model `body`.
        regressor: (17, V) Human3.6M's joints of it.

    Raises:
        EvaluationError: a camera that is not known. ImageJoinError: no image in common.
    """
    join = join_images(found.images, truth.images)
    known = found.take((join.true[found.owner] >= 0) & found.usable)
    order, measures, count = PROTOCOLS[protocol]
    if protocol == "mupots" and not np.isfinite(known.intrinsics).all():
        raise EvaluationError(f"{found.source} lacks the camera of some people; add `intrinsics`")
    meshes = (vertices_of(known.take(chunk), body).astype(np.float64) for chunk in in_chunks(known.num_people))
    joints = np.concatenate([np.einsum("jv,nvk->njk", regressor[order], mesh) for mesh in meshes])
    places = joints @ known.intrinsics.transpose(0, 2, 1)
    places = places[..., :2] / np.where(places[..., 2:] > 0, places[..., 2:], np.nan)
    people, true_people = (by_image(of, len(truth.images)) for of in (join.true[known.owner], truth.owner))
    seen = np.flatnonzero(join.found >= 0)
    parts = [
        count(joints[own], places[own], truth.joints[other], truth.places[other])
        for own, other in ((people[image], true_people[image]) for image in seen)
    ]
    sums = {name: np.array([part[name] for part in parts], np.float64) for name in parts[0]}
    of_sequence = {str(name): truth.sequence[seen] == name for name in dict.fromkeys(truth.sequence[seen])}
    columns = {name: {key: np.where(own, part, 0) for key, part in sums.items()} for name, own in of_sequence.items()}
    means = []
    for one in measures:
        values = [float(one.of({key: part.sum() for key, part in own.items()})) for own in columns.values()]
        sound = np.array(values)[np.isfinite(values)]
        means.append(f"{one.title} {sound.mean():.1f} {one.unit}" if sound.size else f"{one.title} -")
    counts = {
        "images evaluated": len(seen),
        "images of the truth that are not in FOUND (left out)": len(truth.images) - len(seen),
        "people in the truth": int(sums["true"].sum()),
        "matched": int(sums["matched"].sum()),
        "people found": known.num_people,
        "people found that cannot be used, or in no image of the truth (left out)": found.num_people - known.num_people,
        "people that the truth does not count": truth.unusable,
    }
    title = f"{protocol}: {found.source} against {truth.source}"
    notes = ("mean of the sequences: " + ", ".join(means), join.note, *found.problems[:5])
    settings = {"protocol": protocol}
    images = [truth.images[number] for number in seen]
    return Evaluation(title, images, measures, {"all": sums} | columns, counts, notes, settings)


def count_mupots(
    joints: np.ndarray, places: np.ndarray, truth: np.ndarray, true_places: np.ndarray
) -> dict[str, float]:
    """What one image adds.

    A prediction and a person are matched by the number of joints, of those from neck to left ankle, that are within 40
    px in x and in y; the largest number first, each prediction once. Bones of a prediction get the true lengths, from
    the pelvis outwards; errors are relative to the pelvis.

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
    """What one image adds: each true person is compared with the nearest prediction after both pelves are aligned.

    A prediction may be used twice. Before that the true pelvis, the middle of the hips, is moved by 6 cm in y.
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


PROTOCOLS = {"mupots": (OF_MUPOTS, MUPOTS, count_mupots), "panoptic": (OF_PANOPTIC, PANOPTIC, count_panoptic)}
