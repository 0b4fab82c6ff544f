"""Measure bodies against true bodies of the same images: by the field's definitions, or as 3DPW and AGORA do it.

Protocol `meshes` uses SMPL's 24 joints, with the pelvis as root. The error of a body is the mean Euclidean distance of
its points: in the camera frame (absolute); after both roots are moved to the origin (MPJPE; MVE or PVE of vertices); or
after the rotation, scale and shift that fit best (PA-MPJPE, PA-MVE). A found person that cannot be used counts as found
and matches nobody; a true one that cannot be used is left out, and their number is printed.

Protocols `3dpw` and `agora` are MA-HMR's evaluation scripts: matching and errors equal the recorded numbers
(`dto golden`); found people that cannot be used are left out, and their number is printed. Metres in, pixels, degrees.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dto_pipeline.data.people import People
from dto_pipeline.evaluate.bodies import TREE, aligned_error, in_chunks, joints_of, mean_distance, vertices_of
from dto_pipeline.evaluate.evaluation import (
    Evaluation,
    EvaluationError,
    Measure,
    Statistic,
    Sums,
    add_up,
    mean_of,
    ratio,
)
from dto_pipeline.evaluate.matching import MIN_IOU, by_image, join_images, match_bodies
from dto_pipeline.evaluate.placements import pair_sums
from dto_pipeline.maths.person_matching import view_bodies
from dto_pipeline.models.body import BodyModel

H36M_JOINTS = (1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 15, 16)  # the 14 of Human3.6M's 17 that are compared
H36M_ROOT, AGORA_ROOTS = 0, (1, 2)  # joint whose place, or joints whose middle, is brought to the origin
_MM = 1000.0
Errors = dict[str, np.ndarray]  # name -> (k,) errors of matched people


def _f1(sums: Sums) -> np.ndarray:
    return ratio(2 * sums["matched"], sums["found"] + sums["true"])


def _rounded_f1(sums: Sums) -> np.ndarray:
    """F1 rounded to two digits, as published."""
    return np.round(_f1(sums), 2)


def _over(f1: Statistic, part: str, factor: float = 1.0) -> Statistic:
    """An error divided by F1, so that missed and invented people count as errors too."""
    return lambda sums: factor * ratio(ratio(sums[part], sums["matched"]), f1(sums))


_DETECTION = (
    Measure("precision", "precision", "", mean_of("matched", "found"), 2),
    Measure("recall", "recall", "", mean_of("matched", "true"), 2),
    Measure("f1", "F1", "", _rounded_f1, 2),
)
PROTOCOLS = {
    "meshes": (
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
    ),
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


@dataclass(frozen=True)
class Bodies:
    """The body models of both sides, and which points of their meshes a protocol compares."""

    found: BodyModel
    truth: BodyModel
    regressor: np.ndarray | None = None  # (17, V) Human3.6M's joints, for 3dpw
    vertices: np.ndarray | None = None  # those that count, for agora; None = all


def evaluate_meshes(
    found: People,
    truth: People,
    bodies: Bodies,
    protocol: str = "meshes",
    by_row: bool = False,
) -> Evaluation:
    """The measures of one of `PROTOCOLS` over the true images.

    Args:
        found, truth: people of (partly) the same images; images that only `found` has are left out, and counted.
        by_row: match people by label row, where both sides name it, not by joints and boxes in the image.

    Raises:
        EvaluationError: no true person, or one without a camera.
        ImageJoinError: no image in common.
    """
    join, published = join_images(found.images, truth.images), protocol != "meshes"
    taken = join.true[found.owner] >= 0
    true, known = truth.take(truth.usable), found.take(taken & found.usable if published else taken)
    if not true.num_people:
        raise EvaluationError(f"{truth.source} has no person that can be used")
    images, image = truth.num_images, join.true[known.owner]
    match = _match_rows if by_row else _match_boxes
    first, second = match(known, true, image, bodies, published)
    parts = [
        _errors(known.take(first[some]), true.take(second[some]), bodies, protocol) for some in in_chunks(len(first))
    ]
    errors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    owner = true.owner[second]
    people = {"matched": owner, "found": image, "true": true.owner}
    sums = {name: add_up(np.ones(len(own)), own, images) for name, own in people.items()}
    more: dict[str, np.ndarray] = {}
    if not published:
        more = pair_sums(errors.pop("found_z"), errors.pop("true_z"), owner, images)
        more |= _fields_of_view(known, true, image)
    sums |= {name: add_up(np.nan_to_num(values), owner, images) for name, values in errors.items()} | more
    left_out = "people found that cannot be used, or in no image of the truth (left out)"
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
        left_out if published else "people of images not in the truth (left out)": found.num_people - known.num_people,
    }
    title = f"{protocol}: " * published + f"{found.source} against {truth.source}"
    notes = (join.note, *found.problems[:5], *truth.problems[:5])
    settings = {"protocol": protocol, "matching": "rows" if by_row else "boxes", "min_iou": MIN_IOU}
    settings |= {"body_sha256": bodies.found.sha256}
    columns = {"" if published else "all people": sums}
    return Evaluation(title, truth.images, PROTOCOLS[protocol], columns, counts, notes, settings)


def _first(values: np.ndarray, owner: np.ndarray, images: int) -> np.ndarray:
    """(N, ...) values (n, ...) of each image's first person, NaN where it has none."""
    found = np.full((images, *values.shape[1:]), np.nan)
    found[owner[::-1]] = values[::-1]
    return found


