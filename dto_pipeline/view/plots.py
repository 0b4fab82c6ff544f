"""Figures with axes: the scene from above, the fit of a scene, histograms. Opens no file.

Drawn with matplotlib's own canvas (no window, no global state). Metres; the unit of relative depth is unknown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from dto_pipeline.scene import PlacedScene
from dto_pipeline.view.drawing import GROUND, INK, MUTED, PAPER, RULE, Rgb, draw_tags, person_colours

_DPI = 100
_MARGIN = (50, 14, 14, 40)  # left, top, right, bottom of the axes [px]
_BODY_RADIUS = 0.24  # of a person seen from above [m]
_LEAST_RADIUS = 6.0  # a disc is never smaller [px]
_CHART_SIZE = (360, 210)  # [px]; drawn as vectors
_LEAST_BINS = 10  # of a histogram that stay, however empty


def draw_birds_eye(
    places: np.ndarray,
    intrinsics: np.ndarray,
    image_width: int,
    size: tuple[int, int],
    shown: np.ndarray,
    truth: np.ndarray | None = None,
    z_sigma: np.ndarray | None = None,
) -> Image.Image:
    """Draw people from above, numbered from 1: x to the right, z upwards; heights above the ground are not shown.

    Args:
        places: (P, 2) x, z of each person [m]; NaN = not drawn.
        intrinsics: (3, 3) of the photograph [px]; image_width: of the photograph [px].
        size: width, height of the figure [px].
        shown: (n, 2) points that must lie inside [m]; figures that are compared share them.
        truth: (P, 2) true places [m], hollow circles; None = not known.
        z_sigma: (P,) standard deviation of z [m], bars along the line of sight; None or NaN = not known.

    Returns:
        RGB figure.
    """
    figure, axes = _blank(size)
    _scale_equally(axes, shown, size)
    axes.set_facecolor(_unit(GROUND))  # what the camera cannot see is grey
    far = 2 * (axes.get_ylim()[1] + 1)
    edges = (np.array([0.0, image_width]) - intrinsics[0, 2]) / intrinsics[0, 0] * far
    axes.fill([0, *edges], [0, far, far], facecolor=_unit(PAPER), edgecolor=_unit(MUTED), linewidth=0.7, zorder=0.4)
    axes.plot(0, 0, marker="^", color=_unit(MUTED), markersize=9)
    pixels_per_metre = float(axes.transData.transform((1, 0))[0] - axes.transData.transform((0, 0))[0])
    radius = max(_BODY_RADIUS, _LEAST_RADIUS / pixels_per_metre)
    colours = person_colours(len(places))
    drawn = np.isfinite(places).all(axis=1)
    for person in range(len(places)):
        place, colour = places[person], _unit(colours[person])
        if truth is not None:
            axes.add_patch(Circle(truth[person], radius, fill=False, edgecolor=colour, linewidth=1.5))
        if not drawn[person]:
            continue
        if truth is not None:
            axes.plot(*np.stack([place, truth[person]]).T, color=colour, linewidth=1)
        axes.add_patch(Circle(place, radius, facecolor=colour, edgecolor=_unit(PAPER), linewidth=0.5, zorder=3))
        if z_sigma is not None and np.isfinite(z_sigma[person]):
            ends = np.outer(1 + np.array([-1, 1]) * z_sigma[person] / max(place[1], 1e-3), place)
            axes.plot(*ends.T, color=colour, linewidth=4, solid_capstyle="butt", zorder=2)
            axes.plot(*ends.T, color=_unit(INK), linewidth=1, marker="_", markersize=6, zorder=4)
    return _finish(figure, axes, places[drawn], np.flatnonzero(drawn), radius * pixels_per_metre)


def _scale_equally(axes: Axes, shown: np.ndarray, size: tuple[int, int]) -> None:
    """Limits that show the camera and all points at one scale for both axes."""
    points = np.concatenate([shown[np.isfinite(shown).all(axis=1)], [[-1.2, 0.0], [1.2, 2.0]]])
    low, high = points.min(axis=0) - 0.6, points.max(axis=0) + 0.7
    low[1] = -0.25  # a little room for the camera itself
    room = np.array([size[0] - _MARGIN[0] - _MARGIN[2], size[1] - _MARGIN[1] - _MARGIN[3]])
    span = room * float(((high - low) / room).max())
    middle = (low[0] + high[0]) / 2
    axes.set_xlim(middle - span[0] / 2, middle + span[0] / 2)
    axes.set_ylim(low[1], low[1] + span[1])
    axes.yaxis.set_major_formatter("{x:g} m")


def fitted_people(placed: PlacedScene) -> np.ndarray:
    """(n,) indices of people that have a depth and a group."""
    z = placed.scene.transl[:, 2]
    return np.flatnonzero(np.isfinite(placed.depth_mean) & np.isfinite(z) & (placed.depth_group >= 0))


def draw_fit(placed: PlacedScene, size: tuple[int, int]) -> Image.Image:
    """Draw the people of a scene (hollow before, filled after) and the lines z = alpha * depth + beta that place them.

    Args:
        placed: the scene; a near line that was placed by ground evidence lies beside its people.
        size: width, height of the figure [px].

    Returns:
        RGB figure.
    """
    figure, axes = _blank(size)
    kept = fitted_people(placed)
    depth, rgb = placed.depth_mean[kept], [_unit(colour) for colour in person_colours(placed.scene.num_people)[kept]]
    if not kept.size:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nobody was measured", transform=axes.transAxes, ha="center", color=_unit(MUTED))
        return _finish(figure, axes, np.empty((0, 2)), kept, 0.0)
    before, after = (np.stack([depth, side[kept, 2]], axis=-1) for side in (placed.scene.transl, placed.transl))
    axes.add_collection(LineCollection(np.stack([before, after], axis=1).tolist(), colors=rgb, linewidths=1))
    axes.scatter(before[:, 0], before[:, 1], s=60, facecolors=_unit(PAPER), edgecolors=rgb, linewidths=1.5, zorder=3)
    axes.scatter(after[:, 0], after[:, 1], s=60, c=rgb, zorder=4)
    one_line = placed.alpha[0] == placed.alpha[1] and placed.beta[0] == placed.beta[1]  # near and far together
    for group, colour in enumerate((INK,) if one_line else (INK, MUTED)):
        own = depth if one_line else depth[placed.depth_group[kept] == group]
        if own.size and np.isfinite(placed.alpha[group]):
            span = np.array([own.min(), own.max()])
            axes.plot(span, placed.alpha[group] * span + placed.beta[group], color=_unit(colour), linewidth=2)
    slope, offset = placed.disparity_line
    if np.isfinite(slope):
        span = np.linspace(depth.min(), depth.max(), 60)
        axes.plot(span, 1 / np.maximum(slope / span + offset, 1e-6), color=_unit(INK), linewidth=2)
    axes.margins(0.12)
    axes.set_xlabel("relative depth of the person (1 / disparity)", color=_unit(MUTED), fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g} m")
    return _finish(figure, axes, after, kept, 6.0)


@dataclass(frozen=True)
class Histogram:
    """Counts of one series, or of two (before, after), over shared bins; outer bins hold what lies beyond the edges."""

    edges: np.ndarray  # (bins + 1,)
    counts: np.ndarray  # (series, bins) int64

    @classmethod
    def empty(cls, edges: np.ndarray, series: int = 1) -> Histogram:
        return cls(edges, np.zeros((series, len(edges) - 1), dtype=np.int64))

    def add(self, values: np.ndarray, series: int = 0) -> None:
        """Count the values that are finite."""
        bins = np.searchsorted(self.edges, values[np.isfinite(values)], side="right") - 1
        self.counts[series] += np.bincount(bins.clip(0, len(self.edges) - 2), minlength=len(self.edges) - 1)


@dataclass(frozen=True)
class Chart:
    """One histogram as it is drawn; of two series the first is an outline behind the other's bars."""

    title: str
    histogram: Histogram
    unit: str = ""
    names: Sequence[str] = ("before", "after")  # of the series
    curve: tuple[np.ndarray, np.ndarray] | None = None  # x, y of a line over the bars, for example a prior
    mark: tuple[float, str] | None = None  # a vertical line with a word
    logarithmic: bool = False  # of the horizontal axis
    note: str = ""  # a line of text below the title; empty = counts and medians

    def without_tail(self) -> Chart:
        """The chart without the empty bins at its upper end, but for the first few."""
        edges, counts = self.histogram.edges, self.histogram.counts
        used = np.flatnonzero(counts.any(axis=0))
        keep = max(_LEAST_BINS, int(used[-1]) + 2 if used.size else 0)
        return replace(self, histogram=Histogram(edges[: keep + 1], counts[:, :keep]))

    def describe(self) -> str:
        """Counts and medians in words, for readers who do not see the chart."""
        middles = (self.histogram.edges[:-1] + self.histogram.edges[1:]) / 2
        words = []
        for name, counts in zip(self.names, self.histogram.counts, strict=True):
            total = int(counts.sum())
            median = middles[np.searchsorted(np.cumsum(counts), total / 2)] if total else float("nan")
            words.append(f"{name}: {total}, median about {median:.3g} {self.unit}".strip())
        return "; ".join(words)


