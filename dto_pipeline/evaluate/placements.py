"""Measure placed people against a known truth: distances, distances between people, their order, heights.

z is the z of the translation, which the optimiser moves. Metres. Measured are the selected people, and the pairs of
selected people of one image:

* depth error: |z - true z|; relative depth error: the same divided by the true z;
* pair depth error: |(z_i - z_j) - (true z_i - true z_j)|;
* ordinal accuracy: share of pairs whose relation (same within 0.2 m, nearer, farther) is right;
* height error: |height - true height| in the rest pose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dto_pipeline.data.people import People
from dto_pipeline.evaluate.bodies import joints_of
from dto_pipeline.evaluate.evaluation import Evaluation, EvaluationError, Measure, add_up, mean_of
from dto_pipeline.evaluate.matching import join_images
from dto_pipeline.maths.person_matching import pairs_within
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import PLACED

SAME_DEPTH = 0.2  # people closer than this stand at the same depth [m]
PLACEMENT_MEASURES = (
    Measure("depth_error", "absolute z error", "m", mean_of("z_gap", "persons"), 3),
    Measure("relative_depth_error", "relative z error", "%", mean_of("z_share", "persons", 100)),
    Measure("pair_depth_error", "pairwise depth error", "m", mean_of("pair_gap", "pairs"), 3),
    Measure("ordinal", "ordinal accuracy at 0.2 m", "%", mean_of("pair_right", "pairs", 100)),
    Measure("height_error", "height error", "m", mean_of("height_gap", "persons"), 3),
)
# and the mean distance of the pelves
MEASURES = (*PLACEMENT_MEASURES, Measure("mrpe", "MRPE", "mm", mean_of("root_gap", "persons", 1000)))


@dataclass(frozen=True)
class Placement:
    """Where N people of one or more images are, and how tall they are."""

    z: np.ndarray  # (N,) z of the translation [m]
    height: np.ndarray  # (N,) in the rest pose [m]


def join_placements(parts: Sequence[Placement]) -> Placement:
    """People of several images or sets, one after the other."""
    return Placement(np.concatenate([part.z for part in parts]), np.concatenate([part.height for part in parts]))


def placement_sums(
    found: Placement, truth: Placement, image: np.ndarray, images: int, selected: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What each image adds to `PLACEMENT_MEASURES`.

    Args:
        found, truth: the same n people in the same order.
        image: (n,) int in 0 .. images - 1, equal for people of one image.
        selected: (n,) bool, who is measured; None = everyone.

    Returns:
        name -> (images,) float64.
    """
    kept = np.ones(len(image), bool) if selected is None else np.asarray(selected, bool)
    gap, height, own = np.abs(found.z - truth.z)[kept], np.abs(found.height - truth.height)[kept], image[kept]
    return {
        "persons": add_up(np.ones(kept.sum()), own, images),
        "z_gap": add_up(gap, own, images),
        "z_share": add_up(gap / truth.z[kept], own, images),
        "height_gap": add_up(height, own, images),
        **pair_sums(found.z[kept], truth.z[kept], own, images),
    }


def pair_sums(z: np.ndarray, true_z: np.ndarray, image: np.ndarray, images: int) -> dict[str, np.ndarray]:
    """What the pairs of each image add: their number, errors of their distances, how many are in the right order."""
    first, second = pairs_within(image, image)
    first, second = first[first < second], second[first < second]
    apart, true_apart = z[first] - z[second], true_z[first] - true_z[second]
    return {
        "pairs": add_up(np.ones(len(first)), image[first], images),
        "pair_gap": add_up(np.abs(apart - true_apart), image[first], images),
        "pair_right": add_up(depth_relation(apart) == depth_relation(true_apart), image[first], images),
    }


def depth_relation(apart: np.ndarray) -> np.ndarray:
    """-1 nearer, 0 same depth, 1 farther. Args: apart (...) z of one minus z of the other [m]."""
    return np.where(np.abs(apart) < SAME_DEPTH, 0, np.sign(apart)).astype(np.int64)


