"""Figures with axes: the scene from above, the fit of a scene, histograms. Arrays in, pictures out; opens no file.

Drawn with matplotlib's own canvas (no window, no global state). Metres; the unit of relative depth is unknown.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from dto_pipeline.view.palette import GROUND, INK, MUTED, PAPER, RULE, Rgb, person_colours
from dto_pipeline.view.tags import draw_tags

_DPI = 100
_MARGIN = (50, 14, 14, 40)  # left, top, right, bottom of the axes [px]
_BODY_RADIUS = 0.24  # of a person seen from above [m]
_LEAST_RADIUS = 6.0  # a disc is never smaller [px]
_CHART_SIZE = (360, 210)  # [px]; drawn as vectors
_LEAST_BINS = 10  # of a histogram that stay, however empty


# --- the scene from above ---


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
    _draw_field_of_view(axes, intrinsics, image_width)
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


def _draw_field_of_view(axes: Axes, intrinsics: np.ndarray, image_width: int) -> None:
    """The camera, and in grey what it cannot see."""
    axes.set_facecolor(_unit(GROUND))
    far = 2 * (axes.get_ylim()[1] + 1)
    edges = (np.array([0.0, image_width]) - intrinsics[0, 2]) / intrinsics[0, 0] * far
    axes.fill([0, *edges], [0, far, far], facecolor=_unit(PAPER), edgecolor=_unit(MUTED), linewidth=0.7, zorder=0.4)
    axes.plot(0, 0, marker="^", color=_unit(MUTED), markersize=9)


# --- the fit of a scene ---


@dataclass(frozen=True)
class Fit:
    """What a scene's two lines are made of, P people. NaN = not measured."""

    depth: np.ndarray  # (P,) relative depth
    z_before: np.ndarray  # (P,) [m]
    z_after: np.ndarray  # (P,) [m]
    group: np.ndarray  # (P,) 0 near, 1 far, -1 not measured
    alpha: tuple[float, float]  # near, far; NaN = no fit
    beta: tuple[float, float]  # [m]
    ground: bool = False  # the near line belongs to people's lowest pixels, so they lie beside it

    disparity_line: tuple[float, float] = (float("nan"), float("nan"))  # 1 / z = first / depth + second, of everybody

    @property
    def shown(self) -> np.ndarray:
        """(P,) bool: people that have a depth."""
        return np.isfinite(self.depth) & np.isfinite(self.z_before) & (self.group >= 0)


