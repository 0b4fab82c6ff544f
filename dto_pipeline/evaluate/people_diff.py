"""`dto diff`: how much the people of two sides differ, person by person, in files of any kind.

Images are matched by their names (`matching.py`). People of an image are matched by pose; where several have the same
pose, by label row, or by the nearest shape and place; the others by the nearest place in the picture. Their order is
not used, because released DTO-Humans has another one (near people that moved, far ones that moved, the others). People
whose numbers cannot be used are counted and left out. Equal means equal bits. Differences are after minus before: z and
height in metres, the scale as z after over z before. Both sides are in memory, about 0.5 kB per person, and those of
their people that are compared once more.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dto_pipeline.data.people import People
from dto_pipeline.evaluate.matching import join_images, take_greedily
from dto_pipeline.maths.person_matching import pairs_within
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import UNUSED
from dto_pipeline.terminal import align

SAME_POSE = 1e-4  # largest difference of an angle of the same pose [rad]; float32 keeps 1e-6
HALF_A_BODY = 0.85  # people who are nearer to each other in the picture may be the same, see `match_people` [m]
_SAME_FOCAL = 1e-6  # relative; float32 keeps 6e-8
_NAMED = 5  # images a list names
_MEASURES = {
    "dz": ("z [m]", 1.0),
    "dheight": ("height [m]", 1.0),
    "dscale": ("scale: z after / before - 1 [%]", 100.0),
    "apart": ("distance between the two places [m]", 1.0),
}


@dataclass
class PeopleDiff:
    """Differences of two sides; see the module."""

    before: str
    after: str
    note: str  # how images were matched
    heights: bool  # whether a body was named, so that heights are known
    whole: bool = False  # whether both sides list all their images, so that one without a partner is a difference
    images: int = 0  # of both sides
    images_only: dict[str, int] = field(default_factory=dict)  # side -> images the other lacks
    accepted: dict[str, int] = field(default_factory=dict)  # both, before, after: images accepted there
    images_apart: list[str] = field(default_factory=list)  # the first images that one side alone has or accepts
    image_changes: Counter[str] = field(default_factory=Counter)  # "before -> after" of the status of common images
    people: int = 0  # matched
    by_place: int = 0  # of these, matched by their place in the picture: their poses differ
    different: int = 0  # matched people of whom a number or the status differs
    other_cameras: int = 0  # matched people whose focal lengths differ
    status_changes: Counter[str] = field(default_factory=Counter)  # "before -> after" of matched people
    people_only: dict[str, int] = field(default_factory=dict)  # side -> people of common images the other lacks
    people_missing: list[str] = field(default_factory=list)  # the first of them
    unusable: dict[str, int] = field(default_factory=dict)  # side -> people of common images: not usable, or duplicates
    values: dict[str, np.ndarray] = field(default_factory=dict)  # measure -> (k,) of the matched people
    worst: list[tuple[float, str]] = field(default_factory=list)  # |dz|, what to say; the worst first

    @property
    def equal(self) -> bool:
        """Every accepted image and every usable person is on both sides, with the same numbers and status."""
        apart = self.accepted["before"] + self.accepted["after"] + sum(self.people_only.values())
        alone = sum(self.images_only.values()) if self.whole else 0
        return not (apart or alone or self.image_changes or self.different or self.other_cameras)

    def row(self) -> dict[str, str]:
        """Cells of a table over several."""
        counts = {"images": self.images, "persons": self.people, "different": self.different}
        cells = {name: f"{count}" for name, count in counts.items()} | {"equal": "yes" if self.equal else "no"}
        dz = self.statistics("dz")
        return cells | {"median |dz| [m]": f"{dz['median']:.3g}" if dz else "-"}

    def statistics(self, measure: str) -> dict[str, float]:
        """Mean of the difference, and median, 90 %, 99 % and largest of its size."""
        known = self.values[measure][np.isfinite(self.values[measure])] if measure in self.values else np.zeros(0)
        if known.size == 0:
            return {}
        size = np.quantile(np.abs(known), (0.5, 0.9, 0.99, 1.0)).tolist()
        return {"mean": float(known.mean()), **dict(zip(("median", "p90", "p99", "largest"), size, strict=True))}

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("values", "worst")}
        measures = {name: self.statistics(name) for name in _MEASURES if name != "dheight" or self.heights}
        return {**kept, "equal": self.equal, "measures": measures, "worst": [text for _, text in self.worst]}

    def as_table(self) -> str:
        """Text for a terminal."""
        only, accepted = self.images_only, self.accepted
        lines = [
            f"before    {self.before}",
            f"after     {self.after}",
            f"images    {self.images} in both; {only['before']} before only, {only['after']} after only",
            f"accepted  {accepted['both']} in both; {accepted['before']} before only, {accepted['after']} after only",
            f"people    {self.people} matched, {self.different} of them different"
            + (f"; {self.by_place} by their place, their poses differ" if self.by_place else ""),
            f"missing   {self.people_only['before']} before only, {self.people_only['after']} after only",
            f"left out  {self.unusable['before']} before, {self.unusable['after']} after: not usable, or duplicates",
        ]
        lines += [f"cameras   of {self.other_cameras} people have another focal length"] if self.other_cameras else []
        lines += [f"image     {change}: {count}" for change, count in self.image_changes.most_common()]
        lines += [f"status    {change}: {count}" for change, count in self.status_changes.most_common()]
        head = ["after - before", "mean", "median size", "90 %", "99 %", "largest"]
        rows = [
            [title, *(f"{factor * value:.3g}" for value in found.values())]
            for name, (title, factor) in _MEASURES.items()
            if (found := self.statistics(name))
        ]
        lines += ["", *align([head, *rows])] if rows else []
        lines += [] if self.heights else ["heights were not compared: name the body with --body"]
        lines += [f"  {text}" for text in (*self.images_apart, *self.people_missing)]
        lines += [f"  {size:.3f} m: {text}" for size, text in self.worst]
        lines += [f"note: {self.note}"] if self.note else []
        return "\n".join([*lines, "equal" if self.equal else "different"])


def diff_people(
    before: People,
    after: People,
    statuses: Sequence[np.ndarray] = (),
    body: BodyModel | None = None,
    worst: int = 10,
) -> PeopleDiff:
    """Compare two sides.

    Args:
        before, after: the sides, called by their `source`.
        statuses: (N,) str of the images of either side, if both are labels of this project, which also list images
            that are not accepted, and give label rows.
        body: model that heights are measured on; None = heights are not compared.
        worst: how many people are named, those furthest apart first.

    Raises:
        ImageJoinError: no image in common.
    """
    join = join_images(before.images, after.images)
    diff = PeopleDiff(before.source, after.source, join.note, body is not None, whole=len(statuses) == 2)
    common = np.flatnonzero(join.true >= 0)
    diff.images = common.size
    if diff.whole:
        diff.image_changes = _changes(statuses[0][common], statuses[1][join.true[common]])
    accepted = before.accepted[common] & after.accepted[join.true[common]]
    diff.accepted["both"] = int(accepted.sum())
    crowds = []  # usable people of common images, the images they are in as numbered before, places in their images
    for side, people, other, partner, number in (
        ("before", before, after, join.true, np.arange(len(join.true))),
        ("after", after, before, join.found, join.found),
    ):
        alone = partner < 0
        apart = people.accepted & (alone | ~other.accepted[partner])
        diff.images_only[side], diff.accepted[side] = int(alone.sum()), int(apart.sum())
        named = people.images[apart | alone if diff.whole else apart][: _NAMED - len(diff.images_apart)]
        diff.images_apart += [f"{image}: {side} only" for image in named]
        there, image = ~alone[people.owner], number[people.owner]
        fit = people.usable & ~np.isin(people.status, UNUSED)
        diff.unusable[side] = int((~fit & there).sum())
        kept = np.flatnonzero(fit & there)
        crowds.append((people.take(kept), image[kept], kept - np.searchsorted(people.owner, people.owner[kept])))
    second, other_image, other_position = crowds.pop()
    first, image, position = crowds.pop()
    one, two, same = match_people(first, second, image, other_image, diff.whole)
    diff.people, diff.by_place = one.size, int((~same).sum())
    for side, people, places, matched in (("before", first, position, one), ("after", second, other_position, two)):
        missing = np.setdiff1d(np.arange(people.num_people), matched)
        diff.people_only[side] = missing.size
        missing = missing[: _NAMED - len(diff.people_missing)]
        diff.people_missing += [f"{_person(people, places, person)}: {side} only" for person in missing]
    del people  # with the next two lines: no more than one copy of each side is in memory
    first = first.take(one)
    second, position = second.take(two), position[one]
    _measure(diff, first, second, body)
    dz = diff.values["dz"]
    for row in (row for row in np.argsort(-np.abs(dz), kind="stable")[:worst].tolist() if dz[row] != 0):
        words = f"z {first.transl[row, 2]:.2f} -> {second.transl[row, 2]:.2f} m"
        diff.worst.append((abs(float(dz[row])), f"{_person(first, position, row)}: {words}"))
    return diff


def _person(people: People, position: np.ndarray, person: int) -> str:
    return f"{people.images[people.owner[person]]}, person {position[person]}"


def _changes(before: np.ndarray, after: np.ndarray) -> Counter[str]:
    """How often each status became another one, as "before -> after"."""
    changed = before != after
    return Counter(f"{old} -> {new}" for old, new in zip(before[changed], after[changed], strict=True))


def _measure(diff: PeopleDiff, before: People, after: People, body: BodyModel | None) -> None:
    """Count and keep the differences of matched people."""
    unequal = np.zeros(before.num_people, bool)
    for name in ("pose", "betas", "transl"):
        unequal |= (getattr(before, name) != getattr(after, name)).any(axis=1)
    known = (before.status != "") & (after.status != "")
    diff.status_changes = _changes(before.status[known], after.status[known])
    diff.different = int((unequal | (known & (before.status != after.status))).sum())
    focal = [side.intrinsics[:, [0, 1], [0, 1]] for side in (before, after)]
    with np.errstate(invalid="ignore"):
        gap = np.abs(focal[0] - focal[1]) > _SAME_FOCAL * np.abs(focal[0])
    diff.other_cameras = int(gap.any(axis=1).sum())
    places = [side.transl.astype(np.float64) for side in (before, after)]
    z = [place[:, 2] for place in places]
    diff.values = {
        "dz": z[1] - z[0],
        "dscale": z[1] / z[0] - 1,
        "apart": np.linalg.norm(places[1] - places[0], axis=1),
    }
    if body is not None:
        change = diff.values["dheight"] = np.zeros(before.num_people)
        rows = np.flatnonzero((before.betas != after.betas).any(axis=1))  # equal shapes have equal heights
        old, new = (body.rest_height(torch.from_numpy(side.betas[rows])).numpy() for side in (before, after))
        change[rows] = new - old
    diff.values = {name: values.astype(np.float32) for name, values in diff.values.items()}


def match_people(
    first: People, second: People, image: np.ndarray, other_image: np.ndarray, rows: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match n and m people of the same images.

    Args:
        first, second: usable people of each side.
        image, other_image: (n,), (m,) int, the images they are in.
        rows: both sides give label rows; of people with the same pose, those of the same row are the same.

    Returns:
        Positions of matched people on both sides, and whether they have the same pose.
    """
    left, right = pairs_within(image, other_image)
    same = np.arange(left.size)
    for angle in range(first.pose.shape[1]):  # one at a time: pairs times angles would fill the memory
        gap = np.abs(first.pose[left[same], angle] - second.pose[right[same], angle])
        same = same[gap <= SAME_POSE]
    one, two = left[same], right[same]
    shape = np.abs(first.betas[one] - second.betas[two])
    place = np.linalg.norm(first.transl[one] - second.transl[two], axis=1)
    # placing changes only coefficient 0 or 10 of the shape, and the place: they decide last
    cost = shape[:, 1:10].sum(axis=1) + 1e-3 * (shape[:, 0] + shape[:, 10] + place)
    if rows:
        cost[(first.row[one] == second.row[two]) & (first.row[one] >= 0)] = 0
    chosen = take_greedily(one, two, np.argsort(cost, kind="stable"))
    one, two = one[chosen], two[chosen]
    free = ~np.isin(left, one) & ~np.isin(right, two)
    left, right = left[free], right[free]
    places = first.transl[left], second.transl[right]
    rays = [side[:, :2] / side[:, 2:] for side in places]
    # distance in the picture, as a length at the nearer person's depth
    gap = np.linalg.norm(rays[0] - rays[1], axis=1) * np.minimum(*(side[:, 2] for side in places))
    near = gap <= HALF_A_BODY
    left, right = left[near], right[near]
    chosen = take_greedily(left, right, np.argsort(gap[near], kind="stable"))
    pairs = np.concatenate([one, left[chosen]]), np.concatenate([two, right[chosen]])
    order = np.argsort(pairs[0], kind="stable")
    alike = np.concatenate([np.ones(one.size, bool), np.zeros(chosen.size, bool)])
    return pairs[0][order], pairs[1][order], alike[order]
