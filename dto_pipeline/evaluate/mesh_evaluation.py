"""Found bodies against true bodies of the same images: the field's errors of people that are matched one to one.

Joints are SMPL's 24, the root is the pelvis. A found person that cannot be used counts as found and matches nobody; a
true one that cannot be used is left out and counted. All errors of points are means over a body's points of the
Euclidean distance: absolute; root-relative, both roots moved to the origin (MPJPE; MVE, PVE of vertices); or aligned,
after the rotation, scale and shift that fit best (PA-MPJPE, PA-MVE). Writes no file. Metres, pixels, degrees.
"""

from __future__ import annotations

import numpy as np

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
from dto_pipeline.evaluate.evaluation import (
    RESAMPLES,
    Evaluation,
    Measure,
    Statistic,
    Sums,
    add_up,
    evaluate,
    mean_of,
    ratio,
)
from dto_pipeline.evaluate.matching import MIN_IOU, join_images, match_bodies
from dto_pipeline.evaluate.placements import pair_sums
from dto_pipeline.models.body import BodyModel

MATCHINGS = ("boxes", "rows")
_MM = 1000.0


class MeshEvaluationError(DtoError, ValueError):
    """Two sets of people that cannot be compared; the message says why and what to do."""


def _f1(sums: Sums) -> np.ndarray:
    return ratio(2 * sums["matched"], sums["found"] + sums["true"])


def _normalised(part: str) -> Statistic:
    """An error over F1: people who were missed or made up cost as much as people who are wrong."""
    return lambda sums: _MM * ratio(ratio(sums[part], sums["matched"]), _f1(sums))


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
    Measure("nmjpe", "NMJE = MPJPE / F1", "mm", _normalised("joints")),
    Measure("nmve", "NMVE = MVE / F1", "mm", _normalised("vertices")),
    Measure("fov_error", "vertical field of view error", "deg", mean_of("fov_gap", "fov_images"), 2),
)


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
        MeshEvaluationError: an unknown matching, or a truth without a camera.
        ImageJoinError: no image in common.
    """
    if matching not in MATCHINGS:
        raise MeshEvaluationError(f"matching is {matching!r}; choose from {MATCHINGS}")
    join = join_images(list(found.images), list(truth.images))
    true, known = truth.take(truth.usable), found.take(join.true[found.owner] >= 0)
    image = join.true[known.owner]
    cameras = _cameras(known, true, image)
    first, second = _match(known, true, image, cameras, body, matching)
    sums = _measure(known, true, (first, second), image, body) | _fields_of_view(known, true, image)
    matched = len(first)
    counts = {
        "images evaluated": truth.num_images,
        "images without any found person": int((sums["found"] == 0).sum()),
        "images found that are not in the truth (left out)": len(join.unmatched),
        "people in the truth": true.num_people,
        "people found": known.num_people,
        "matched": matched,
        "missed": true.num_people - matched,
        "extra": known.num_people - matched,
        "of the extra: cannot be used (not finite, or behind the camera)": int((~known.usable).sum()),
        "people of the truth that cannot be used (left out)": truth.num_people - true.num_people,
        "people of images not in the truth (left out)": found.num_people - known.num_people,
    }
    title, notes = f"{found.source} against {truth.source}", (join.note, *found.problems[:5], *truth.problems[:5])
    settings = {"matching": matching, "min_iou": MIN_IOU, "body_sha256": body.sha256}
    columns = {"all people": sums}
    return evaluate(title, truth.images, MEASURES, columns, counts, notes, resamples, seed, **settings)


def _cameras(found: People, true: People, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """K of everybody on both sides (n, 3, 3), (m, 3, 3) [px].

    What a file does not tell is the centre of the image, or what the truth says of the image.
    """
    told = true.intrinsics.copy()
    for axis in (0, 1):
        centre = true.size[true.owner, 1 - axis] / 2
        told[:, axis, 2] = np.where(np.isnan(told[:, axis, 2]), centre, told[:, axis, 2])
    if not np.isfinite(told).all():
        lost = true.images[true.owner[~np.isfinite(told).all((1, 2))][0]]
        raise MeshEvaluationError(
            f"{true.source}: the camera of image {lost} is not known; give `intrinsics` (or `focal` and image sizes)"
        )
    of_image = np.full((true.num_images, 3, 3), np.nan)
    of_image[true.owner[::-1]] = told[::-1]  # the first person of the image
    return np.where(np.isfinite(found.intrinsics), found.intrinsics, of_image[image]), told


def _match(
    found: People,
    true: People,
    image: np.ndarray,
    cameras: tuple[np.ndarray, np.ndarray],
    body: BodyModel,
    matching: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of matched found and true people, ordered by the true person."""
    usable = np.flatnonzero(found.usable & np.isfinite(cameras[0]).all((1, 2)))
    if matching == "boxes":
        seen = project_joints(found.take(usable), body, cameras[0][usable])
        first, second = match_bodies(seen, project_joints(true, body, cameras[1]), image[usable], true.owner)
        return usable[first], second
    usable = usable[found.row[usable] >= 0]  # -1: added by a detector, so of no label row
    rows = int(max(found.row.max(initial=0), true.row.max(initial=0))) + 1
    own, wanted = image[usable] * rows + found.row[usable], true.owner * rows + true.row
    _, first, second = np.intersect1d(own, np.where(true.row >= 0, wanted, -1), return_indices=True)
    order = np.argsort(second)
    return usable[first[order]], second[order]


def _measure(
    found: People, true: People, pairs: tuple[np.ndarray, np.ndarray], image: np.ndarray, body: BodyModel
) -> dict[str, np.ndarray]:
    """Sums per image of everything that is measured on matched people."""
    images, matched = true.num_images, (found.take(pairs[0]), true.take(pairs[1]))
    parts = [_errors(matched[0].take(chunk), matched[1].take(chunk), body) for chunk in in_chunks(len(pairs[0]))]
    errors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    owner, z, true_z = true.owner[pairs[1]], errors.pop("found_z"), errors.pop("true_z")
    sums = {
        "matched": add_up(np.ones(len(owner)), owner, images),
        "found": add_up(np.ones(len(image)), image, images),
        "true": add_up(np.ones(true.num_people), true.owner, images),
        "root_z": add_up(np.abs(z - true_z), owner, images),
        **{name: add_up(np.where(np.isnan(values), 0.0, values), owner, images) for name, values in errors.items()},
    }
    for name in ("joints", "vertices"):
        sums[f"{name}_alignable"] = add_up(np.isfinite(errors[f"{name}_aligned"]), owner, images)
    return sums | pair_sums(z, true_z, owner, images)


def _errors(found: People, true: People, body: BodyModel) -> dict[str, np.ndarray]:
    """What is measured on each of n matched people."""
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
    """Per image |found - true| of the first person's camera, where both tell one [degree]."""
    height = np.full(true.num_images, np.nan)
    focal = np.full((2, true.num_images), np.nan)
    height[true.owner[::-1]] = 2 * true.intrinsics[::-1, 1, 2]
    height = np.where(np.isfinite(true.size[:, 0]), true.size[:, 0], height)
    for side, people, owner in ((0, found, image), (1, true, true.owner)):
        focal[side, owner[::-1]] = people.intrinsics[::-1, 1, 1]
    gap = np.abs(np.diff(np.degrees(2 * np.arctan2(height / 2, focal)), axis=0))[0]
    known = np.isfinite(gap)
    return {"fov_gap": np.where(known, gap, 0.0), "fov_images": known.astype(np.float64)}
