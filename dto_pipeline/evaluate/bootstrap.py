"""Confidence intervals by drawing images again: how far a measure would move on another sample of the same kind.

Knows sums per image and functions of them; knows no metric and no file. People of one image share its camera and its
depth map, so images are drawn, never people. Intervals are percentile intervals (Efron, "Bootstrap Methods", 1979).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Sums = Mapping[str, np.ndarray]  # name -> (N,) or (R, N), whatever is added up per image
Statistic = Callable[[Sums], np.ndarray]

RESAMPLES = 1000  # draws; the ends of a 95 % interval then rest on 25 of them each
LEVEL = 0.95  # share of draws inside an interval
_NUMBERS_AT_ONCE = 1 << 22  # bounds memory: drawn counts held together


@dataclass(frozen=True)
class Estimate:
    """A measure and the interval around it; all NaN where there is nothing to measure."""

    value: float
    low: float
    high: float


def estimate(
    sums: Sums,
    statistics: Mapping[str, Statistic],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Measures of all images together, with intervals from images drawn again with replacement.

    Args:
        sums: name -> (N,) what each image adds.
        statistics: name -> function of the pooled sums, (...) in and (...) out; NaN = nothing to measure.
        resamples: how often N images are drawn; 0 = no intervals (NaN).
        seed: of the draws; equal arguments give equal intervals.

    Raises:
        ValueError: sums of different lengths.
    """
    names = list(sums)
    lengths = {len(values) for values in sums.values()}
    if len(lengths) > 1:
        raise ValueError(f"sums have lengths {sorted(lengths)}; expected one number per image in each")
    table = np.stack([np.asarray(sums[name], np.float64) for name in names], axis=-1)
    value = {name: float(statistic(_named(names, table.sum(0)))) for name, statistic in statistics.items()}
    drawn = _named(names, _draw_sums(table, resamples, seed))
    return {name: _interval(value[name], statistic(drawn)) for name, statistic in statistics.items()}


def mean_of(part: str, whole: str, factor: float = 1.0) -> Statistic:
    """The pooled sum called `part` per unit of the one called `whole`, times `factor`."""
    return lambda sums: factor * ratio(sums[part], sums[whole])


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where `whole` is zero."""
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)


def _draw_sums(table: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(R, K) sums over N images drawn with replacement from the rows of (N, K)."""
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


def _named(names: list[str], table: np.ndarray) -> dict[str, np.ndarray]:
    return {name: table[..., column] for column, name in enumerate(names)}


def _interval(value: float, draws: np.ndarray) -> Estimate:
    """Draws in which nothing could be measured are left out."""
    measured = draws[np.isfinite(draws)]
    if not np.isfinite(value) or len(measured) == 0:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(measured, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