def _match_boxes(
    found: People, true: People, image: np.ndarray, bodies: Bodies, published: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (k,) of found and true people matched by their joints in the image, see `match_bodies`.

    Where the truth gives no principal point, it is the centre of the image; where FOUND gives no camera, it is the
    truth's.
    """
    true_camera = true.intrinsics.copy()
    centre = true.size[true.owner][:, ::-1] / 2
    true_camera[:, :2, 2] = np.where(np.isnan(true_camera[:, :2, 2]), centre, true_camera[:, :2, 2])
    for person in np.flatnonzero(~np.isfinite(true_camera).all((1, 2)))[:1]:
        raise EvaluationError(
            f"{true.source}: the camera of image {true.images[true.owner[person]]} is not known; add `intrinsics` (or "
            "`focal` and image sizes)"
        )
    camera = _first(true_camera, true.owner, true.num_images)[image]
    camera = np.where(np.isfinite(found.intrinsics), found.intrinsics, camera)
    usable = np.flatnonzero(found.usable & np.isfinite(camera).all((1, 2)))
    places = []
    for people, body, intrinsics in (
        (found.take(usable), bodies.found, camera[usable]),
        (true, bodies.truth, true_camera),
    ):
        seen = view_bodies(joints_of(people, body), intrinsics).joints
        places.append(np.nan_to_num(seen[:, :TREE]) if published else seen)
    pairs = [np.zeros((0, 2), np.int64)]
    for own, other in zip(by_image(image[usable], true.num_images), by_image(true.owner, true.num_images), strict=True):
        matched = match_bodies(places[0][own], places[1][other], published)
        pairs.append(np.stack([usable[own[matched[:, 0]]], other[matched[:, 1]]], axis=-1))
    together = np.concatenate(pairs)
    first, second = together[np.argsort(together[:, 1])].T
    return first, second


def _match_rows(found: People, true: People, image: np.ndarray, *_: Any) -> tuple[np.ndarray, np.ndarray]:
    """Match people by image and label row; people added by a detector have no label row (-1)."""
    usable = np.flatnonzero(found.usable & (found.row >= 0))
    rows = int(max(found.row.max(initial=0), true.row.max(initial=0))) + 1
    own, wanted = image[usable] * rows + found.row[usable], true.owner * rows + true.row
    first, second = np.intersect1d(own, np.where(true.row >= 0, wanted, -1), return_indices=True)[1:]
    order = np.argsort(second)
    return usable[first[order]], second[order]


def with_true_rows(found: People, truth: People, body: BodyModel) -> People:
    """FOUND with the label rows of the true people that it is matched with by joints and boxes; -1 = nobody.

    For files whose people have no label row; their order says nothing. Raises: EvaluationError, ImageJoinError.
    """
    if not truth.usable.any():
        raise EvaluationError(f"{found.source} names no label rows, and {truth.source} no bodies to match people by")
    image = join_images(found.images, truth.images).true[found.owner]
    taken, usable = np.flatnonzero(image >= 0), np.flatnonzero(truth.usable)
    sides = found.take(taken), truth.take(usable)
    first, second = _match_boxes(*sides, image[taken], Bodies(body, body), published=False)
    row: np.ndarray = np.full(found.num_people, -1)
    row[taken[first]] = truth.row[usable[second]]
    note = f"{found.source} names no label rows: people were matched by joints and boxes in the image"
    return replace(found, row=row, problems=(note, *found.problems))


def _fields_of_view(found: People, true: People, image: np.ndarray) -> dict[str, np.ndarray]:
    """Per image the error of the first person's vertical field of view, where both sides have a camera [degree]."""
    images = true.num_images
    height = _first(2 * true.intrinsics[:, 1, 2], true.owner, images)
    height = np.where(np.isfinite(true.size[:, 0]), true.size[:, 0], height)
    angles = [
        np.degrees(2 * np.arctan2(height / 2, _first(people.intrinsics[:, 1, 1], owner, images)))
        for people, owner in ((found, image), (true, true.owner))
    ]
    gap = np.abs(angles[1] - angles[0])
    return {"fov_gap": np.nan_to_num(gap), "fov_images": np.isfinite(gap).astype(np.float64)}


def _errors(found: People, true: People, bodies: Bodies, protocol: str) -> Errors:
    """The errors of matched people that a protocol's measures are means of."""
    sides = ((found, bodies.found), (true, bodies.truth))
    kind: Any = np.float32 if protocol == "meshes" else np.float64
    meshes = [vertices_of(*side).astype(kind) for side in sides]
    if protocol == "3dpw":
        assert bodies.regressor is not None
        return threedpw_errors(*(np.einsum("jv,nvk->njk", bodies.regressor, mesh) for mesh in meshes), *meshes)
    own, other = (joints_of(*side)[:, :TREE].astype(kind) for side in sides)
    if protocol == "agora":
        chosen = slice(None) if bodies.vertices is None else bodies.vertices
        return agora_errors(own, other, *(mesh[:, chosen] for mesh in meshes))
    root, true_root = (joints[:, :1] for joints in (own, other))  # the pelvis
    z, true_z = (place[:, 0, 2].astype(np.float64) for place in (root, true_root))
    aligned = {"joints": aligned_error(own, other), "vertices": aligned_error(*meshes)}
    return {
        "joints": mean_distance(own - root, other - true_root),
        "vertices": mean_distance(meshes[0] - root, meshes[1] - true_root),
        "absolute": mean_distance(own, other),
        "root": mean_distance(root, true_root),
        **{f"{name}_aligned": error for name, error in aligned.items()},
        "root_z": np.abs(z - true_z),
        **{f"{name}_alignable": np.isfinite(error) for name, error in aligned.items()},
        "found_z": z,
        "true_z": true_z,
    }


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
