"""How far the demo's labels are from its truth, as given and after each solver; and how good a depth network is there.

The definitions of errors are those of `evaluate.placements`. Disparity is compared with the true z after one scale per
picture, because that is all the method leaves open (`depth = 1 / disparity`, an affine line to metres); the offset is
not aligned away. Knows no files. Metres.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from dto_pipeline.evaluate.placements import PLACEMENT_MEASURES, SAME_DEPTH, Placement, placement_sums
from dto_pipeline.evaluate.tables import align
from dto_pipeline.models.body import BodyModel
from dto_pipeline.models.depth_anything import DepthNetwork
from dto_pipeline.scene import PlacedScene
from dto_pipeline.status import PersonStatus

EVERYBODY = "all people"
DEPTH_MEASURES = {
    "pixel_error": "relative error of people's pixels in disparity, one scale per picture",
    "person_error": "relative error of people's depth (medians), one scale per picture",
    "person_error_line": "the same after the best line per picture, as the method fits one",
    "order": "share of pairs more than 0.2 m apart that are in the right order",
}
_LEAST_PIXELS = 100  # of a person that counts
_AT_ONCE = 8  # pictures given to the network together

Errors = dict[str, dict[str, dict[str, float]]]  # who -> labels as given or solver -> measures, shares as fractions


def score_demo(
    placed: Mapping[str, Sequence[PlacedScene]],
    truth: Mapping[str, np.ndarray],
    body: BodyModel,
    images: Collection[str] | None = None,
) -> Errors:
    """Compare every person whose label is finite with its truth.

    Args:
        placed: solver -> all images of its run, the same in each; the first one's labels as given come before all.
            "moved" are whom the first one moves.
        truth: arrays of `demo_data.read_truth`, one row per label row; body: the model the labels belong to.
        images: names of those that count; None = all.
    """

    def counts(item: PlacedScene) -> bool:
        return images is None or str(truth["image_name"][item.scene.source_row[0]]) in images

    placed = {name: list(filter(counts, items)) for name, items in placed.items()}
    solver, first = next(iter(placed.items()))
    row = np.concatenate([item.scene.source_row for item in first])
    image = np.repeat(np.arange(len(first)), [item.scene.num_people for item in first])
    finite = np.concatenate([np.isfinite(item.scene.pose).all(1) for item in first])
    moved = np.array([status is PersonStatus.MOVED for item in first for status in item.person_status])
    whole = finite & np.array([not item.status.is_failure for item in first])[image]
    selections = {EVERYBODY: whole, f"moved by {solver}": moved}
    placements = {"labels": _placement([(item.scene.transl, item.scene.betas) for item in first], body)}
    for name, items in placed.items():
        selections[f"accepted by {name}"] = finite & np.array([item.is_accepted for item in items])[image]
        placements[name] = _placement([(item.transl, item.betas) for item in items], body)
    true = Placement(z=truth["transl"][row, 2], height=truth["height"][row])

    def errors(found: Placement, people: np.ndarray) -> dict[str, float]:
        sums = {key: x.sum() for key, x in placement_sums(found, true, image, len(first), people).items()}
        values = {one.key: float(one.of(sums)) / (100 if one.unit == "%" else 1) for one in PLACEMENT_MEASURES}
        return {"persons": int(sums["persons"]), "pairs": int(sums["pairs"]), **values}

    return {who: {name: errors(found, s) for name, found in placements.items()} for who, s in selections.items()}


def _placement(people: Sequence[tuple[np.ndarray, np.ndarray]], body: BodyModel) -> Placement:
    betas = torch.from_numpy(np.concatenate([betas for _, betas in people]).astype(np.float64))
    z = np.concatenate([transl[:, 2] for transl, _ in people]).astype(np.float64)
    return Placement(z=z, height=body.rest_height(betas).numpy())


def as_table(errors: Errors) -> str:
    """A line per measure, given -> ... -> last solver per selection of people."""
    first = next(iter(errors.values()))
    rows = [[" -> ".join(first), *(f"{who} ({found['labels']['persons']:.0f})" for who, found in errors.items())]]
    for one in PLACEMENT_MEASURES:
        cells = []
        for found in errors.values():
            values = [each[one.key] * (100 if one.unit == "%" else 1) for each in found.values()]
            cells.append(" -> ".join(f"{value:.{one.digits}f}" for value in values))
        rows.append([f"{one.title} [{one.unit}]", *cells])
    return "\n".join(align([rows[0], ["-" * max(map(len, column)) for column in zip(*rows, strict=True)], *rows[1:]]))


def choose_pictures(placed: Sequence[PlacedScene], count: int) -> list[PlacedScene]:
    """Scenes worth looking at: those with most people moved, then one that was not accepted."""

    def moved(item: PlacedScene) -> int:
        return sum(status is PersonStatus.MOVED for status in item.person_status)

    by_people = sorted((item for item in placed if item.is_optimized), key=moved, reverse=True)
    doubtful = [item for item in by_people if not item.is_accepted][:1]
    good = [item for item in by_people if item.is_accepted][: count - len(doubtful)]
    return good + doubtful


class TrueDepth(NamedTuple):
    """What a network says of one picture, and what is true."""

    disparity: np.ndarray  # (H, W) float32, larger is nearer
    z: np.ndarray  # (H, W) [m]
    person: np.ndarray  # (H, W) int, index of the person seen, -1 = nobody


def measure_network(
    network: DepthNetwork, pictures: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> dict[str, float]:
    """`depth_quality` of a network on pictures (H, W, 3) uint8 with their true z and the person seen, both (H, W)."""
    maps, waiting = [], iter(pictures)
    while part := list(islice(waiting, _AT_ONCE)):
        for (_, z, person), disparity in zip(part, network.estimate([rgb for rgb, *_ in part]), strict=True):
            if not isinstance(disparity, np.ndarray):
                raise disparity
            maps.append(TrueDepth(disparity, z, person))
    return depth_quality(maps)


def depth_quality(pictures: Iterable[TrueDepth]) -> dict[str, float]:
    """Means over all people (and pairs) of all pictures: `DEPTH_MEASURES`, and `persons`, the number of people."""
    pixel, person, line, order = [], [], [], []
    for picture in pictures:
        seen = picture.person >= 0
        disparity, z = np.maximum(picture.disparity[seen], 0).astype(np.float64), picture.z[seen].astype(np.float64)
        inverse = disparity * z  # constant for a perfect network
        pixel.append(np.abs(inverse / np.median(inverse) - 1).mean())
        owner = picture.person[seen]
        people = [mine for index in np.unique(owner) if (mine := owner == index).sum() >= _LEAST_PIXELS]
        medians = [[1 / max(np.median(disparity[mine]), 1e-3), np.median(z[mine])] for mine in people]
        depth, true = np.array(medians).reshape(-1, 2).T
        person.append(np.abs(depth * np.median(true / depth) / true - 1))
        if len(depth) > 2:
            line.append(np.abs(np.polyval(np.polyfit(depth, true, 1, w=1 / true), depth) / true - 1))
        found, apart = (np.subtract.outer(values, values) for values in (depth, true))
        order.append((np.sign(found) == np.sign(apart))[apart > SAME_DEPTH])
    everyone = np.concatenate(person)
    return {
        "persons": len(everyone),
        "pixel_error": float(np.mean(pixel)),
        "person_error": float(everyone.mean()),
        "person_error_line": float(np.concatenate(line).mean()),
        "order": float(np.concatenate(order).mean()),
    }
