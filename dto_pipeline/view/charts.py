"""Small charts as SVG text: histograms with curves and marks. Numbers in, text out; knows no page.

Charts are drawn for a box of 360 x 210 units and scale with their width, so their words stay readable on a phone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape

import numpy as np

from dto_pipeline.view.fit_plot import round_ticks

WIDTH, HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 10, 18, 34
_LEAST_BINS = 10  # that stay, however empty


@dataclass(frozen=True)
class Series:
    """Counts of one histogram."""

    name: str
    counts: np.ndarray  # (bins,)
    outline: bool = False  # a line around the bars instead of filled bars


@dataclass(frozen=True)
class Mark:
    """A vertical line with a word."""

    at: float
    word: str


@dataclass(frozen=True)
class Chart:
    """One histogram. Values beyond the edges are counted in the outer bins by whoever made the counts."""

    title: str
    edges: np.ndarray  # (bins + 1,)
    series: Sequence[Series]
    unit: str = ""
    curve: tuple[np.ndarray, np.ndarray] | None = None  # x, y of a line over the bars, for example a prior
    marks: Sequence[Mark] = field(default_factory=tuple)
    logarithmic: bool = False  # of the horizontal axis


def draw_histogram(chart: Chart) -> str:
    """An <svg> element."""
    highest = max([1.0, *(float(series.counts.max(initial=0)) for series in chart.series)])
    if chart.curve is not None:
        highest = max(highest, float(chart.curve[1].max()))
    scale = _Scale(chart, highest * 1.06)
    parts = [_axes(chart, scale)]
    for number, series in enumerate(chart.series):
        parts.append(_outline(scale, series, number) if series.outline else _bars(scale, series, number))
    if chart.curve is not None:
        parts.append(f'<path class="curve" d="{_path(scale.x(chart.curve[0]), scale.y(chart.curve[1]))}"/>')
    parts += [_mark(scale, mark) for mark in chart.marks]
    label = escape(f"{chart.title}: {describe_chart(chart)}", quote=True)
    body = "".join(parts)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'


def describe_chart(chart: Chart) -> str:
    """Counts and medians in words, for readers who do not see the chart."""
    middles = (chart.edges[:-1] + chart.edges[1:]) / 2
    words = []
    for series in chart.series:
        total = int(series.counts.sum())
        median = middles[np.searchsorted(np.cumsum(series.counts), total / 2)] if total else float("nan")
        words.append(f"{series.name}: {total}, median about {median:.3g} {chart.unit}".strip())
    return "; ".join(words)


def without_tail(chart: Chart) -> Chart:
    """The chart without the empty bins at its upper end, but for the first few."""
    used = np.flatnonzero(np.any([series.counts > 0 for series in chart.series], axis=0))
    keep = max(_LEAST_BINS, int(used[-1]) + 2 if used.size else 0)
    series = [replace(one, counts=one.counts[:keep]) for one in chart.series]
    return replace(chart, edges=chart.edges[: keep + 1], series=series)


class _Scale:
    """From values and counts to units of the drawing."""

    def __init__(self, chart: Chart, highest: float) -> None:
        self.edges, self.highest, self.logarithmic = chart.edges, highest, chart.logarithmic

    def x(self, values: np.ndarray | float) -> np.ndarray:
        low, high = self._axis(self.edges[[0, -1]])
        return _LEFT + (self._axis(np.asarray(values)) - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, counts: np.ndarray | float) -> np.ndarray:
        return HEIGHT - _BOTTOM - np.asarray(counts) / self.highest * (HEIGHT - _TOP - _BOTTOM)

    def _axis(self, values: np.ndarray) -> np.ndarray:
        return np.log(values) if self.logarithmic else values


def _axes(chart: Chart, scale: _Scale) -> str:
    floor = HEIGHT - _BOTTOM
    parts = []
    for value in round_ticks(0, scale.highest, 4):
        y = float(scale.y(value))
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    ticks = _log_ticks(chart.edges) if chart.logarithmic else round_ticks(chart.edges[0], chart.edges[-1], 6)
    for value in ticks:
        x = float(scale.x(value))
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{value + 0.0:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<path class="axis" d="M{_LEFT} {floor}H{WIDTH - _RIGHT}"/>')
    parts.append(f'<text x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.unit)}</text>')
    return "".join(parts)


def _bars(scale: _Scale, series: Series, number: int) -> str:
    left, right = scale.x(scale.edges[:-1]), scale.x(scale.edges[1:])
    tops, floor = scale.y(series.counts), HEIGHT - _BOTTOM
    boxes = [
        f"M{a + 0.5:.1f} {floor}V{top:.1f}H{b - 0.5:.1f}V{floor}Z"
        for a, b, top, count in zip(left, right, tops, series.counts, strict=True)
        if count
    ]
    return f'<path class="bars s{number}" d="{"".join(boxes)}"/>'


def _outline(scale: _Scale, series: Series, number: int) -> str:
    x = np.repeat(scale.x(scale.edges), 2)
    y = np.concatenate([[HEIGHT - _BOTTOM], np.repeat(scale.y(series.counts), 2), [HEIGHT - _BOTTOM]])
    return f'<path class="outline s{number}" d="{_path(x, y)}"/>'


def _mark(scale: _Scale, mark: Mark) -> str:
    x = float(scale.x(np.array(mark.at)))
    anchor, shift = ("end", -4) if x > WIDTH * 0.7 else ("start", 4)
    line = f'<path class="mark" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>'
    return f'{line}<text x="{x + shift:.1f}" y="{_TOP - 5}" text-anchor="{anchor}">{escape(mark.word)}</text>'


def _path(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def _log_ticks(edges: np.ndarray) -> list[float]:
    powers = np.arange(np.ceil(np.log2(edges[0]) - 1e-9), np.floor(np.log2(edges[-1]) + 1e-9) + 1)
    return [float(2.0**power) for power in powers]


def _short(value: float) -> str:
    """1200 -> 1.2k, 3400000 -> 3.4M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value + 0.0:g}"  # never -0
