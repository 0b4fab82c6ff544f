"""`dto diff` between files of different makers: how far one side's people stand from the other's, person by person.

Images meet by their names (`matching.py`), people of an image by what they are: the same pose first, the nearer shape
and place where several have it; who is left over by the nearest place in the picture. Nothing is taken from the order,
because released DTO-Humans has another one (near people that moved, far ones that moved, the others). People whose
numbers cannot be used are counted and left out. Differences are after minus before: z and height in metres, the scale
as z after over z before.

Holds four numbers per matched person, and besides what `People` holds of the second side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from dto_pipeline.data.people import People
from dto_pipeline.evaluate.matching import join_images, pairs_within, take_greedily
from dto_pipeline.evaluate.tables import align
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import PersonStatus

SAME_POSE = 1e-4  # largest difference of an angle of the same pose [rad]; float32 keeps 1e-6
HALF_A_BODY = 0.85  # people nearer than this in the picture may be the same, at the nearer one's distance [m]
_SAME_FOCAL = 1e-6  # relative; float32 keeps 6e-8
_PAIRS = 1 << 17  # pairs of people compared at once: 72 numbers each
_BODIES = 512  # heights computed at once: 6890 vertices each
_NAMED = 5  # images a list names
_MEASURES = {
    "dz": ("z [m]", 1.0),
    "dheight": ("height [m]", 1.0),
    "dscale": ("scale: z after / before - 1 [%]", 100.0),
    "apart": ("distance between the two places [m]", 1.0),
}


@dataclass(frozen=True)
class WorstScene:
    """An image whose people stand far from each other on the two sides: P people, NaN where a side lacks one."""

    before_image: str
    after_image: str
    largest_dz: float  # [m]
    intrinsics: np.ndarray  # (3, 3) of the side before, of the other where it knows none
    size: np.ndarray  # (2,) H, W, NaN = unknown
    before: dict[str, np.ndarray]  # pose (P, 72), betas (P, 11), transl (P, 3)
    after: dict[str, np.ndarray]


@dataclass
class PeopleDiff:
    """What two sides say differently; see the module."""

    before: str
    after: str
    note: str  # how images were recognised
    heights: bool  # a body was named, so heights are known
    images: int = 0  # of both sides
    images_only: dict[str, int] = field(default_factory=dict)  # side -> images the other lacks
    accepted: dict[str, int] = field(default_factory=dict)  # both, before, after: images accepted there
    accepted_apart: list[str] = field(default_factory=list)  # the first images that one side alone accepts
    people: int = 0  # matched
    by_place: int = 0  # of these, matched by their place in the picture, their poses differ
    different: int = 0  # matched people of whom a number differs
    other_cameras: int = 0  # matched people whose focal lengths differ
    people_only: dict[str, int] = field(default_factory=dict)  # side -> people of common images the other lacks
    people_missing: list[str] = field(default_factory=list)  # the first of them
    unusable: dict[str, int] = field(default_factory=dict)  # side -> people left out: no usable numbers
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)  # measure -> one number per matched person
    worst: list[tuple[float, str]] = field(default_factory=list)  # |dz|, what to say; the worst first
    scenes: list[WorstScene] = field(default_factory=list)  # the worst first

    @property
    def equal(self) -> bool:
        """Every accepted image and every usable person is on both sides, with the same numbers."""
        apart = self.accepted["before"] + self.accepted["after"] + sum(self.people_only.values())
        return not (apart or self.different or self.other_cameras)

    def row(self) -> dict[str, str]:
        """Cells of a table over several."""
        counts = {"images": self.images, "persons": self.people, "different": self.different}
        cells = {name: f"{count}" for name, count in counts.items()} | {"equal": "yes" if self.equal else "no"}
        dz = self.statistics("dz")
        return cells | {"median |dz| [m]": f"{dz['median']:.3g}" if dz else "-"}

    def statistics(self, measure: str) -> dict[str, float]:
        """Mean of the difference, and median, 90 %, 99 % and largest of its size."""
        known = np.concatenate(self.values[measure]) if self.values.get(measure) else np.zeros(0)
        known = known[np.isfinite(known)]
        if known.size == 0:
            return {}
        size = np.quantile(np.abs(known), (0.5, 0.9, 0.99, 1.0)).tolist()
        return {"mean": float(known.mean()), **dict(zip(("median", "p90", "p99", "largest"), size, strict=True))}

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        inner = ("values", "worst", "scenes")
        kept = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in inner}
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
            f"left out  {self.unusable['before']} before, {self.unusable['after']} after: no usable numbers",
        ]
        lines += [f"cameras   of {self.other_cameras} people have another focal length"] if self.other_cameras else []
        head = ["after - before", "mean", "median size", "90 %", "99 %", "largest"]
        rows = [
            [title, *(f"{factor * value:.3g}" for value in found.values())]
            for name, (title, factor) in _MEASURES.items()
            if (found := self.statistics(name))
        ]
        lines += ["", *align([head, *rows])] if rows else []
        lines += [] if self.heights else ["heights were not compared: name the body with --body"]
        lines += [f"  {text}" for text in (*self.accepted_apart, *self.people_missing)]
        lines += [f"  {size:.3f} m: {text}" for size, text in self.worst]
        lines += [f"note: {self.note}"] if self.note else []
        return "\n".join([*lines, "equal" if self.equal else "different"])


def diff_people(
    parts: Iterable[People],
    names: Sequence[str],
    other: People,
    titles: tuple[str, str],
    body: BodyModel | None = None,
    worst: int = 10,
    swapped: bool = False,
) -> PeopleDiff:
    """Compare two sides.

    Args:
        parts: the people of one side, a part of its images at a time.
        names: all images of the parts, in their order.
        other: the people of the other side.
        titles: what the sides are called: before, after.
        body: model that heights are measured on; None = heights are not compared.
        worst: persons and scenes that are kept, those furthest apart.
        swapped: the parts are the side after.

    Raises:
        ImageJoinError: no image in common.
    """
    join = join_images(names, other.images.tolist())
    diff = PeopleDiff(titles[0], titles[1], join.note, body is not None)
    diff.accepted = dict.fromkeys(("both", "before", "after"), 0)
    compare = _Compare(diff, other, body, worst, swapped)
    first = 0
    for part in parts:
        compare.part(part, join.true[first : first + part.num_images])
        first += part.num_images
    compare.finish(join.found < 0)
    return diff


class _Compare:
    """Counts into `diff` what parts of one side ("own") and the other side as a whole ("theirs") differ in."""

    def __init__(self, diff: PeopleDiff, other: People, body: BodyModel | None, keep: int, swapped: bool) -> None:
        self.diff, self.other, self.body, self.keep, self.swapped = diff, other, body, keep, swapped
        self.own, self.theirs = ("after", "before") if swapped else ("before", "after")
        self.fit = _fit(other)
        self.starts = np.searchsorted(other.owner, np.arange(other.num_images + 1))
        for side in (self.own, self.theirs):
            diff.people_only[side] = diff.images_only[side] = diff.unusable[side] = 0
        diff.unusable[self.theirs] = int((~self.fit).sum())

    def part(self, part: People, place: np.ndarray) -> None:
        """Compare some images; place: (N,) where each is on the other side, -1 = nowhere."""
        diff, common = self.diff, place >= 0
        diff.images += int(common.sum())
        diff.images_only[self.own] += int((~common).sum())
        theirs = np.where(common, self.other.accepted[place], False)
        diff.accepted["both"] += int((part.accepted & theirs).sum())
        for side, alone in ((self.own, part.accepted & ~theirs), (self.theirs, theirs & ~part.accepted)):
            diff.accepted[side] += int(alone.sum())
            _name(diff.accepted_apart, (f"{part.images[i]}: {side} only" for i in np.flatnonzero(alone)))
        fit = _fit(part)
        diff.unusable[self.own] += int((~fit).sum())
        counts = np.bincount(part.owner[fit], minlength=part.num_images)
        pairs = np.cumsum(np.where(common, counts * np.diff(self.starts)[place], 0))
        start = 0
        while start < part.num_images:  # images cut so that each cut has about `_PAIRS` pairs of people
            stop = int(np.searchsorted(pairs, (pairs[start - 1] if start else 0) + _PAIRS, side="right"))
            stop = min(max(start + 1, stop), part.num_images)
            inside = (part.owner >= start) & (part.owner < stop)
            images = np.sort(place[start:stop][common[start:stop]])
            ranges = [np.arange(self.starts[image], self.starts[image + 1]) for image in images.tolist()]
            theirs = np.concatenate([np.zeros(0, np.int64), *ranges])
            self._people(part, np.flatnonzero(fit & inside & common[part.owner]), theirs[self.fit[theirs]], place)
            start = stop

    def finish(self, alone: np.ndarray) -> None:
        """Images that only the other side has: alone (M,) bool."""
        self.diff.images_only[self.theirs] += int(alone.sum())
        accepted = np.flatnonzero(alone & self.other.accepted)
        self.diff.accepted[self.theirs] += accepted.size
        _name(self.diff.accepted_apart, (f"{self.other.images[i]}: {self.theirs} only" for i in accepted))

    def _people(self, part: People, own: np.ndarray, theirs: np.ndarray, place: np.ndarray) -> None:
        """Match and compare the people of some common images."""
        mine, them = _gather(part, own), _gather(self.other, theirs)
        first, second, same = match_people(mine, them, place[part.owner[own]], self.other.owner[theirs])
        self.diff.people += first.size
        self.diff.by_place += int((~same).sum())
        for side, people, matched, names in (
            (self.own, own, first, part),
            (self.theirs, theirs, second, self.other),
        ):
            alone = np.setdiff1d(np.arange(people.size), matched)
            self.diff.people_only[side] += alone.size
            _name(self.diff.people_missing, (f"{_person(names, people[k])}: {side} only" for k in alone))
        sides = ({k: v[first] for k, v in mine.items()}, {k: v[second] for k, v in them.items()})
        before, after = sides[::-1] if self.swapped else sides
        dz = self._measure(before, after)
        for row in (r for r in np.argsort(-np.abs(dz), kind="stable")[: self.keep].tolist() if dz[r] != 0):
            z = [float(side["transl"][row, 2]) for side in (before, after)]
            words = f"{_person(part, own[first[row]])}: z {z[0]:.2f} -> {z[1]:.2f} m"
            self.diff.worst.append((abs(float(dz[row])), words))
        self.diff.worst = sorted(self.diff.worst, key=lambda one: -one[0])[: self.keep]
        least = self.diff.scenes[-1].largest_dz if len(self.diff.scenes) >= self.keep else 0.0
        largest = np.zeros(part.num_images)
        np.maximum.at(largest, part.owner[own[first]], np.abs(dz))
        for image in np.argsort(-largest, kind="stable")[: self.keep].tolist():
            if largest[image] > least:
                self.diff.scenes.append(self._scene(part, image, own, theirs, (first, second), float(largest[image])))
        self.diff.scenes = sorted(self.diff.scenes, key=lambda one: -one.largest_dz)[: self.keep]

    def _measure(self, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> np.ndarray:
        """Count and keep what matched people differ in; z after minus before (k,) [m]."""
        unequal = np.zeros(len(before["pose"]), bool)
        for name in ("pose", "betas", "transl"):
            unequal |= (before[name] != after[name]).any(axis=1)
        self.diff.different += int(unequal.sum())
        focal = [side["intrinsics"][:, [0, 1], [0, 1]] for side in (before, after)]
        with np.errstate(invalid="ignore"):
            gap = np.abs(focal[0] - focal[1]) > _SAME_FOCAL * np.abs(focal[0])
        self.diff.other_cameras += int(gap.any(axis=1).sum())
        z = [side["transl"][:, 2].astype(np.float64) for side in (before, after)]
        apart = np.linalg.norm(after["transl"].astype(np.float64) - before["transl"], axis=1)
        found = {"dz": z[1] - z[0], "dscale": z[1] / z[0] - 1, "apart": apart}
        if self.body is not None:
            found["dheight"] = _height_change(before["betas"], after["betas"], self.body)
        for name, values in found.items():
            self.diff.values.setdefault(name, []).append(values.astype(np.float32))
        return self.diff.values["dz"][-1]

    def _scene(
        self,
        part: People,
        image: int,
        own: np.ndarray,
        theirs: np.ndarray,
        pairs: tuple[np.ndarray, np.ndarray],
        largest: float,
    ) -> WorstScene:
        """Everybody of one image on both sides, in one order."""
        here = np.flatnonzero(part.owner[own] == image)
        partner = dict(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
        second = np.array([partner.get(k, -1) for k in here.tolist()], np.int64)
        other_image = int(self.other.owner[theirs[second[second >= 0][0]]])
        alone = np.setdiff1d(np.flatnonzero(self.other.owner[theirs] == other_image), second)
        mine = _filled(part, own[here], np.ones(here.size, bool), alone.size)
        known = np.concatenate([second >= 0, np.ones(alone.size, bool)])
        them = _filled(self.other, theirs[np.concatenate([np.maximum(second, 0), alone])], known, 0)
        cameras = (part.intrinsics[own[here[0]]], self.other.intrinsics[theirs[second[second >= 0][0]]])
        before, after = (them, mine) if self.swapped else (mine, them)
        names = (str(part.images[image]), str(self.other.images[other_image]))
        names = names[::-1] if self.swapped else names
        camera = cameras[0] if np.isfinite(cameras[0]).all() else cameras[1]
        size = part.size[image] if np.isfinite(part.size[image]).all() else self.other.size[other_image]
        return WorstScene(names[0], names[1], largest, camera, size, before, after)


def _name(where: list[str], texts: Iterable[str]) -> None:
    where += islice(texts, _NAMED - len(where))


def match_people(
    first: dict[str, np.ndarray], second: dict[str, np.ndarray], image: np.ndarray, other_image: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who is who among n and m people of the same images.

    Args:
        first, second: pose (n, 72), betas (n, 11), transl (n, 3) of each side.
        image, other_image: (n,), (m,) int.

    Returns:
        Positions of matched people on both sides, and whether they have the same pose.
    """
    left, right = pairs_within(image, other_image)
    same = np.concatenate(
        [
            np.abs(first["pose"][left[k : k + _PAIRS]] - second["pose"][right[k : k + _PAIRS]]).max(axis=1) <= SAME_POSE
            for k in range(0, left.size, _PAIRS)
        ]
        or [np.zeros(0, bool)]
    )
    one, two = left[same], right[same]
    shape = np.abs(first["betas"][one] - second["betas"][two])
    place = np.linalg.norm(first["transl"][one] - second["transl"][two], axis=1)
    # a placed person keeps the shape but for its size: coefficients 0 and 10 and the place tell twins apart last
    cost = shape[:, 1:10].sum(axis=1) + 1e-3 * (shape[:, 0] + shape[:, 10] + place)
    chosen = take_greedily(one, two, np.argsort(cost, kind="stable"))
    one, two = one[chosen], two[chosen]
    free = ~np.isin(left, one) & ~np.isin(right, two)
    left, right = left[free], right[free]
    places = first["transl"][left], second["transl"][right]
    rays = [side[:, :2] / side[:, 2:] for side in places]  # how far apart in the picture, at the nearer one's distance:
    gap = np.linalg.norm(rays[0] - rays[1], axis=1) * np.minimum(*(side[:, 2] for side in places))
    near = gap <= HALF_A_BODY
    left, right = left[near], right[near]
    chosen = take_greedily(left, right, np.argsort(gap[near], kind="stable"))
    rows = np.concatenate([one, left[chosen]]), np.concatenate([two, right[chosen]])
    order = np.argsort(rows[0], kind="stable")
    alike = np.concatenate([np.ones(one.size, bool), np.zeros(chosen.size, bool)])
    return rows[0][order], rows[1][order], alike[order]


