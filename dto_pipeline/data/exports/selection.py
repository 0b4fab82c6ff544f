"""Which images and people an export takes, and a count of those it leaves out, by reason.

Knows label columns only; changes no number of a label. An export's `num_persons` counts the people that were taken.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dto_pipeline.data.columns import ragged_column, read_numbers, single_array
from dto_pipeline.data.label_files import EXPECTED_ERROR, NO_LIMITS, Z_SIGMA, Limits
from dto_pipeline.errors import DtoError
from dto_pipeline.status import PersonStatus

PERSON_CHOICES = PERSONS_ALL, PERSONS_VALID, PERSONS_MOVED = "all", "valid", "moved"
Z_COVARIANCE = "z_covariance"  # the one column of an image that is indexed by its people
SELECTION_COLUMNS = (
    *("is_optimized", "is_accepted", "mean_height_deviation", EXPECTED_ERROR, "num_persons"),
    *("persons.list.element.status", f"persons.list.element.{Z_SIGMA}"),
)
"""Parquet columns that decide; a projection needs these besides its own."""


class ExportError(DtoError):
    """An export that cannot be made; the message says why and the next step."""


@dataclass(frozen=True)
class Selection:
    """What to take. Persons are judged first, then images by the people that remain."""

    accepted_only: bool = False  # images that are optimised and score below the threshold
    max_deviation: float | None = None  # that threshold in sigma; None = the run's own (column is_accepted)
    min_persons: int = 0  # people of an image that remain
    persons: str = PERSONS_ALL  # all; valid: without unusable labels; moved: only those the fit placed; no duplicates
    limits: Limits = NO_LIMITS  # how certain images and people must be

    def __post_init__(self) -> None:
        if self.persons not in PERSON_CHOICES:
            raise ExportError(f"persons is {self.persons!r}; choose from {PERSON_CHOICES}")
        if self.min_persons < 0:
            raise ExportError(f"min_persons is {self.min_persons}; expected 0 or more")
        if self.max_deviation is not None and not 0 < self.max_deviation < np.inf:
            raise ExportError(f"max_deviation is {self.max_deviation} sigma; expected more than 0, or nothing")

    def describe(self) -> dict[str, Any]:
        """Plain values, JSON-ready."""
        plain = dataclasses.asdict(self)
        return plain | plain.pop("limits")


def select_rows(table: pa.Table, selection: Selection, left_out: Counter[str] | None = None) -> pa.Table:
    """The images and people of a label table that `selection` takes.

    Args:
        table: of `schema.LABELS_SCHEMA` or a projection with `SELECTION_COLUMNS`; further columns are kept.
        left_out: reason -> images or persons; added to.
    """
    counts = table["num_persons"].to_numpy().astype(np.int64)
    people = single_array(table["persons"]).flatten()
    status = people.field("status").to_numpy(zero_copy_only=False)
    single = status != str(PersonStatus.DUPLICATE)
    chosen = single & _people_taken(status, selection)
    z_sigma, expected = map(read_numbers, (people.field(Z_SIGMA), single_array(table[EXPECTED_ERROR])))
    taken = chosen & selection.limits.people(z_sigma)
    owner = np.repeat(np.arange(counts.size), counts)
    remaining = np.bincount(owner[taken], minlength=counts.size)
    good, crowded = _images_good(table, selection), remaining >= selection.min_persons
    certain = selection.limits.images(expected)
    images = good & certain & crowded
    if left_out is not None:
        left_out["images not accepted"] += int((~good).sum())
        judged = chosen & (good & certain)[owner]
        selection.limits.count(expected[good], z_sigma[judged], left_out)
        left_out[f"images with fewer than {selection.min_persons} persons"] += int((good & certain & ~crowded).sum())
        left_out["persons of these images"] += int((~images[owner] & ~(judged & ~taken)).sum())
        left_out["persons that repeat another, of images taken"] += int((~single & images[owner]).sum())
        left_out[f"persons not {selection.persons}, of images taken"] += int((~chosen & single & images[owner]).sum())
    if images.all() and taken.all():
        return table
    kept = people.filter(pa.array(taken & images[owner]))
    changed = {
        "num_persons": pa.array(remaining[images].astype(np.int32)),
        "persons": ragged_column(remaining[images], kept, pa.list_(table.schema.field("persons").type.value_field)),
    }
    if Z_COVARIANCE in table.column_names:
        chosen_people = np.split(taken, np.cumsum(counts)[:-1])
        triangles = single_array(table[Z_COVARIANCE])
        small = [_shrink_triangle(triangles[i], chosen_people[i]) for i in np.flatnonzero(images).tolist()]
        changed[Z_COVARIANCE] = pa.array(small, triangles.type)
    table = table.filter(pa.array(images))
    for name, column in changed.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), column)
    return table


def _people_taken(status: np.ndarray, selection: Selection) -> np.ndarray:
    if selection.persons == PERSONS_ALL:
        return np.ones(status.size, dtype=bool)
    if selection.persons == PERSONS_MOVED:
        return status == str(PersonStatus.MOVED)
    return status != str(PersonStatus.INVALID_LABEL)


def _images_good(table: pa.Table, selection: Selection) -> np.ndarray:
    if not selection.accepted_only:
        return np.ones(table.num_rows, dtype=bool)
    if selection.max_deviation is None:
        return table["is_accepted"].to_numpy()
    optimized = table["is_optimized"].to_numpy()
    return optimized & (table["mean_height_deviation"].to_numpy() < selection.max_deviation)


def _shrink_triangle(triangle: pa.ListScalar, kept: np.ndarray) -> np.ndarray | None:
    """The lower triangle (row by row, diagonal included) of an n x n matrix without the people not `kept` (n,)."""
    if not triangle.is_valid:
        return None
    row, column = np.tril_indices(kept.size)
    return np.asarray(triangle.values)[kept[row] & kept[column]]
