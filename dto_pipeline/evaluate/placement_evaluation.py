"""Labels of known people against the truth of a synthetic data set: before and after, all people and accepted ones.

People are the same by their label row, so nothing is matched. Knows people (`data.people`) and the definitions of
`synthetic`; writes no file. z is that of the translation, as the optimiser moves it. Metres.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from dto_pipeline.data.people import People
from dto_pipeline.errors import DtoError
from dto_pipeline.evaluate.bootstrap import RESAMPLES, mean_of
from dto_pipeline.evaluate.evaluation import Evaluation, Measure, add_up, make_column
from dto_pipeline.evaluate.image_join import join_images
from dto_pipeline.evaluate.synthetic import Placement, depth_relation, image_pairs
from dto_pipeline.models.body import BodyModel


class SyntheticError(DtoError, ValueError):
    """Labels that are not those of the synthetic data set; the message says where they part."""


PLACEMENT_MEASURES = (
    Measure("depth_error", "absolute z error", "m", mean_of("z_gap", "persons"), 3),
    Measure("relative_depth_error", "relative z error", "%", mean_of("z_share", "persons", 100)),
    Measure("pair_depth_error", "pairwise depth error", "m", mean_of("pair_gap", "pairs"), 3),
    Measure("ordinal", "ordinal accuracy at 0.2 m", "%", mean_of("pair_right", "pairs", 100)),
    Measure("height_error", "height error", "m", mean_of("height_gap", "persons"), 3),
)


MRPE = Measure("mrpe", "MRPE", "mm", mean_of("root_gap", "persons", 1000))  # mean distance of the pelves


def placement_sums(
    found: Placement, truth: Placement, image: np.ndarray, images: int, selected: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What each image adds to `PLACEMENT_MEASURES`.

    Args:
        found, truth: the same n people; image: (n,) int in 0 .. images - 1; selected: (n,) bool, None = everyone.

    Returns:
        name -> (images,) float64.
    """
    kept = np.ones(len(image), bool) if selected is None else np.asarray(selected, bool)
    first, second = image_pairs(image, kept)
    apart, true_apart = found.z[first] - found.z[second], truth.z[first] - truth.z[second]
    gap, height = np.abs(found.z - truth.z)[kept], np.abs(found.height - truth.height)[kept]
    of_pair, own = image[first], image[kept]
    return {
        "persons": add_up(np.ones(kept.sum()), own, images),
        "z_gap": add_up(gap, own, images),
        "z_share": add_up(gap / truth.z[kept], own, images),
        "height_gap": add_up(height, own, images),
        "pairs": add_up(np.ones(len(first)), of_pair, images),
        "pair_gap": add_up(np.abs(apart - true_apart), of_pair, images),
        "pair_right": add_up(depth_relation(apart) == depth_relation(true_apart), of_pair, images),
    }


def evaluate_synthetic(
    placed: Mapping[str, People], truth: People, body: BodyModel, resamples: int = RESAMPLES, seed: int = 0
) -> Evaluation:
    """Compare labels with the truth.

    Args:
        placed: what to call them -> labels of the same file (for example before and after a run).
        truth: of the data set (`dto synth`), one row per label row.
        body: the model the labels belong to.

    Returns:
        A column per entry of `placed`, then one per entry over people of accepted images, where any is not accepted.

    Raises:
        SyntheticError: a label row of another image than in the truth, or none that can be compared.
        ImageJoinError: no image in common.
    """
    first = next(iter(placed.values()))
    join = join_images(list(first.images), list(truth.images))
    partner = _find_rows(first, truth)
    usable = np.all([people.usable for people in placed.values()], axis=0)
    both = np.flatnonzero((partner >= 0) & usable)
    if len(both) == 0:
        raise SyntheticError(f"{first.source}: no person of the truth {truth.source} in it that can be used")
    right, image = partner[both], truth.owner[partner[both]]
    _check_images(first, truth, both, right, join.found)
    true, root = _placement(truth.take(right), body), _pelves(truth.take(right), body)
    measures = (*PLACEMENT_MEASURES, MRPE)
    accepted = first.accepted[first.owner[both]]
    columns = {}
    for about, kept in (("", np.ones(len(both), bool)), (", accepted images", accepted)):
        if about and accepted.all():
            continue
        for name, people in placed.items():
            sums = placement_sums(_placement(people.take(both), body), true, image, truth.num_images, kept)
            apart = np.linalg.norm(_pelves(people.take(both), body) - root, axis=1)
            sums["root_gap"] = add_up(apart[kept], image[kept], truth.num_images)
            columns[name + about] = make_column(sums, measures, resamples, seed)
    return Evaluation(
        title=f"{first.source} against {truth.source}",
        images=[str(name) for name in truth.images],
        measures=measures,
        columns=columns,
        counts=_count(first, truth, partner, usable, accepted, len(join.strangers)),
        notes=tuple(note for note in (join.note, *first.problems[:5]) if note),
        settings={"resamples": resamples, "seed": seed, "body_sha256": body.sha256},
    )


def _find_rows(people: People, truth: People) -> np.ndarray:
    """(n,) int64 position in the truth of each label row, -1 = the truth has no such row (added by a detector)."""
    place = np.full(int(max(truth.row.max(initial=-1), people.row.max(initial=-1))) + 2, -1, np.int64)
    place[truth.row] = np.arange(truth.num_people)
    return place[people.row]


def _check_images(people: People, truth: People, both: np.ndarray, right: np.ndarray, found: np.ndarray) -> None:
    wrong = found[truth.owner[right]] != people.owner[both]
    if wrong.any():
        one = int(np.flatnonzero(wrong)[0])
        names = people.images[people.owner[both[one]]], truth.images[truth.owner[right[one]]]
        raise SyntheticError(
            f"label row {people.row[both[one]]} is of image {names[0]} in {people.source} and of {names[1]} in the "
            "truth; give the truth of the data set the labels were made from"
        )


def _placement(people: People, body: BodyModel) -> Placement:
    height = people.height
    if height is None:
        height = body.rest_height(torch.from_numpy(people.betas.astype(np.float64))).numpy()
    return Placement(z=people.transl[:, 2].astype(np.float64), height=height)


def _pelves(people: People, body: BodyModel) -> np.ndarray:
    """(n, 3) float64 [m]."""
    pose, betas, transl = (
        torch.from_numpy(np.ascontiguousarray(x)) for x in (people.pose, people.betas, people.transl)
    )
    return body.joints(pose, betas, transl)[:, 0].double().numpy()


def _count(
    people: People, truth: People, partner: np.ndarray, usable: np.ndarray, accepted: np.ndarray, strangers: int
) -> dict[str, int]:
    known = partner >= 0
    found = np.unique(partner[known])
    return {
        "images in the truth": truth.num_images,
        "images in the labels": people.num_images,
        "images in the labels that are not in the truth": strangers,
        "people in the truth": truth.num_people,
        "compared": int((known & usable).sum()),
        "of these in accepted images": int(accepted.sum()),
        "missed (no label row)": truth.num_people - len(found),
        "extra (a label row the truth does not have)": int((~known).sum()),
        "labels that cannot be used": int((known & ~usable).sum()),
        "moved": int(np.isin(people.status, ("moved", "placed_by_prior")).sum()),
    }