def _fit(people: People) -> np.ndarray:
    """(n,) bool: numbers that can be compared."""
    return people.usable & (people.status != str(PersonStatus.INVALID_LABEL))


def _gather(people: People, index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(people, name)[index]) for name in ("pose", "betas", "transl", "intrinsics")}


def _filled(people: People, index: np.ndarray, known: np.ndarray, more: int) -> dict[str, np.ndarray]:
    """Bodies of some people, NaN for those not known and for `more` after them."""
    found = {}
    for name in ("pose", "betas", "transl"):
        values = np.where(known[:, None], np.asarray(getattr(people, name)[index]), np.nan)
        found[name] = np.pad(values, ((0, more), (0, 0)), constant_values=np.nan).astype(np.float32)
    return found


def _person(people: People, person: int) -> str:
    """The image of a person and its position there."""
    image = people.owner[person]
    return f"{people.images[image]}, person {int(person - np.searchsorted(people.owner, image))}"


def _height_change(before: np.ndarray, after: np.ndarray, body: BodyModel) -> np.ndarray:
    """(n,) height after minus before [m]; equal shapes have equal heights."""
    change = np.zeros(len(before))
    rows = np.flatnonzero((before != after).any(axis=1))
    for start in range(0, rows.size, _BODIES):
        some = rows[start : start + _BODIES]
        heights = [body.rest_height(torch.from_numpy(np.ascontiguousarray(side[some]))) for side in (after, before)]
        change[some] = (heights[0] - heights[1]).numpy()
    return change
