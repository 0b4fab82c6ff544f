"""`dto diff`: what two sets of labels say differently about the same people.

Joins images by their key and people by their index; reads both sides shard by shard. Equal means equal bits (NaN equals
NaN); columns that describe the run itself (origins, file hashes) are left out. A number that is known on one side only
(not finite on the other) is a difference without a size: it is counted apart. Holds a few numbers per person that
differs. Metres, radians, sigma.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.label_files import LabelColumns, check_one_body, flatten_table, read_label_files
from dto_pipeline.data.labels import read_labels
from dto_pipeline.data.storage import Location
from dto_pipeline.view.run_files import find_labels

_PEOPLE = ("source_row", "pose", "betas", "transl", "scale", "height_m", "status")
_IMAGES = ("image_id", "status", "is_accepted", "mean_height_deviation")
MEASURES = {
    "transl": "moved apart [m]",
    "height_m": "height [m]",
    "betas": "largest shape coefficient",
    "pose": "largest pose angle [rad]",
}


@dataclass
class LabelDiff:
    """What two sets of labels differ in. Differences are those of persons that both sides have."""

    before: str
    after: str
    only_before: list[str] = field(default_factory=list)  # image keys
    only_after: list[str] = field(default_factory=list)
    images: int = 0  # common to both
    images_different: int = 0
    other_people: list[str] = field(default_factory=list)  # images whose people are not the same persons
    persons: int = 0
    persons_different: int = 0
    image_changes: Counter[str] = field(default_factory=Counter)  # "before -> after" of status and acceptance
    person_changes: Counter[str] = field(default_factory=Counter)
    became_unknown: Counter[str] = field(default_factory=Counter)  # measure -> persons with a number before only
    became_known: Counter[str] = field(default_factory=Counter)  # and with a number after only
    unknown_persons: list[str] = field(default_factory=list)  # the first of the former, a line for each measure
    sizes: dict[str, list[np.ndarray]] = field(default_factory=dict)  # measure -> of persons in whom it differs
    worst: list[tuple[float, str]] = field(default_factory=list)  # the persons that moved most, the worst first

    @property
    def equal(self) -> bool:
        return not (self.only_before or self.only_after or self.images_different or self.other_people)

    def row(self) -> dict[str, str]:
        """Cells of a table over several."""
        counts = {"images": self.images, "persons": self.persons, "different": self.persons_different}
        return {name: f"{count}" for name, count in counts.items()} | {"equal": "yes" if self.equal else "no"}

    def quantiles(self, measure: str) -> list[float]:
        """Median, 90 % and largest difference among persons in whom the measure is known and differs."""
        return np.quantile(np.concatenate(self.sizes[measure]), (0.5, 0.9, 1.0)).tolist()

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "sizes"}
        quantiles = {name: self.quantiles(name) for name in self.sizes}
        return {**plain, "equal": self.equal, "quantiles": quantiles, "worst": [text for _, text in self.worst]}

    def as_table(self) -> str:
        """Text for a terminal."""
        lines = [
            f"before   {self.before}",
            f"after    {self.after}",
            f"images   {self.images} in both, {self.images_different} of them different; "
            f"{len(self.only_before)} only before, {len(self.only_after)} only after",
            f"persons  {self.persons} compared, {self.persons_different} of them different",
        ]
        lists = {"only before": self.only_before, "only after": self.only_after, "other people": self.other_people}
        for name, keys in lists.items():
            lines += [f"  {name}: {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"] if keys else []
        for title, changes in (("image", self.image_changes), ("person", self.person_changes)):
            lines += [f"  {title} {change:<36} {count:>9}" for change, count in changes.most_common()]
        if self.sizes:
            lines.append(f"  {'where it differs':<28} {'median':>10} {'90 %':>10} {'largest':>10}")
        for name in (name for name in MEASURES if name in self.sizes):
            lines.append(f"  {MEASURES[name]:<28} " + " ".join(f"{value:>10.3g}" for value in self.quantiles(name)))
        for title, counts in (("became unknown", self.became_unknown), ("became known", self.became_known)):
            lines += [f"  {MEASURES[name]} {title}: {count} persons" for name, count in counts.items()]
        lines += [f"  {text}" for text in (*(text for _, text in self.worst), *self.unknown_persons)]
        return "\n".join([*lines, "equal" if self.equal else "different"])


def diff_labels(before: str | Path, after: str | Path, worst: int = 10) -> LabelDiff:
    """Compare two runs, exports or label files.

    Args:
        before, after: run folder, folder of label files, or one file.
        worst: how many persons are named: those that moved most, and those of whom something became unknown.

    Raises:
        LabelsError: a side holds no labels, a file that cannot be read, or labels of different body models.
    """
    diff = LabelDiff(str(before), str(after))
    found: set[str] = set()
    left, theirs = find_labels(before), find_labels(after)
    check_one_body([*left, *theirs])
    right = _Side(theirs)
    for path in left:
        columns = _read(path)
        ids = columns.images["image_id"].tolist()
        common = [row for row, image in enumerate(ids) if image in right.places]
        diff.only_before += [image for image in ids if image not in right.places]
        found.update(ids)
        for rows, other in right.gather([ids[row] for row in common]):
            _compare(diff, columns.take(np.array(common)[rows]), other, worst)
    diff.only_after = [image for image in right.places if image not in found]
    return diff


class _Side:
    """Labels of one side, opened file by file as the other side asks for them; holds the file last read."""

    def __init__(self, paths: list[Location]) -> None:
        self.paths = paths
        self.places: dict[str, tuple[int, int]] = {}  # image key -> file, row
        for number, path in enumerate(paths):
            ids = read_label_files([path], ["image_id"]).column("image_id").to_pylist()
            self.places.update({image: (number, row) for row, image in enumerate(ids)})
        self._open: tuple[int, LabelColumns] | None = None

    def gather(self, ids: list[str]) -> Iterator[tuple[np.ndarray, LabelColumns]]:
        """For each file that holds some of `ids`: their positions in `ids`, and their columns in that order."""
        places = np.array([self.places[image] for image in ids], dtype=np.int64).reshape(-1, 2)
        for number in np.unique(places[:, 0]).tolist():
            rows = np.flatnonzero(places[:, 0] == number)
            if self._open is None or self._open[0] != number:
                self._open = number, _read(self.paths[number])
            yield rows, self._open[1].take(places[rows, 1])


def _read(path: Location) -> LabelColumns:
    return flatten_table(read_labels(path).select([*_IMAGES, "persons"]), _PEOPLE)


def _compare(diff: LabelDiff, before: LabelColumns, after: LabelColumns, worst: int) -> None:
    """Count the differences of images that both sides have, row by row the same."""
    diff.images += before.num_images
    same = np.diff(before.starts) == np.diff(after.starts)
    diff.other_people += before.images["image_id"][~same].tolist()
    before, after = before.take(np.flatnonzero(same)), after.take(np.flatnonzero(same))
    strangers = before.people["source_row"] != after.people["source_row"]
    if strangers.any():
        images = np.unique(before.owner[strangers])
        diff.other_people += before.images["image_id"][images].tolist()
        kept = np.setdiff1d(np.arange(before.num_images), images)
        before, after = before.take(kept), after.take(kept)
    diff.persons += before.num_people
    different = _compare_people(diff, before, after, worst)
    diff.persons_different += int(different.sum())
    changed = np.zeros(before.num_images, bool)
    changed[before.owner[different]] = True
    changed |= _difference(before.images["mean_height_deviation"], after.images["mean_height_deviation"])[0]
    words = [np.where(side.images["is_accepted"], "accepted", "not accepted") for side in (before, after)]
    for old, new in ((before.images["status"], after.images["status"]), words):
        changed |= old != new
        diff.image_changes.update(_changes(old, new))
    diff.images_different += int(changed.sum())


def _compare_people(diff: LabelDiff, before: LabelColumns, after: LabelColumns, worst: int) -> np.ndarray:
    """(n,) bool: who differs."""
    old, new = (side.people["status"] for side in (before, after))
    different = old != new
    diff.person_changes.update(_changes(old, new))

    def place(person: int) -> str:
        row = int(before.owner[person])
        return f"{before.images['image_id'][row]}, person {person - int(before.starts[row])}"

    for name, title in MEASURES.items():
        sides = before.people[name], after.people[name]
        unequal, size = _difference(*sides, together=name == "transl")
        different |= unequal
        if len(known := size[unequal & np.isfinite(size)]):
            diff.sizes.setdefault(name, []).append(known)
        finite = [np.isfinite(_flat(side)) for side in sides]
        lost, gained = (finite[0] & ~finite[1]).any(axis=1), (~finite[0] & finite[1]).any(axis=1)
        diff.became_unknown.update({name: int(lost.sum())} if lost.any() else {})
        diff.became_known.update({name: int(gained.sum())} if gained.any() else {})
        for person in np.flatnonzero(lost)[: max(0, worst - len(diff.unknown_persons))].tolist():
            diff.unknown_persons.append(f"{place(person)}: {title} became unknown")
        if name == "transl":
            moved = np.where(np.isfinite(size), size, 0.0)
            for person in (p for p in np.argsort(-moved, kind="stable")[:worst].tolist() if moved[p] > 0):
                z = [float(side[person, 2]) for side in sides]
                height = [float(side.people["height_m"][person]) for side in (before, after)]
                change = f"z {z[0]:.2f} -> {z[1]:.2f} m, height {height[0]:.2f} -> {height[1]:.2f} m"
                diff.worst.append((float(moved[person]), f"{moved[person]:.3f} m: {place(person)}: {change}"))
            diff.worst = sorted(diff.worst, reverse=True)[:worst]
    return different


def _changes(old: np.ndarray, new: np.ndarray) -> list[str]:
    return [f"{a} -> {b}" for a, b in zip(old[old != new], new[old != new], strict=True)]


def _difference(before: np.ndarray, after: np.ndarray, together: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(n,) rows that are unequal, and by how much: the largest entry, or the length of the difference `together`.

    The size is not finite where an entry that differs is not known on both sides.
    """
    before, after = _flat(before), _flat(after)
    unequal = ~((before == after) | (np.isnan(before) & np.isnan(after)))
    apart = np.where(unequal, np.abs(after.astype(np.float64) - before), 0.0)
    return unequal.any(axis=1), np.linalg.norm(apart, axis=1) if together else apart.max(axis=1, initial=0.0)


def _flat(values: np.ndarray) -> np.ndarray:
    """(n, ...) as (n, k), also for nobody: where no image has the same people, none can be compared."""
    return values.reshape(len(values), math.prod(values.shape[1:]))