_BEFORE, _AFTER, _WARM = (154, 163, 178), (38, 118, 204), (230, 97, 38)  # --a, --b, --warm of the page


def draw_histogram(chart: Chart) -> str:
    """An SVG file as text; its letters are drawn as shapes and look the same everywhere."""
    figure, axes = _blank(_CHART_SIZE)
    edges, counts = chart.histogram.edges, chart.histogram.counts
    if len(counts) == 2:
        axes.stairs(counts[0], edges, fill=True, color=_unit(_BEFORE), alpha=0.25)
        axes.stairs(counts[0], edges, color=_unit(_BEFORE), linewidth=1.6, zorder=3)
    axes.stairs(counts[-1], edges, fill=True, color=_unit(_AFTER), alpha=0.85)
    if chart.curve is not None:
        axes.plot(*chart.curve, color=_unit(_WARM), linewidth=1.8)
    if chart.mark is not None and edges[0] <= chart.mark[0] <= edges[-1]:
        value, word = chart.mark
        axes.axvline(value, color=_unit(_WARM), linestyle="--", linewidth=1)
        place = "right" if value > edges[-3] else "center"
        axes.text(value, 1.01, word, transform=axes.get_xaxis_transform(), fontsize=7, color=_unit(MUTED), ha=place)
    if chart.logarithmic:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(chart.unit, color=_unit(MUTED), fontsize=8)
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dto"}):  # the same chart gives the same text
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _blank(size: tuple[int, int]) -> tuple[Figure, Axes]:
    """A figure of this many pixels with quiet axes."""
    width, height = size
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor=_unit(PAPER))
    left, top, right, bottom = _MARGIN
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
    axes = figure.add_axes(box)
    axes.grid(visible=True, color=_unit(RULE), linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8, labelcolor=_unit(MUTED))
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure, axes


def _finish(figure: Figure, axes: Axes, places: np.ndarray, people: np.ndarray, radius: float) -> Image.Image:
    """Render, and number the people above their discs; places: (n, 2) in the units of the axes, people: (n,) index."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    if len(people):
        anchors = axes.transData.transform(places) * (1, -1) + (0, picture.height - radius - 9)
        colours = person_colours(int(people.max()) + 1)[people]
        draw_tags(picture, anchors, [str(person + 1) for person in people.tolist()], colours, font_size=12)
    return picture


def _unit(colour: Rgb | np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(channel) / 255 for channel in colour)
    return red, green, blue
