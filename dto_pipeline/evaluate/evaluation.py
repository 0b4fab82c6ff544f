"""Results of evaluations: measures with intervals, counts of images and people, one row per image.

Every image adds sums, and a measure is a function of the sums of some images. So one definition gives the measure of
all images, of each image alone, and of bootstrap samples. Samples are drawn from images, not from people, because the
people of one image share its camera and its depth map. Intervals are percentile intervals (Efron, "Bootstrap Methods",
1979).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dto_pipeline.errors import DtoError
from dto_pipeline.terminal import align

Sums = Mapping[str, np.ndarray]  # name -> (N,) or (R, N), whatever is added up per image
Statistic = Callable[[Sums], np.ndarray]

RESAMPLES = 1000  # bootstrap samples; 25 of them lie beyond each end of a 95 % interval
LEVEL = 0.95  # share of the samples inside an interval
_NUMBERS_AT_ONCE = 1 << 22  # bounds memory: how often each image was drawn, in several samples


class EvaluationError(DtoError, ValueError):
    """Two sides that cannot be compared; the message says why and what to do."""


@dataclass(frozen=True)
class Estimate:
    """A measure and the interval around it; all NaN where there is nothing to measure."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """A number that is reported: its key in JSON and CSV, its name in tables, its unit, its definition."""

    key: str
    title: str
    unit: str
    of: Statistic  # of pooled sums, (...) in and (...) out; NaN = nothing to measure
    digits: int = 1


def estimate(sums: Sums, measures: Sequence[Measure], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
    """Measures of all images together by their keys, with bootstrap intervals.

    Args:
        sums: name -> (N,) what each image adds.
        resamples: bootstrap samples of N images each; 0 = no intervals (NaN).
        seed: of the samples; equal arguments give equal intervals.
    """
    table = np.stack([np.asarray(values, np.float64) for values in sums.values()], axis=-1)

    def named(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: rows[..., column] for column, name in enumerate(sums)}

    pooled, drawn = named(table.sum(0)), named(_draw_sums(table, resamples, seed))
    found = {}
    for measure in measures:
        value, draws = float(measure.of(pooled)), measure.of(drawn)
        measured = draws[np.isfinite(draws)]  # samples in which nothing can be measured are left out
        low, high = np.nan, np.nan
        if np.isfinite(value) and len(measured):
            low, high = np.quantile(measured, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        found[measure.key] = Estimate(value, float(low), float(high))
    return found


def mean_of(part: str, whole: str, factor: float = 1.0) -> Statistic:
    """The pooled sum called `part` per unit of the one called `whole`, times `factor`."""
    return lambda sums: factor * ratio(sums[part], sums[whole])


def ratio(part: np.ndarray | float, whole: np.ndarray | float) -> np.ndarray:
    """part / whole, NaN where `whole` is zero."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)


def _draw_sums(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, K) sums of R samples: N rows drawn with replacement from the table (N, K)."""
    images = len(table)
    if images == 0 or resamples == 0:
        return np.full((0, table.shape[1]), np.nan)
    rng = np.random.default_rng(seed)
    step = max(1, _NUMBERS_AT_ONCE // images)
    parts = []
    for start in range(0, resamples, step):
        counts = rng.multinomial(images, np.full(images, 1 / images), size=min(step, resamples - start))
        parts.append(counts.astype(np.float64) @ table)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Evaluation:
    """Measures of one or more columns over the same N images, with what was left out and why."""

    title: str
    images: Sequence[str] | np.ndarray  # N names
    measures: tuple[Measure, ...]
    columns: Mapping[str, Sums]  # set of people -> name -> (N,) what each image adds
    counts: Mapping[str, int]  # images and people, in words
    notes: tuple[str, ...]  # empty ones are not shown
    settings: Mapping[str, Any]  # how it was measured, for the JSON
    resamples: int = RESAMPLES  # bootstrap samples for the intervals, 0 = no intervals
    seed: int = 0  # of the samples

    @cached_property
    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """Set of people -> key of a measure -> its value with interval."""
        return {name: estimate(sums, self.measures, self.resamples, self.seed) for name, sums in self.columns.items()}

    def as_table(self) -> str:
        """Text for a terminal: measures with intervals, then counts, then notes."""
        head = ["", *self.columns]
        rows = [
            [f"{measure.title} [{measure.unit}]" if measure.unit else measure.title]
            + [show(column[measure.key], measure) for column in self.estimates.values()]
            for measure in self.measures
        ]
        lines = [self.title, "", *align([head, *rows]), ""]
        lines += align([[name, f"{count}"] for name, count in self.counts.items()])
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes if note)])

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready: numbers that do not exist are null."""
        return {
            "title": self.title,
            "settings": {**self.settings, "resamples": self.resamples, "seed": self.seed},
            "level": LEVEL,
            "units": {measure.key: measure.unit for measure in self.measures},
            "measures": plain(self.estimates),
            "counts": dict(self.counts),
            "notes": [note for note in self.notes if note],
        }

    def as_csv(self) -> str:
        """One row per image: the measures of that image alone and the sums they come from."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        head, cells = ["image"], []
        for name, sums in self.columns.items():
            before = f"{name}:" if len(self.columns) > 1 else ""
            alone = {measure.key: measure.of(sums) for measure in self.measures}
            for key, values in {**alone, **sums}.items():
                head.append(f"{before}{key}")
                cells.append(np.broadcast_to(values, len(self.images)))
        writer.writerow(head)
        for row, image in enumerate(self.images):
            writer.writerow([image, *("" if np.isnan(values[row]) else f"{values[row]:.9g}" for values in cells)])
        return text.getvalue()


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


def plain(found: Any) -> Any:
    """Nested mappings of estimates and numbers as plain dicts for JSON, where numbers that are not finite are null."""
    if isinstance(found, Estimate):
        found = vars(found)
    if isinstance(found, Mapping):
        return {key: plain(value) for key, value in found.items()}
    return None if isinstance(found, float) and not np.isfinite(found) else found
