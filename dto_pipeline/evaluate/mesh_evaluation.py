"""Measure bodies against true bodies of the same images: by the field's definitions, or as 3DPW and AGORA do it.

`evaluate_meshes` has SMPL's 24 joints and the pelvis as root. Errors of points are means over a body's points of the
Euclidean distance: absolute; root-relative, both roots moved to the origin (MPJPE; MVE, PVE of vertices); or aligned,
after the rotation, scale and shift that fit best (PA-MPJPE, PA-MVE). A found person that cannot be used counts as found
and matches nobody; a true one that cannot be used is left out and counted.

`evaluate_protocol` is MA-HMR's evaluation scripts for 3DPW and AGORA: matching and errors equal the recorded numbers
(`dto golden`). Metres in, pixels, degrees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from dto_pipeline.data.people import People
from dto_pipeline.evaluate.bodies import (
    TREE,
    aligned_error,
    in_chunks,
    joints_of,
    mean_distance,
    project_joints,
    vertices_of,
)
from dto_pipeline.evaluate.evaluation import (
    RESAMPLES,
    Evaluation,
    EvaluationError,
    Measure,
    Statistic,
    Sums,
    add_up,
    evaluate,
    mean_of,
    ratio,
)
from dto_pipeline.evaluate.matching import MIN_IOU, by_image, join_images, match_bodies
from dto_pipeline.evaluate.placements import pair_sums
from dto_pipeline.models.body import BodyModel

MATCHINGS = ("boxes", "rows")
H36M_JOINTS = (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16)  # the 14 of Human3.6M's 17 that are compared
H36M_ROOT, AGORA_ROOTS = 0, (1, 2)  # joint whose place, or joints whose middle, is brought to the origin
_MM = 1000.0
Pairs = tuple[np.ndarray, np.ndarray]  # positions (k,) of matched found and true people, ordered by the true one
Errors = dict[str, np.ndarray]  # name -> (k,) what was measured on matched people


def _f1(sums: Sums) -> np.ndarray:
    return ratio(2 * sums["matched"], sums["found"] + sums["true"])


def _rounded_f1(sums: Sums) -> np.ndarray:
    """Rounded to two digits as published."""
    return np.round(_f1(sums), 2)


def _over(f1: Statistic, part: str, factor: float = 1.0) -> Statistic:
    """An error over F1: missed and invented people count as errors too."""
    return lambda sums: factor * ratio(ratio(sums[part], sums["matched"]), f1(sums))


MEASURES = (
    Measure("mpjpe", "MPJPE", "mm", mean_of("joints", "matched", _MM)),
    Measure("pa_mpjpe", "PA-MPJPE", "mm", mean_of("joints_aligned", "joints_alignable", _MM)),
    Measure("mve", "MVE (PVE)", "mm", mean_of("vertices", "matched", _MM)),
    Measure("pa_mve", "PA-MVE", "mm", mean_of("vertices_aligned", "vertices_alignable", _MM)),
    Measure("absolute_mpjpe", "absolute MPJPE", "mm", mean_of("absolute", "matched", _MM)),
    Measure("mrpe", "MRPE", "mm", mean_of("root", "matched", _MM)),
    Measure("root_z_error", "root z error", "m", mean_of("root_z", "matched"), 3),
    Measure("pair_depth_error", "pairwise depth error", "m", mean_of("pair_gap", "pairs"), 3),
    Measure("ordinal", "ordinal accuracy at 0.2 m", "%", mean_of("pair_right", "pairs", 100)),
    Measure("precision", "precision", "%", mean_of("matched", "found", 100)),
    Measure("recall", "recall", "%", mean_of("matched", "true", 100)),
    Measure("f1", "F1", "%", lambda sums: 100 * _f1(sums)),
    Measure("nmjpe", "NMJE = MPJPE / F1", "mm", _over(_f1, "joints", _MM)),
    Measure("nmve", "NMVE = MVE / F1", "mm", _over(_f1, "vertices", _MM)),
    Measure("fov_error", "vertical field of view error", "deg", mean_of("fov_gap", "fov_images"), 2),
)
_DETECTION = (
    Measure("precision", "precision", "", mean_of("matched", "found"), 2),
    Measure("recall", "recall", "", mean_of("matched", "true"), 2),
    Measure("f1", "F1", "", _rounded_f1, 2),
)
PROTOCOLS = {
    "3dpw": (
        Measure("mpjpe", "MPJPE", "mm", mean_of("mpjpe", "matched")),
        Measure("pa_mpjpe", "PA-MPJPE", "mm", mean_of("pa_mpjpe", "matched")),
        Measure("mve", "MVE", "mm", mean_of("mve", "matched")),
        Measure("pa_mve", "PA-MVE", "mm", mean_of("pa_mve", "matched")),
        *_DETECTION,
    ),
    "agora": (
        Measure("mpjpe", "MPJPE", "mm", mean_of("agora_mpjpe", "matched")),
        Measure("mve", "MVE", "mm", mean_of("agora_mve", "matched")),
        Measure("nmje", "NMJE = MPJPE / F1", "mm", _over(_rounded_f1, "agora_mpjpe")),
        Measure("nmve", "NMVE = MVE / F1", "mm", _over(_rounded_f1, "agora_mve")),
        *_DETECTION,
    ),
}


def evaluate_meshes(
    found: People,
    truth: People,
    body: BodyModel,
    matching: str = "boxes",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Evaluation:
    """All measures of `MEASURES` over the true images.

    Args:
        found, truth: people of (partly) the same images; images only `found` has are counted and left out.
        body: model of both sides.
        matching: one of `MATCHINGS`: boxes and joints in the image, or the label row (labels of the same people).

    Raises:
        EvaluationError: an unknown matching, or a truth without a camera.
        ImageJoinError: no image in common.
    """
    if matching not in MATCHINGS:
        raise EvaluationError(f"matching is {matching!r}; choose from {MATCHINGS}")
    join = join_images(list(found.images), list(truth.images))
    true, known = truth.take(truth.usable), found.take(join.true[found.owner] >= 0)
    image, images = join.true[known.owner], truth.num_images
    if matching == "rows":
        pairs = _match_rows(known, true, image)
    else:
        camera, true_camera = _cameras(known, true, image)
        usable = np.flatnonzero(known.usable & np.isfinite(camera).all((1, 2)))
        seen = project_joints(known.take(usable), body, camera[usable])
        pairs = _match_images(seen, project_joints(true, body, true_camera), image[usable], true.owner, images)
        pairs = usable[pairs[0]], pairs[1]
    errors = _measure(known, true, pairs, partial(_errors, body=body))
    owner, z, true_z = true.owner[pairs[1]], errors.pop("found_z"), errors.pop("true_z")
    errors["root_z"] = np.abs(z - true_z)
    for name in ("joints", "vertices"):
        errors[f"{name}_alignable"] = np.isfinite(errors[f"{name}_aligned"])
    sums = _sum_up(errors, owner, image, true) | pair_sums(z, true_z, owner, images)
    sums |= _fields_of_view(known, true, image)
    counts = {
        "images evaluated": images,
        "images without any found person": int((sums["found"] == 0).sum()),
        "images found that are not in the truth (left out)": join.unmatched,
        "people in the truth": true.num_people,
        "people found": known.num_people,
        "matched": len(owner),
        "missed": true.num_people - len(owner),
        "extra": known.num_people - len(owner),
        "of the extra: cannot be used (not finite, or behind the camera)": int((~known.usable).sum()),
        "people of the truth that cannot be used (left out)": truth.num_people - true.num_people,
        "people of images not in the truth (left out)": found.num_people - known.num_people,
    }
    title, notes = f"{found.source} against {truth.source}", (join.note, *found.problems[:5], *truth.problems[:5])
    settings = {"matching": matching, "min_iou": MIN_IOU, "body_sha256": body.sha256}
    columns = {"all people": sums}
    return evaluate(title, truth.images, MEASURES, columns, counts, notes, resamples, seed, **settings)


def _first(values: np.ndarray, owner: np.ndarray, images: int) -> np.ndarray:
    """(N, ...) values (n, ...) of each image's first person, NaN where it has none."""
    found = np.full((images, *values.shape[1:]), np.nan)
    found[owner[::-1]] = values[::-1]
    return found