def draw_fit(fit: Fit, size: tuple[int, int]) -> Image.Image:
    """Draw people (hollow before, filled after) and the lines z = alpha * depth + beta that place them.

    Args:
        fit: of one scene.
        size: width, height of the figure [px].

    Returns:
        RGB figure.
    """
    figure, axes = _blank(size)
    kept, colours = np.flatnonzero(fit.shown), person_colours(len(fit.depth))
    if not kept.size:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nobody was measured", transform=axes.transAxes, ha="center", color=_unit(MUTED))
        return _finish(figure, axes, np.empty((0, 2)), kept, 0.0)
    before = np.stack([fit.depth, fit.z_before], axis=-1)[kept]
    after = np.stack([fit.depth, fit.z_after], axis=-1)[kept]
    rgb = [_unit(colour) for colour in colours[kept]]
    axes.add_collection(LineCollection(np.stack([before, after], axis=1).tolist(), colors=rgb, linewidths=1))
    axes.scatter(before[:, 0], before[:, 1], s=60, facecolors=_unit(PAPER), edgecolors=rgb, linewidths=1.5, zorder=3)
    axes.scatter(after[:, 0], after[:, 1], s=60, c=rgb, zorder=4)
    for group, colour in enumerate((INK, MUTED)):
        depth = fit.depth[fit.shown & (fit.group == group)]
        if depth.size and np.isfinite(fit.alpha[group]):
            span = np.array([depth.min(), depth.max()])
            axes.plot(span, fit.alpha[group] * span + fit.beta[group], color=_unit(colour), linewidth=2)
    slope, offset = fit.disparity_line
    if np.isfinite(slope):
        depth = np.linspace(fit.depth[kept].min(), fit.depth[kept].max(), 60)
        axes.plot(depth, 1 / np.maximum(slope / depth + offset, 1e-6), color=_unit(INK), linewidth=2)
    axes.margins(0.12)
    axes.set_xlabel("relative depth of the person (1 / disparity)", color=_unit(MUTED), fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter("{x:g} m")
    return _finish(figure, axes, after, kept, 6.0)


# --- histograms ---


@dataclass(frozen=True)
class Series:
    """Counts of one histogram."""

    name: str
    counts: np.ndarray  # (bins,)
    outline: bool = False  # a line around the bars instead of filled bars


@dataclass(frozen=True)
class Chart:
    """One histogram. Values beyond the edges are counted in the outer bins by whoever made the counts."""

    title: str
    edges: np.ndarray  # (bins + 1,)
    series: Sequence[Series]
    unit: str = ""
    curve: tuple[np.ndarray, np.ndarray] | None = None  # x, y of a line over the bars, for example a prior
    marks: Sequence[tuple[float, str]] = field(default_factory=tuple)  # vertical lines with a word, if inside
    logarithmic: bool = False  # of the horizontal axis

    def without_tail(self) -> Chart:
        """The chart without the empty bins at its upper end, but for the first few."""
        used = np.flatnonzero(np.any([series.counts > 0 for series in self.series], axis=0))
        keep = max(_LEAST_BINS, int(used[-1]) + 2 if used.size else 0)
        series = [replace(one, counts=one.counts[:keep]) for one in self.series]
        return replace(self, edges=self.edges[: keep + 1], series=series)

    def describe(self) -> str:
        """Counts and medians in words, for readers who do not see the chart."""
        middles = (self.edges[:-1] + self.edges[1:]) / 2
        words = []
        for series in self.series:
            total = int(series.counts.sum())
            median = middles[np.searchsorted(np.cumsum(series.counts), total / 2)] if total else float("nan")
            words.append(f"{series.name}: {total}, median about {median:.3g} {self.unit}".strip())
        return "; ".join(words)


def draw_histogram(chart: Chart) -> str:
    """An SVG file as text; its letters are drawn as shapes and look the same everywhere."""
    figure, axes = _blank(_CHART_SIZE)
    for series, colour in zip(chart.series, _series_colours(chart.series), strict=True):
        axes.stairs(series.counts, chart.edges, fill=True, color=colour, alpha=0.25 if series.outline else 0.85)
        if series.outline:
            axes.stairs(series.counts, chart.edges, color=colour, linewidth=1.6, zorder=3)
    if chart.curve is not None:
        axes.plot(*chart.curve, color=_unit(_WARM), linewidth=1.8)
    for value, word in chart.marks:
        if chart.edges[0] <= value <= chart.edges[-1]:
            axes.axvline(value, color=_unit(_WARM), linestyle="--", linewidth=1)
            place = "right" if value > chart.edges[-3] else "center"
            axes.text(value, 1.01, word, transform=axes.get_xaxis_transform(), fontsize=7, color=_unit(MUTED), ha=place)
    if chart.logarithmic:
        axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(chart.edges[0], chart.edges[-1])
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(chart.unit, color=_unit(MUTED), fontsize=8)
    stream = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dto"}):  # the same chart gives the same text
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return stream.getvalue()


_BEFORE_COLOUR, _AFTER_COLOUR, _WARM = (154, 163, 178), (38, 118, 204), (230, 97, 38)  # --a, --b, --warm of the page


def _series_colours(series: Sequence[Series]) -> list[tuple[float, float, float]]:
    return [_unit(_BEFORE_COLOUR if one.outline else _AFTER_COLOUR) for one in series]


# --- what all figures share ---


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
