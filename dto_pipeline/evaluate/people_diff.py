"""`dto diff`: how far the people of two sides stand apart, person by person, whoever wrote them.

Images meet by their names (`matching.py`), people of an image by what they are: the same pose first, of several the
same label row or the nearer shape and place; who is left over by the nearest place in the picture. Nothing is taken
from the order, because released DTO-Humans has another one (near people that moved, far ones that moved, the others).
People whose numbers cannot be used are counted and left out. Equal means equal bits. Differences are after minus
before: z and height in metres, the scale as z after over z before.

Sides are read a part at a time; what is held are four numbers per matched person.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dto_pipeline.data.label_files import read_label_files
from dto_pipeline.data.people import People, read_people
from dto_pipeline.evaluate.matching import join_images, pairs_within, take_greedily
from dto_pipeline.models.body import BodyModel
from dto_pipeline.status import PersonStatus
from dto_pipeline.tables import align

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
class Side:
    """One side of a comparison: N images, read a part at a time."""

    title: str
    names: Sequence[str]  # of the images
    accepted: np.ndarray  # (N,) bool
    starts: np.ndarray  # (parts + 1,) int64: the first image of each part, then N
    read: Callable[[int], People]  # the people of a part
    judged: bool  # labels of this project: they list images that are not accepted too, and tell label rows
    status: np.ndarray | None = None  # (N,) str of each image; None = not told

    @classmethod
    def of_people(cls, title: str, people: People) -> Side:
        """A file of any kind; one that does not say is taken to list accepted images only."""
        ends = np.array([0, people.num_images])
        return cls(title, people.images.tolist(), people.accepted, ends, lambda _: people, judged=False)

    @classmethod
    def of_labels(cls, title: str, files: Sequence[str | Path], name: str) -> Side:
        """Label files of this project, whose images are called as the column `name` says. Raises: LabelsError."""
        tables = [read_label_files([file], [name, "is_accepted", "status"]) for file in files]
        names = [image for table in tables for image in table.column(name).to_pylist()]
        accepted = np.concatenate([table.column("is_accepted").to_numpy() for table in tables]).astype(bool)
        status = np.array([word for table in tables for word in table.column("status").to_pylist()], np.str_)
        starts = np.cumsum([0, *(table.num_rows for table in tables)])
        read = lru_cache(maxsize=1)(lambda part: read_people([files[part]]))
        return cls(title, names, accepted, starts, read, judged=True, status=status)


@dataclass
class PeopleDiff:
    """What two sides say differently; see the module."""

    before: str
    after: str
    note: str  # how images were recognised
    heights: bool  # a body was named, so heights are known
    whole: bool  # both sides list all their images: one without a partner is a difference
    images: int = 0  # of both sides
    images_only: dict[str, int] = field(default_factory=dict)  # side -> images the other lacks
    accepted: dict[str, int] = field(default_factory=dict)  # both, before, after: images accepted there
    images_apart: list[str] = field(default_factory=list)  # the first images that one side alone has or accepts
    image_changes: Counter[str] = field(default_factory=Counter)  # "before -> after" of the status of common images
    people: int = 0  # matched
    by_place: int = 0  # of these, matched by their place in the picture, their poses differ
    different: int = 0  # matched people of whom a number or the status differs
    other_cameras: int = 0  # matched people whose focal lengths differ
    status_changes: Counter[str] = field(default_factory=Counter)  # "before -> after" of matched people
    people_only: dict[str, int] = field(default_factory=dict)  # side -> people of common images the other lacks
    people_missing: list[str] = field(default_factory=list)  # the first of them
    unusable: dict[str, int] = field(default_factory=dict)  # side -> people of common images without usable numbers
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)  # measure -> one number per matched person
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
        known = np.concatenate(self.values[measure]) if self.values.get(measure) else np.zeros(0)
        known = known[np.isfinite(known)]
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
            f"left out  {self.unusable['before']} before, {self.unusable['after']} after: no usable numbers",
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


def diff_people(before: Side, after: Side, body: BodyModel | None = None, worst: int = 10) -> PeopleDiff:
    """Compare two sides.

    Args:
        before, after: the sides.
        body: model that heights are measured on; None = heights are not compared.
        worst: persons that are named, those furthest apart.

    Raises:
        ImageJoinError: no image in common.
        LabelsError: a label file cannot be read.
    """
    join = join_images(before.names, after.names)
    diff = PeopleDiff(before.title, after.title, join.note, body is not None, before.judged and after.judged)
    place, common = join.true, join.true >= 0  # of the images before among those after
    diff.images = int(common.sum())
    if before.status is not None and after.status is not None:
        words = before.status[common], after.status[place[common]]
        diff.image_changes.update(f"{old} -> {new}" for old, new in zip(*words, strict=True) if old != new)
    alone = {"before": ~common, "after": join.found < 0}
    partner = {
        "before": common & after.accepted[place],
        "after": (join.found >= 0) & before.accepted[join.found],
    }
    diff.accepted["both"] = int((before.accepted & partner["before"]).sum())
    for side, own in (("before", before), ("after", after)):
        diff.images_only[side] = int(alone[side].sum())
        apart = own.accepted & ~partner[side]
        diff.accepted[side] = int(apart.sum())
        diff.people_only[side] = diff.unusable[side] = 0
        told = apart | alone[side] if diff.whole else apart
        _name(diff.images_apart, (f"{own.names[i]}: {side} only" for i in np.flatnonzero(told).tolist()))
    for part, (start, stop) in enumerate(zip(before.starts[:-1], before.starts[1:], strict=True)):
        images = np.arange(start, stop)[common[start:stop]]
        others = np.searchsorted(after.starts, place[images], "right") - 1
        for other in np.unique(others).tolist():
            some = images[others == other]
            _compare_images(diff, (before, part, some), (after, other, place[some]), body, worst)
    return diff


def _name(where: list[str], texts: Iterable[str]) -> None:
    where += islice(texts, _NAMED - len(where))


@dataclass(frozen=True)
class _Crowd:
    """n people of some images of a side, all usable."""

    people: People
    image: np.ndarray  # (n,) which of the images
    words: list[str]  # of the images
    position: np.ndarray  # (n,) in the image

    def name(self, person: int) -> str:
        return f"{self.words[self.image[person]]}, person {self.position[person]}"


def _gather(people: People, images: np.ndarray, words: list[str]) -> tuple[_Crowd, int]:
    """The usable people of some images of a part, and how many are not."""
    first, last = np.searchsorted(people.owner, np.stack([images, images + 1]))
    image = np.repeat(np.arange(images.size), last - first)
    position = np.arange(image.size) - np.searchsorted(image, image)
    some = people.take(first[image] + position)
    fit = some.usable & (some.status != str(PersonStatus.INVALID_LABEL))
    return _Crowd(some.take(fit), image[fit], words, position[fit]), int((~fit).sum())


_Images = tuple[Side, int, np.ndarray]  # a side, one of its parts, and images of it


def _compare_images(diff: PeopleDiff, before: _Images, after: _Images, body: BodyModel | None, worst: int) -> None:
    """Count what the people of images that meet differ in, some images at a time."""
    parts = [side.read(part) for side, part, _ in (before, after)]
    local = [images - side.starts[part] for side, part, images in (before, after)]
    counts = [np.diff(np.searchsorted(p.owner, [i, i + 1]), axis=0)[0] for p, i in zip(parts, local, strict=True)]
    cut = np.cumsum(counts[0] * counts[1]) // _PAIRS  # images of one number have about `_PAIRS` pairs of people
    for number in np.unique(cut).tolist():
        rows = np.flatnonzero(cut == number)
        crowds = []
        for name, (side, _, images), people, own in zip(
            ("before", "after"), (before, after), parts, local, strict=True
        ):
            crowd, unusable = _gather(people, own[rows], [side.names[image] for image in images[rows]])
            diff.unusable[name] += unusable
            crowds.append(crowd)
        _compare_people(diff, crowds[0], crowds[1], body, worst)


def _compare_people(diff: PeopleDiff, before: _Crowd, after: _Crowd, body: BodyModel | None, worst: int) -> None:
    """Match and compare the people of some images."""
    first, second, same = match_people(before.people, after.people, before.image, after.image, diff.whole)
    diff.people += first.size
    diff.by_place += int((~same).sum())
    for side, crowd, matched in (("before", before, first), ("after", after, second)):
        alone = np.setdiff1d(np.arange(crowd.image.size), matched)
        diff.people_only[side] += alone.size
        _name(diff.people_missing, (f"{crowd.name(k)}: {side} only" for k in alone))
    dz = _measure(diff, before.people.take(first), after.people.take(second), body)
    for row in (r for r in np.argsort(-np.abs(dz), kind="stable")[:worst].tolist() if dz[r] != 0):
        z = [float(side.people.transl[k[row], 2]) for side, k in ((before, first), (after, second))]
        words = f"{before.name(first[row])}: z {z[0]:.2f} -> {z[1]:.2f} m"
        diff.worst.append((abs(float(dz[row])), words))
    diff.worst = sorted(diff.worst, key=lambda one: -one[0])[:worst]


def _measure(diff: PeopleDiff, before: People, after: People, body: BodyModel | None) -> np.ndarray:
    """Count and keep what matched people differ in; z after minus before (k,) [m]."""
    unequal = np.zeros(before.num_people, bool)
    for name in ("pose", "betas", "transl"):
        unequal |= (getattr(before, name) != getattr(after, name)).any(axis=1)
    changed = (before.status != after.status) & (before.status != "") & (after.status != "")
    pairs = zip(before.status[changed], after.status[changed], strict=True)
    diff.status_changes.update(f"{old} -> {new}" for old, new in pairs)
    diff.different += int((unequal | changed).sum())
    focal = [side.intrinsics[:, [0, 1], [0, 1]] for side in (before, after)]
    with np.errstate(invalid="ignore"):
        gap = np.abs(focal[0] - focal[1]) > _SAME_FOCAL * np.abs(focal[0])
    diff.other_cameras += int(gap.any(axis=1).sum())
    places = [side.transl.astype(np.float64) for side in (before, after)]
    z = [place[:, 2] for place in places]
    apart = np.linalg.norm(places[1] - places[0], axis=1)
    found = {"dz": z[1] - z[0], "dscale": z[1] / z[0] - 1, "apart": apart}
    if body is not None:
        found["dheight"] = _height_change(before.betas, after.betas, body)
    for name, values in found.items():
        diff.values.setdefault(name, []).append(values.astype(np.float32))
    return diff.values["dz"][-1]


def match_people(
    first: People, second: People, image: np.ndarray, other_image: np.ndarray, rows: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who is who among n and m people of the same images.

    Args:
        first, second: usable people of each side.
        image, other_image: (n,), (m,) int, the images they stand in.
        rows: both sides tell label rows: of people of one pose those of the same row are the same.

    Returns:
        Positions of matched people on both sides, and whether they have the same pose.
    """
    left, right = pairs_within(image, other_image)
    same = np.concatenate(
        [
            np.abs(first.pose[left[k : k + _PAIRS]] - second.pose[right[k : k + _PAIRS]]).max(axis=1) <= SAME_POSE
            for k in range(0, left.size, _PAIRS)
        ]
        or [np.zeros(0, bool)]
    )
    one, two = left[same], right[same]
    shape = np.abs(first.betas[one] - second.betas[two])
    place = np.linalg.norm(first.transl[one] - second.transl[two], axis=1)
    # a placed person keeps the shape but for its size: coefficients 0 and 10 and the place tell twins apart last
    cost = shape[:, 1:10].sum(axis=1) + 1e-3 * (shape[:, 0] + shape[:, 10] + place)
    if rows:
        cost[(first.row[one] == second.row[two]) & (first.row[one] >= 0)] = 0
    chosen = take_greedily(one, two, np.argsort(cost, kind="stable"))
    one, two = one[chosen], two[chosen]
    free = ~np.isin(left, one) & ~np.isin(right, two)
    left, right = left[free], right[free]
    places = first.transl[left], second.transl[right]
    rays = [side[:, :2] / side[:, 2:] for side in places]  # how far apart in the picture, at the nearer one's distance:
    gap = np.linalg.norm(rays[0] - rays[1], axis=1) * np.minimum(*(side[:, 2] for side in places))
    near = gap <= HALF_A_BODY
    left, right = left[near], right[near]
    chosen = take_greedily(left, right, np.argsort(gap[near], kind="stable"))
    pairs = np.concatenate([one, left[chosen]]), np.concatenate([two, right[chosen]])
    order = np.argsort(pairs[0], kind="stable")
    alike = np.concatenate([np.ones(one.size, bool), np.zeros(chosen.size, bool)])
    return pairs[0][order], pairs[1][order], alike[order]


def _height_change(before: np.ndarray, after: np.ndarray, body: BodyModel) -> np.ndarray:
    """(n,) height after minus before [m]; equal shapes have equal heights."""
    change = np.zeros(len(before))
    rows = np.flatnonzero((before != after).any(axis=1))
    for start in range(0, rows.size, _BODIES):
        some = rows[start : start + _BODIES]
        heights = [body.rest_height(torch.from_numpy(np.ascontiguousarray(side[some]))) for side in (after, before)]
        change[some] = (heights[0] - heights[1]).numpy()
    return change