def _cameras(found: People, true: People, image: np.ndarray) -> Pairs:
    """K of all people on both sides (n, 3, 3), (m, 3, 3) [px].

    A principal point the truth does not give is the centre of the image; FOUND's cameras default to those of the truth.
    """
    known = true.intrinsics.copy()
    centre = true.size[true.owner][:, ::-1] / 2
    known[:, :2, 2] = np.where(np.isnan(known[:, :2, 2]), centre, known[:, :2, 2])
    complete = np.isfinite(known).all((1, 2))
    if not complete.all():
        raise EvaluationError(
            f"{true.source}: the camera of image {true.images[true.owner[~complete][0]]} is not known; add "
            "`intrinsics` (or `focal` and image sizes)"
        )
    of_image = _first(known, true.owner, true.num_images)
    return np.where(np.isfinite(found.intrinsics), found.intrinsics, of_image[image]), known


def _match_images(
    found: np.ndarray, truth: np.ndarray, image: np.ndarray, owner: np.ndarray, images: int, published: bool = False
) -> Pairs:
    """Match people by their joints (n, J, 2), (m, J, 2) in the same of N images, see `match_bodies`."""
    pairs = [np.zeros((0, 2), np.int64)]
    for own, other in zip(by_image(image, images), by_image(owner, images), strict=True):
        matched = match_bodies(found[own], truth[other], published)
        pairs.append(np.stack([own[matched[:, 0]], other[matched[:, 1]]], axis=-1))
    together = np.concatenate(pairs)
    first, second = together[np.argsort(together[:, 1])].T
    return first, second


