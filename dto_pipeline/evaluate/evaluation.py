"""What every evaluation hands over: measures with intervals, counts of everybody, one row per image.

An evaluation is made of sums per image; measures are functions of pooled sums, so that the same definition serves all
images together, each image alone, and images drawn again. Knows text and JSON; knows no metric and writes no files.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dto_pipeline.evaluate.bootstrap import LEVEL, Estimate, Statistic, Sums, estimate
from dto_pipeline.evaluate.tables import align


@dataclass(frozen=True)
class Measure:
    """A number that is reported: its key in JSON and CSV, its name in tables, its unit, its definition."""

    key: str
    title: str
    unit: str
    of: Statistic  # of pooled sums
    digits: int = 1


@dataclass(frozen=True)
class Column:
    """One set of people that is measured: what each image adds, and what that comes to."""

    sums: Sums  # name -> (N,)
    estimates: Mapping[str, Estimate]  # by the measures' keys


@dataclass(frozen=True)
class Evaluation:
    """Measures of one or more columns over the same N images, with what was left out and why."""

    title: str
    images: Sequence[str]  # N names
    measures: tuple[Measure, ...]
    columns: Mapping[str, Column]
    counts: Mapping[str, int]  # images and people, in words
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] | None = None  # what was asked for, for the JSON

    def as_table(self) -> str:
        """Text for a terminal: measures with intervals, then counts, then notes."""
        head = ["", *self.columns]
        rows = [
            [f"{measure.title} [{measure.unit}]" if measure.unit else measure.title]
            + [show(column.estimates[measure.key], measure) for column in self.columns.values()]
            for measure in self.measures
        ]
        lines = [self.title, "", *align([head, *rows]), ""]
        lines += align([[name, f"{count}"] for name, count in self.counts.items()])
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready: numbers that do not exist are null."""
        return {
            "title": self.title,
            "settings": dict(self.settings or {}),
            "level": LEVEL,
            "units": {measure.key: measure.unit for measure in self.measures},
            "measures": {
                name: {key: _plain(found) for key, found in column.estimates.items()}
                for name, column in self.columns.items()
            },
            "counts": dict(self.counts),
            "notes": list(self.notes),
        }

    def as_csv(self) -> str:
        """One row per image: the measures of that image alone and the sums they come from."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        head, cells = ["image"], []
        for name, column in self.columns.items():
            before = f"{name}:" if len(self.columns) > 1 else ""
            alone = {measure.key: measure.of(column.sums) for measure in self.measures}
            for key, values in {**alone, **column.sums}.items():
                head.append(f"{before}{key}")
                cells.append(np.broadcast_to(values, len(self.images)))
        writer.writerow(head)
        for row, image in enumerate(self.images):
            writer.writerow([image, *("" if np.isnan(values[row]) else f"{values[row]:.9g}" for values in cells)])
        return text.getvalue()


def make_column(sums: Sums, measures: Sequence[Measure], resamples: int, seed: int) -> Column:
    """A column with its estimates."""
    return Column(sums, estimate(sums, {measure.key: measure.of for measure in measures}, resamples, seed))


def add_up(values: np.ndarray, image: np.ndarray, images: int) -> np.ndarray:
    """(N,) float64 sum of `values` (n,) per image (n,) int."""
    return np.bincount(image, np.asarray(values, np.float64), images)


def show(found: Estimate, measure: Measure) -> str:
    """``58.5 (56.1 .. 60.9)``; a dash where there is nothing to measure."""
    if not np.isfinite(found.value):
        return "-"
    digits = measure.digits
    if not np.isfinite(found.low):
        return f"{found.value:.{digits}f}"
    return f"{found.value:.{digits}f} ({found.low:.{digits}f} .. {found.high:.{digits}f})"


def _plain(found: Estimate) -> dict[str, float | None]:
    return {key: value if np.isfinite(value) else None for key, value in vars(found).items()}