def evaluate_synthetic(placed: Mapping[str, People], truth: People, body: BodyModel) -> Evaluation:
    """Compare labels with the truth of a synthetic data set; people are the same by their label row.

    Args:
        placed: name of a column -> labels of the same file (for example before and after a run).
        truth: of the data set (`dto synth`), one row per label row.
        body: the model the labels belong to.

    Returns:
        A column per entry of `placed`, then one per entry over people of accepted images, where any is not accepted.

    Raises:
        EvaluationError: a label row of another image than in the truth, or none that can be compared.
        ImageJoinError: no image in common.
    """
    first = next(iter(placed.values()))
    join = join_images(first.images, truth.images)
    place = np.full(int(max(truth.row.max(initial=-1), first.row.max(initial=-1))) + 2, -1, np.int64)
    place[truth.row] = np.arange(truth.num_people)
    partner = place[first.row]  # of each label row in the truth, -1 = it has no such row (added by a detector)
    usable = np.all([people.usable for people in placed.values()], axis=0)
    size = truth.betas.sum(axis=1) if truth.height is None else truth.height
    # of people of another body model only place and height are known
    sound = np.isfinite([*truth.transl.T, size]).all(axis=0) & (truth.transl[:, 2] > 0)
    known, measured = partner >= 0, np.append(sound, False)[partner]
    both = np.flatnonzero(measured & usable)
    if len(both) == 0:
        raise EvaluationError(f"{first.source}: no person of the truth {truth.source} in it that can be used")
    right, image = partner[both], truth.owner[partner[both]]
    for one in np.flatnonzero(join.found[image] != first.owner[both])[:1]:
        names = first.images[first.owner[both[one]]], truth.images[image[one]]
        raise EvaluationError(
            f"label row {first.row[both[one]]} is of image {names[0]} in {first.source} and of {names[1]} in the "
            "truth; give the truth of the data set the labels were made from"
        )
    accepted, columns = first.accepted[first.owner[both]], {}
    true, root = _placed(truth.take(right), body)
    for about, kept in {"": np.ones(len(both), bool), ", accepted images": accepted}.items():
        for name, people in placed.items() if not about or not accepted.all() else ():
            found, pelvis = _placed(people.take(both), body)
            sums = placement_sums(found, true, image, truth.num_images, kept)
            apart = np.linalg.norm(pelvis - root, axis=1)
            columns[name + about] = sums | {"root_gap": add_up(apart[kept], image[kept], truth.num_images)}
    counts = {
        "images in the truth": truth.num_images,
        "images in the labels": first.num_images,
        "images in the labels that are not in the truth": join.unmatched,
        "people in the truth": truth.num_people,
        "compared": len(both),
        "of these in accepted images": int(accepted.sum()),
        "missed (no label row)": truth.num_people - len(np.unique(partner[known])),
        "extra (a label row the truth does not have)": int((~known).sum()),
        "labels that cannot be used": int((known & ~usable).sum()),
        "compared with nobody, as their truth cannot be used": int((usable & known & ~measured).sum()),
        "moved": int(np.isin(first.status, PLACED).sum()),
    }
    title, notes = f"{first.source} against {truth.source}", (join.note, *first.problems[:5])
    return Evaluation(title, truth.images, MEASURES, columns, counts, notes, {"body_sha256": body.sha256})


def _placed(people: People, body: BodyModel) -> tuple[Placement, np.ndarray]:
    """Where people are, how tall (by their file, or measured on the body), and their pelves (n, 3) [m]."""
    height = people.height
    if height is None:
        height = body.rest_height(torch.from_numpy(people.betas.astype(np.float64))).numpy()
    placement = Placement(people.transl[:, 2].astype(np.float64), height)
    return placement, joints_of(people, body)[:, 0].astype(np.float64)