def _match_rows(found: People, true: People, image: np.ndarray) -> Pairs:
    """Match people by image and label row; -1 was added by a detector, so it has no label row."""
    usable = np.flatnonzero(found.usable & (found.row >= 0))
    rows = int(max(found.row.max(initial=0), true.row.max(initial=0))) + 1
    own, wanted = image[usable] * rows + found.row[usable], true.owner * rows + true.row
    _, first, second = np.intersect1d(own, np.where(true.row >= 0, wanted, -1), return_indices=True)
    order = np.argsort(second)
    return usable[first[order]], second[order]


def _measure(found: People, true: People, pairs: Pairs, errors: Callable[[People, People], Errors]) -> Errors:
    """What `errors` finds on matched people, some at a time."""
    parts = [errors(found.take(pairs[0][some]), true.take(pairs[1][some])) for some in in_chunks(len(pairs[0]))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sum_up(errors: Errors, owner: np.ndarray, image: np.ndarray, true: People) -> dict[str, np.ndarray]:
    """Sums per image of errors (k,) of matched people, NaN left out, and of people matched, found and true."""
    people = {"matched": owner, "found": image, "true": true.owner}
    sums = {name: add_up(np.ones(len(own)), own, true.num_images) for name, own in people.items()}
    return sums | {name: add_up(np.nan_to_num(values), owner, true.num_images) for name, values in errors.items()}


def _errors(found: People, true: People, body: BodyModel) -> Errors:
    """What `MEASURES` are made of."""
    own, other = (joints_of(side, body)[:, :TREE] for side in (found, true))
    mesh, other_mesh = (vertices_of(side, body) for side in (found, true))
    root, true_root = (joints[:, :1] for joints in (own, other))  # the pelvis
    return {
        "joints": mean_distance(own - root, other - true_root),
        "vertices": mean_distance(mesh - root, other_mesh - true_root),
        "absolute": mean_distance(own, other),
        "root": mean_distance(root, true_root),
        "joints_aligned": aligned_error(own, other),
        "vertices_aligned": aligned_error(mesh, other_mesh),
        "found_z": root[:, 0, 2].astype(np.float64),
        "true_z": true_root[:, 0, 2].astype(np.float64),
    }


def _fields_of_view(found: People, true: People, image: np.ndarray) -> dict[str, np.ndarray]:
    """Per image |found - true| of the first person's vertical field of view, where both sides give one [degree]."""
    images = true.num_images
    height = _first(2 * true.intrinsics[:, 1, 2], true.owner, images)
    height = np.where(np.isfinite(true.size[:, 0]), true.size[:, 0], height)
    angles = [
        np.degrees(2 * np.arctan2(height / 2, _first(people.intrinsics[:, 1, 1], owner, images)))
        for people, owner in ((found, image), (true, true.owner))
    ]
    gap = np.abs(angles[1] - angles[0])
    return {"fov_gap": np.nan_to_num(gap), "fov_images": np.isfinite(gap).astype(np.float64)}


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
        EvaluationError: no true person, a camera is unknown, or a regressor does not fit.
        ImageJoinError: no image in common.
    """
    join = join_images(list(found.images), list(truth.images))
    true, known = truth.take(truth.usable), found.take((join.true[found.owner] >= 0) & found.usable)
    image = join.true[known.owner]
    if not true.num_people:
        raise EvaluationError(f"{truth.source} has no person that can be used")
    seen, true_seen = _project(known, bodies.found), _project(true, bodies.truth)
    pairs = _match_images(seen, true_seen, image, true.owner, truth.num_images, published=True)
    errors = _measure(known, true, pairs, partial(_protocol_errors, bodies=bodies, protocol=protocol))
    sums = _sum_up(errors, true.owner[pairs[1]], image, true)
    counts = {
        "images evaluated": truth.num_images,
        "people in the truth": true.num_people,
        "people found": known.num_people,
        "matched": len(pairs[0]),
        "people of the truth that cannot be used (left out)": truth.num_people - true.num_people,
        "people found that cannot be used, or in no image of the truth (left out)": found.num_people - known.num_people,
    }
    title, measures = f"{protocol}: {found.source} against {truth.source}", PROTOCOLS[protocol]
    return evaluate(title, truth.images, measures, {"": sums}, counts, [join.note], resamples, seed, protocol=protocol)


def _project(people: People, body: BodyModel) -> np.ndarray:
    """(n, 24, 2) joints in the image [px]."""
    if not np.isfinite(people.intrinsics).all():
        raise EvaluationError(f"{people.source} lacks the camera of some people; add `intrinsics`")
    return np.nan_to_num(project_joints(people, body, people.intrinsics)[:, :TREE])


def _protocol_errors(found: People, true: People, bodies: Bodies, protocol: str) -> Errors:
    sides = ((found, bodies.found), (true, bodies.truth))
    meshes = [vertices_of(*side).astype(np.float64) for side in sides]
    if protocol == "agora":
        joints = [joints_of(*side)[:, :TREE].astype(np.float64) for side in sides]
        chosen = slice(None) if bodies.vertices is None else bodies.vertices
        return agora_errors(*joints, *(mesh[:, chosen] for mesh in meshes))
    regressor = check_regressor(bodies.regressor, bodies.found, protocol)
    return threedpw_errors(*(np.einsum("jv,nvk->njk", regressor, mesh) for mesh in meshes), *meshes)


def check_regressor(regressor: np.ndarray | None, body: BodyModel, protocol: str) -> np.ndarray:
    """(17, V) Human3.6M's joints of the body. Raises: EvaluationError: none, or of another body."""
    if regressor is None or regressor.shape != (17, body.num_vertices):
        got = "none" if regressor is None else f"one of shape {regressor.shape}"
        needed = f"(17, {body.num_vertices})"
        raise EvaluationError(f"{protocol} needs a regressor {needed} of Human3.6M's joints, got {got}")
    return regressor


def threedpw_errors(
    found: np.ndarray, truth: np.ndarray, found_vertices: np.ndarray, true_vertices: np.ndarray
) -> Errors:
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


def agora_errors(found: np.ndarray, truth: np.ndarray, found_vertices: np.ndarray, true_vertices: np.ndarray) -> Errors:
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
